"""The files of a split, anywhere: data sets of many files say the split in their names."""

import functools
import glob
import pathlib
import re
from collections.abc import Sequence

from nest_dist.base import failures, hub
from nest_dist.data.sources import byte_ranges, range_cache, retries


def resolved(
    flag: str,
    names: Sequence[str],
    split: str,
    suffix: str,
    trying: retries.Retries,
    cache: range_cache.Cache | None,
) -> list[byte_ranges.File]:
    """The files that are meant by paths, patterns, folders, addresses, and data sets of the Hub.

    Args:
        flag: that gives the names, for error texts.
        names: a path that exists is meant literally.
        split: of the files of folders and data sets.
        suffix: of these files.
        trying: again, where the Hub does not answer.
        cache: of the remote ones.
    Raises:
        BadInput: if a name means no file.
    """
    files: list[byte_ranges.File] = []
    kind = hub.KINDS[suffix]
    for name in names:
        path = pathlib.Path(name).expanduser()
        if name.startswith(hub.DATASETS):
            listed = dict(trying.run(name, functools.partial(hub.dataset_files, name, suffix)))
            chosen = of_split(list(listed), split, name, kind)
            files += [byte_ranges.File(each, listed[each], cache=cache) for each in chosen]
        elif re.match("https?://", name):
            files.append(byte_ranges.File(name, cache=cache))
        elif path.is_file():
            files.append(byte_ranges.File(str(path)))
        elif path.is_dir():
            found = path.rglob(f"*{suffix}")
            inside = sorted(each.relative_to(path).as_posix() for each in found)
            chosen = of_split(inside, split, name, kind)
            files += [byte_ranges.File(str(path / each)) for each in chosen]
        elif matches := sorted(glob.glob(str(path), recursive=True)):
            files += map(byte_ranges.File, matches)
        else:
            raise failures.BadInput(
                f"{flag} has {name!r}, which matches no file ({path.absolute()}); give paths, "
                f"patterns, folders, http addresses, or {hub.DATASETS}OWNER/NAME."
            )
    if not files:
        raise failures.BadInput(f"{flag} is empty; give at least one file or folder.")
    return files


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
