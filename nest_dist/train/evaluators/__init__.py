"""What an evaluation measures beside the objective: one file for each, behind one interface.

The devices compute a few numbers of each example. They are gathered in the order of the data set.
The primary process concludes from them, in float64: so the same numbers of the examples give the
same bits, on any number of processes.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from nest_dist.base import failures

# A level of the model, from 0; None for what the head receives.
Level: typing.TypeAlias = int | None


class Classes(typing.NamedTuple):
    """The classes of an evaluation."""

    names: tuple[str, ...]  # of each label
    own: tuple[str, ...]  # those of the data set, in its own order; each is among `names`


class Seen(typing.NamedTuple):
    """What the model makes of a batch, on the devices."""

    outputs: jax.Array  # of the head, float32 [B, classes]
    features: Mapping[Level, jax.Array]  # of the levels that are asked for, float32 [B, C]


class Examples(typing.NamedTuple):
    """The examples of a data set, each once, in its order."""

    labels: np.ndarray  # integers [N]
    ids: np.ndarray  # of the examples in the data set, [N]
    arrays: Mapping[str, np.ndarray]  # what the devices computed of them, [N, ...] by name


class Confused(typing.NamedTuple):
    """Each example with its label and the class that was predicted, [N]; see `confusion`."""

    ids: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray


class Gathered(typing.NamedTuple):
    """What a measure concludes from."""

    examples: Examples  # of the data set
    reference: Examples | None  # examples to learn from; None unless the measure `learns`
    classes: Classes  # of both


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a measure says of a data set."""

    metrics: Mapping[str, float]  # by name
    notes: tuple[str, ...] = ()  # lines for the user
    confused: Confused | None = None  # for pictures and tables, from `Confusion` alone


class Measure(typing.Protocol):
    """One measure; a registered dataclass."""

    uses_head: typing.ClassVar[bool] = True  # whether it judges the classes that the model predicts
    # Whether it learns from the reference examples of the evaluation
    learns: typing.ClassVar[bool] = False

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels of the model whose features it takes."""
        return ()

    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics by which checkpoints may be compared; more is better."""

    def require_fit(self, classes: Classes, examples: int, reference: int) -> None:
        """Checks itself against the data before a step is made.

        Args:
            classes: of the evaluation.
            examples: of its data set.
            reference: examples to learn from.
        """
        return None

    def observe(self, seen: Seen, labels: jax.Array, classes: Classes) -> Mapping[str, jax.Array]:
        """Numbers [B, ...] of each example, on the devices; equal names have equal values."""

    def conclude(self, gathered: Gathered) -> Finding:
        """The metrics, on the primary process alone."""


def accuracy(right: np.ndarray) -> float:
    """The share of True; 0 of nothing."""
    return float(np.count_nonzero(right) / max(len(right), 1))


def titled(name: str, level: Level) -> str:
    """The name of a metric on the features of a level."""
    return name if level is None else f"level_{level}/{name}"


def require_distinct(name: str, metrics: Sequence[str]) -> None:
    """Refuses measures that give the same metric."""
    twice = [metric for number, metric in enumerate(metrics) if metric in metrics[:number]]
    if twice:
        raise failures.BadInput(
            f"{name} gives {twice[0]} twice; leave out a measure, or give the evaluations names "
            "of their own."
        )
