"""Plans the shards of an input: their number, and the labels and class names to write."""

import pathlib
from collections.abc import Sequence

from nest_dist.base import checks
from nest_dist.data import classes, manifest
from nest_dist.dataset_builder import inputs, labels, shards

SHARD_BYTES = 256 << 20


def plan(
    folder: pathlib.Path,
    data: inputs.Input,
    about: dict[str, str],
    class_names: str | None,
    count: int | None,
    restart_markers: bool,
) -> shards.Plan:
    """The plan of a split; without a file of class names it shares those of its sibling splits.

    Args:
        class_names: path of a text file; None takes the names of a sibling, else those of `data`.
        count: of shards; None chooses it by their size.
    Raises:
        BadInput: for an unknown class, or a count that does not fit.
    """
    source = data.source
    wanted: Sequence[str] = source.class_names
    whose = about["name"]
    if class_names:
        wanted = [name for _, name in labels.lines("--class_names", class_names)]
        whose = class_names
    else:
        for sibling in sorted(folder.parent.glob(f"*/{manifest.NAME}")):
            if sibling.parent != folder:
                wanted, whose = tuple(manifest.read(sibling.parent).classes), str(sibling.parent)
                break
    if count is None:
        count = min(-(-data.bytes // SHARD_BYTES) or 1, len(source))
    checks.in_range("--shards", count, 1, len(source))
    return shards.Plan(
        data=data,
        about=about,
        class_names=tuple(wanted),
        labels=_labels(data, wanted, whose),
        shards=count,
        restart_markers=restart_markers,
    )


def _labels(data: inputs.Input, wanted: Sequence[str], whose: str) -> tuple[int, ...]:
    """The label to write for each label of an input."""
    names = data.source.class_names
    if data.numbered and len(names) <= len(wanted) and not set(names) <= set(wanted):
        return tuple(range(len(names)))
    return classes.table(
        names,
        wanted,
        whose,
        "splits of one data set share their classes: name all with --class_names, or choose "
        "another --output",
    )
