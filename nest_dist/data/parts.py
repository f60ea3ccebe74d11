"""A part of a split, as in `train[:98%]`: by number, by percent, every k-th, or all others."""

import contextlib
import dataclasses
import fractions
import functools
import hashlib
import re
import typing
from collections.abc import Sequence

import numpy as np

from nest_dist.base import failures, settings
from nest_dist.data import batch

_BOUND = r"(-?\d+|\d+(?:\.\d+)?%)?"
_SLICE = re.compile(rf"\[(!?){_BOUND}:{_BOUND}(?::(\d+))?\]")
_OF_SPLIT = re.compile(r"(.*?)(\[[^\[\]]*\])")


@settings.register
class Part:
    """Some examples of a data set; parts with common borders cover it, and share none.

    `ArrayRecord.split = 'train[:98%]'` is short for a part of the split `train`, with any source
    that has a `split`.

    Attributes:
        source: the data set.
        slice: [START:STOP] or [START:STOP:STEP], each of them optional. START and STOP are numbers
            of examples, from the end if negative, or percent such as 98%; of a border between two
            examples the lower one counts. `[!::50]` has all examples but those of `[::50]`.
    """

    source: batch.SourceConfig
    slice: str

    def open(self) -> batch.Source:
        """The part of the opened data set.

        Raises:
            BadInput: if it is empty, reaches over the end, or the data set is a mixture.
        """
        return _part(opened(self.source), self.slice, "Part.slice")


def opened(config: batch.SourceConfig) -> batch.Source:
    """An open data set, or the part of it that its `split` names."""
    split = _OF_SPLIT.fullmatch(getattr(config, "split", None) or "")
    if not split:
        return config.open()
    name = f"{type(config).__name__}.split"
    _parsed(split[2], name)  # before anything is opened
    plain = dataclasses.replace(typing.cast(typing.Any, config), split=split[1])
    return _part(plain.open(), split[2], name)


def split_name(split: str) -> str:
    """The name of a split without the part of it."""
    match = _OF_SPLIT.fullmatch(split)
    return match[1] if match else split


@dataclasses.dataclass(frozen=True)
class Slice:
    """Every `step`-th example of [start, stop), or all others."""

    start: int
    stop: int
    step: int
    length: int
    others: bool  # whether the examples outside are meant

    def __len__(self) -> int:
        return int(self.before(self.length))

    def __getitem__(self, number: int) -> int:
        """The id in the data set of an example of the part."""
        if not self.others:
            return self.start + number * self.step
        inside, skipped = number - self.start, len(range(self.start, self.stop, self.step))
        if inside < 0:
            return number
        if inside >= self.stop - self.start - skipped:
            return number + skipped
        period, offset = divmod(inside, self.step - 1)
        return self.start + period * self.step + 1 + offset

    def before(self, ids: typing.Any) -> typing.Any:
        """How many examples of the part have ids below these; of integers or arrays of them."""
        inside = np.clip(ids, self.start, self.stop) - self.start
        chosen = (inside + self.step - 1) // self.step
        return ids - chosen if self.others else chosen


def _parsed(text: str, name: str) -> re.Match[str]:
    match = _SLICE.fullmatch(text)
    if not match or match[4] == "0":
        raise failures.BadInput(
            f"{name} has the part {text!r}; write [START:STOP] or [START:STOP:STEP] with numbers "
            "of examples or percent, as in [:98%], [1000:] or [::50], or [!::50] for all others."
        )
    return match


def slice_of(text: str, length: int, name: str) -> Slice:
    """The slice that a text describes.

    Raises:
        BadInput: if it is written otherwise, reaches over the end, or holds no example.
    """
    match = _parsed(text, name)
    start, stop = (
        default if bound is None else _border(bound, length, text, name)
        for bound, default in ((match[2], 0), (match[3], length))
    )
    made = Slice(start, max(start, stop), int(match[4] or 1), length, bool(match[1]))
    if not len(made):
        raise failures.BadInput(
            f"{name} has the part {text!r}, which holds none of the {length} examples; choose "
            "other borders."
        )
    return made


def _border(bound: str, length: int, text: str, name: str) -> int:
    if bound.endswith("%"):
        share = fractions.Fraction(bound[:-1]) / 100
        border = int(share * length) if share <= 1 else length + 1
    else:
        border = int(bound) + (length if bound.startswith("-") else 0)
    if not 0 <= border <= length:
        raise failures.BadInput(
            f"{name} has the part {text!r}, but the data set has {length} examples; give borders "
            f"from -{length} to {length}, or 0% to 100%."
        )
    return border


def _part(source: batch.Source, text: str, name: str) -> batch.Source:
    if source.mixture is not None:
        raise failures.BadInput(
            f"{name} has the part {text!r} of a Mixture; give parts as its Mixture.sources."
        )
    return _Part(source, slice_of(text, len(source), name))


@dataclasses.dataclass(eq=False)
class _Part(batch.Source):
    """The examples of a slice, and the row groups that hold any."""

    source: batch.Source
    slice: Slice

    def __post_init__(self) -> None:
        self.class_names, self.image_spec = self.source.class_names, self.source.image_spec
        self._groups = np.empty(0, int)  # the number in the source of each row group
        if groups := self.source.row_groups:
            counts = np.diff(self.slice.before(np.cumsum([0, *groups.lengths])))
            self._groups = np.flatnonzero(counts)
            self.row_groups = dataclasses.replace(
                groups,
                lengths=tuple(counts[self._groups].tolist()),
                bytes=tuple(groups.bytes[group] for group in self._groups),
            )

    @functools.cached_property  # that of the source may have to read the pictures
    def fingerprint(self) -> str:  # type: ignore[override]
        content = self.source.fingerprint, dataclasses.astuple(self.slice)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.slice)

    def __getitem__(self, index: int) -> batch.Example:
        return self.source[self.slice[index]]

    def known_labels(self) -> np.ndarray | None:
        return self._chosen(self.source.known_labels())

    def read_labels(self) -> np.ndarray | None:
        return self._chosen(self.source.read_labels())

    def _chosen(self, labels: np.ndarray | None) -> np.ndarray | None:
        if labels is None:
            return None
        chosen = np.diff(self.slice.before(np.arange(len(labels) + 1))) > 0
        return labels[chosen]

    def holding(
        self, groups: Sequence[int], ahead: Sequence[int], limit_bytes: int
    ) -> contextlib.AbstractContextManager[None]:
        held, coming = (self._groups[list(numbers)].tolist() for numbers in (groups, ahead))
        return self.source.holding(held, coming, limit_bytes)
