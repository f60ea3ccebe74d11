"""Files that say their split in their names, as data sets of many files do."""

import re
from collections.abc import Sequence

from nest_dist.base import failures


def of_split(names: Sequence[str], split: str, folder: str, kind: str) -> list[str]:
    """The names that contain the split as a word, as data sets of the Hub call their files.

    Raises:
        BadInput: if there are none.
    """
    word = re.compile(rf"(^|[-._ /\d]){re.escape(split)}([-._ /\d]|$)")
    if chosen := [name for name in names if word.search(name)]:
        return chosen
    few = ", ".join(posix.rpartition("/")[2] for posix in names[:3]) or "none"
    raise failures.BadInput(
        f"{folder} has no {kind} of split {split!r}, by their names: it has {few}; give the files "
        "themselves, or another split."
    )
