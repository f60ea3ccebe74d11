"""Several data sets as one, drawn by weight."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import typing
from collections.abc import Sequence

import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.settings import Effect, means
from nest_dist.data import batch, classes, mixture, parts

LONGEST_TURN = 100_000
_FORMS = (
    "give one number for each, such as (3, 1), or pairs of a first step and such numbers, as in "
    "((0, (3, 1)), (5000, (1, 1)))"
)


@settings.register
class Mixture:
    """Data sets for training, each drawn with its weight; each is shuffled and repeats by itself.

    Attributes:
        sources: the data sets.
        names: of them, for metrics and error texts.
        weights: one number for each data set; or pairs of a first step, from 0 on, and such
            numbers. In the sequence of a virtual shard no data set is ever two examples off its
            share.
        classes: "same" wants the same names of classes in all data sets, in any order. "union"
            takes those of all, in the order in which they are named first.
    """

    sources: tuple[batch.SourceConfig, ...]
    names: tuple[str, ...] = means(Effect.NONE)
    weights: tuple[typing.Any, ...] = means(Effect.ANOTHER_RUN)
    classes: typing.Literal["same", "union"] = "same"

    def __post_init__(self) -> None:
        distinct = len({*self.names}) == len(self.names) == len(self.sources) > 0
        if not distinct or not all(self.names) or any("/" in name for name in self.names):
            raise failures.BadInput(
                f"Mixture.names is {self.names}; give each of the {len(self.sources)} "
                "Mixture.sources a name of its own, without '/'."
            )
        self.phases  # noqa: B018  # checked now

    @property
    def phases(self) -> mixture.Phases:
        """The weights as pairs of a first step and whole numbers.

        Raises:
            BadInput: if they are not of either form.
        """
        pairs = self.pairs
        steps = [step for step, _ in pairs]
        fits = all(
            isinstance(weights, tuple)
            and len(weights) == len(self.sources)
            and all(type(it) in (int, float) and 0 <= it < settings.LARGEST for it in weights)
            and any(weights)
            for _, weights in pairs
        )
        if not fits or steps[0] != 0 or steps != sorted({*steps}):
            raise failures.BadInput(
                f"Mixture.weights is {self.weights} for {len(self.sources)} sources; {_FORMS}, "
                "steps ascending from 0, no number below 0 and not all 0."
            )
        phases = tuple((step, mixture.reduced(weights)) for step, weights in pairs)
        for _, weights in phases:
            if sum(weights) > LONGEST_TURN:
                raise failures.BadInput(
                    f"Mixture.weights is {self.weights}, whose smallest whole numbers "
                    f"{weights} add up to more than {LONGEST_TURN}; round them, as in (97, 3)."
                )
        return phases

    @property
    def pairs(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """The weights as pairs of a first step and numbers as they were written."""
        paired = bool(self.weights) and all(
            isinstance(it, tuple) and len(it) == 2 and type(it[0]) is int for it in self.weights
        )
        return self.weights if paired else ((0, self.weights),)

    def continued(self, stored: typing.Any, step: int) -> "Mixture":
        """The mixture of a run that goes on: the weights up to a step are those of the checkpoint.

        Args:
            stored: `weights` of the checkpoint, in JSON.
        """
        before = dataclasses.replace(self, weights=_tuples(stored))
        now = next(weights for first, weights in reversed(self.pairs) if first <= step)
        kept = [pair for pair in before.pairs if pair[0] < step]
        if not kept or kept[-1][1] != now:
            kept.append((step, now))
        pairs = (*kept, *(pair for pair in self.pairs if pair[0] > step))
        return before if pairs == before.pairs else dataclasses.replace(self, weights=pairs)

    def open(self) -> "Mixed":
        """The open data sets.

        Raises:
            BadInput: if their classes or images differ, or one is a mixture itself.
        """
        opened = [parts.opened(config) for config in self.sources]
        for name, source in zip(self.names, opened, strict=True):
            if source.mixture is not None:
                raise failures.BadInput(
                    f"{name!r} in the Mixture is a Mixture itself; give its sources instead, with "
                    "weights multiplied."
                )
            if source.image_spec != opened[0].image_spec:
                raise failures.BadInput(
                    f"{name!r} in the Mixture has {source.image_spec}, {self.names[0]!r} has "
                    f"{opened[0].image_spec}; give data sets with the same."
                )
        wanted = self._class_names(opened)
        return Mixed(
            tuple(
                classes.in_order(source, wanted, "the Mixture", f"remove it from {name!r}")
                for name, source in zip(self.names, opened, strict=True)
            ),
            self.names,
        )

    def _class_names(self, opened: Sequence[batch.Source]) -> tuple[str, ...]:
        union = tuple(dict.fromkeys(name for source in opened for name in source.class_names))
        for name, source in zip(self.names, opened, strict=True):
            lacking = [each for each in union if each not in source.class_names]
            if lacking and self.classes == "same":
                raise failures.BadInput(
                    f"class {lacking[0]!r} is not in {name!r} ({classes.few(source.class_names)}), "
                    "but in others of the Mixture; give data sets with the same classes, or set "
                    "Mixture.classes to 'union'."
                )
        return union


@dataclasses.dataclass(eq=False)
class Mixed(batch.Source):
    """Open data sets with the same labels; their examples follow each other."""

    sources: tuple[batch.Source, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.class_names = self.sources[0].class_names
        self.image_spec = self.sources[0].image_spec
        groups = tuple(source.row_groups for source in self.sources)
        lengths = tuple(map(len, self.sources))
        self.mixture = batch.Mixture(self.names, lengths, groups)
        self._ends = np.cumsum(lengths)
        counts = [len(it.lengths) if it else 0 for it in groups]
        self._first_groups = [0, *itertools.accumulate(counts)]
        # As the memory that each needs for the same number of windows.
        self._windows = [sum(sorted(it.bytes)[-it.window :]) if it else 0 for it in groups]

    @functools.cached_property  # those of the sources may have to read the pictures
    def fingerprint(self) -> str:  # type: ignore[override]
        content = self.class_names, [source.fingerprint for source in self.sources]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> batch.Example:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self.sources[number]
        return source[index - int(self._ends[number]) + len(source)]

    @contextlib.contextmanager
    def holding(
        self, groups: Sequence[int], ahead: Sequence[int], limit_bytes: int
    ) -> typing.Iterator[None]:
        with contextlib.ExitStack() as held:
            for number, source in enumerate(self.sources):
                if source.row_groups is None:
                    continue
                first, end = self._first_groups[number : number + 2]
                own, coming = (
                    [group - first for group in some if first <= group < end]
                    for some in (groups, ahead)
                )
                share = limit_bytes * self._windows[number] // sum(self._windows)
                held.enter_context(source.holding(own, coming, share))
            yield


def _tuples(value: typing.Any) -> typing.Any:
    """Lists of JSON as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
