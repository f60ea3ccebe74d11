"""Classes are compared by name: a split takes the labels that a run has for its names."""

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Sequence

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch

MOST_NUMBERED = 1_000_000  # ImageNet-21k has 21,841


def table(names: Sequence[str], wanted: Sequence[str], whose: str, remedy: str) -> tuple[int, ...]:
    """The label among `wanted` of each name.

    Args:
        names: of a split's classes.
        wanted: names in the order of the labels.
        whose: the origin of these, for error texts.
        remedy: likewise.
    Raises:
        BadInput: for a class that is not wanted, or one that is wanted twice.
    """
    if tuple(names) == tuple(wanted):
        return tuple(range(len(names)))
    label_of = {name: label for label, name in enumerate(wanted)}
    if len(label_of) < len(wanted):
        twice = next(name for name in label_of if list(wanted).count(name) > 1)
        raise failures.BadInput(
            f"class {twice!r} stands twice in {whose}; give each class a name of its own."
        )
    if unknown := [name for name in names if name not in label_of]:
        raise failures.BadInput(
            f"class {unknown[0]!r} is not among the {len(wanted)} classes of {whose} "
            f"({few(wanted)}); {remedy}."
        )
    return tuple(label_of[name] for name in names)


def in_order(
    source: batch.Source, class_names: Sequence[str], whose: str, remedy: str
) -> batch.Source:
    """The source with labels in the order of some classes, by `table`."""
    labels = table(source.class_names, class_names, whose, remedy)
    if source.class_names == tuple(class_names):
        return source
    return _Relabelled(source, tuple(class_names), labels)


@dataclasses.dataclass(eq=False)
class _Relabelled(batch.Source):
    """A source whose classes are in another order."""

    source: batch.Source
    class_names: tuple[str, ...]
    labels: tuple[int, ...]  # the new one for each label of the source

    def __post_init__(self) -> None:
        self.image_spec = self.source.image_spec
        self.row_groups = self.source.row_groups
        self.mixture = self.source.mixture

    @functools.cached_property  # it may have to read the pictures
    def fingerprint(self) -> str:  # type: ignore[override]
        return self.source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> batch.Example:
        example = self.source[index]
        relabelled_example = {**example, "labels": relabelled(example, self.labels)}
        if "unknown" in example:
            relabelled_example["unknown"] = relabelled(example, self.labels, "unknown")
        return typing.cast(batch.Example, relabelled_example)

    def class_counts(self) -> tuple[int, ...] | None:
        if (counts := self.source.class_counts()) is None:
            return None
        by_label = dict(zip(self.labels, counts, strict=True))
        return tuple(by_label.get(label, 0) for label in range(len(self.class_names)))

    def known_labels(self) -> np.ndarray | None:
        return self._relabelled(self.source.known_labels())

    def read_labels(self) -> np.ndarray | None:
        return self._relabelled(self.source.read_labels())

    def _relabelled(self, known: np.ndarray | None) -> np.ndarray | None:
        return known if known is None else np.array(self.labels)[known]

    def holding(
        self, groups: Sequence[int], ahead: Sequence[int], limit_bytes: int
    ) -> contextlib.AbstractContextManager[None]:
        return self.source.holding(groups, ahead, limit_bytes)


def relabelled(
    example: batch.Example,
    labels: Sequence[int],
    field: typing.Literal["labels", "unknown"] = "labels",
) -> tuple[int, ...]:
    """The labels of an example after a change of their order.

    Args:
        labels: the new label for each label of the source.
    Raises:
        BadInput: if the example has another label.
    """
    stored = example.get(field, ())
    if odd := [label for label in stored if not 0 <= label < len(labels)]:
        raise failures.BadInput(
            f"{example.get('key', 'an example')} has label {odd[0]}, the data has {len(labels)} "
            f"classes, labels 0 to {len(labels) - 1}; correct the label or name every class."
        )
    return tuple(sorted(labels[label] for label in stored))


def numbered(count: int, where: str) -> tuple[str, ...]:
    """The names of classes that have numbers alone.

    Args:
        count: of them, the largest label and one more.
        where: the labels are, for the error text.
    Raises:
        BadInput: for more than `MOST_NUMBERED`, before their names take all memory.
    """
    if count > MOST_NUMBERED:
        raise failures.BadInput(
            f"{where} has label {count - 1}, labels are 0 to {MOST_NUMBERED - 1}; give the number "
            "of a class and not that of a picture, or a text."
        )
    return tuple(map(str, range(count)))


def other_splits(names: Sequence[str]) -> str:
    """The splits that are there, as the middle of an error text; empty if there are none."""
    return f"the splits there are {few(names, 9)}; " if names else ""


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names, and how many more there are."""
    listed = ", ".join(name or "the top" for name in names[:shown])
    return f"{listed} and {len(names) - shown} more" if len(names) > shown else listed
