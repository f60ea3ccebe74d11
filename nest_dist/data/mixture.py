"""Several sources by weight: which of them a row of a batch is drawn from, and its example there.

The weights make a turn: `sum(weights)` draws, of which each source has its weight. A virtual shard
goes through it again and again, from a beginning of its own. So the shares are kept in the sequence
of each shard, and over the shards in each batch.

Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980.
"""

import dataclasses
import fractions
import functools
import heapq
import itertools
import math
import typing
from collections.abc import Sequence

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, index, sequences

# Pairs of a first step and the weights from there on; whole numbers without a common divisor.
Phases: typing.TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """The sources of one turn, in their order."""

    sources: np.ndarray  # the number of the source of each draw [D]
    weights: tuple[int, ...]  # draws of each source in a turn

    @functools.cached_property
    def _draws(self) -> list[np.ndarray]:
        """Where in the turn each source is drawn."""
        order = np.argsort(self.sources, kind="stable")
        return np.split(order, np.cumsum(self.weights)[:-1])

    def count(self, source: int, draws: np.ndarray) -> np.ndarray:
        """How often a source is among the first draws of an endless sequence of turns."""
        turns, rest = np.divmod(draws, len(self.sources))
        inside = np.searchsorted(self._draws[source], rest)
        return turns * self.weights[source] + inside


@functools.lru_cache(maxsize=16)
def turn(weights: tuple[int, ...]) -> Turn:
    """The turn of some weights: after each draw, each source is within one of its share.

    Draw k of a source may come once the share has passed k, and before it is a whole draw late. The
    one that would be late first comes first.
    """
    total = sum(weights)
    slack = max(1, 2 * sum(weight > 0 for weight in weights) - 2)

    def due_from(source: int, taken: int) -> int:
        """The first draw at which the source is behind by 1 / slack of a draw."""
        # slack * (weight * (draw + 1) - total * taken) >= total
        return -(-(total * (slack * taken + 1)) // (slack * weights[source])) - 1

    def urgency(source: int, taken: int) -> tuple[float, int]:
        return (slack * (taken + 1) - 1) / weights[source], source

    waiting = [(due_from(it, 0), it, 0) for it, weight in enumerate(weights) if weight]
    heapq.heapify(waiting)
    due: list[tuple[tuple[float, int], int]] = []
    sources = np.empty(total, np.int32)
    for draw in range(total):
        while waiting and waiting[0][0] <= draw:
            _, source, taken = heapq.heappop(waiting)
            heapq.heappush(due, (urgency(source, taken), taken))
        (_, source), taken = heapq.heappop(due)
        sources[draw] = source
        heapq.heappush(waiting, (due_from(source, taken + 1), source, taken + 1))
    return Turn(sources, weights)


@dataclasses.dataclass(frozen=True, eq=False)
class _Phase:
    """Steps with the same weights, and what was drawn before them."""

    step: int
    turn: Turn
    before: np.ndarray  # draws [sources, shards]


class Mixture(sequences.Order):
    """Examples of several sources; each is shuffled and repeats by itself."""

    def __init__(
        self, sources: batch.Mixture, phases: Phases, global_batch: int, seed: int
    ) -> None:
        """Draws nothing yet.

        Args:
            phases: their weights; the first step is 0, and steps ascend.
        Raises:
            BadInput: if sources have other virtual shards than others, or these do not fit.
        """
        self.global_batch, self.seed, self._sources = global_batch, seed, sources
        shards = {
            it.virtual_shards: name
            for it, name in zip(sources.row_groups, sources.names, strict=True)
            if it
        }
        if len(shards) > 1:
            told = " and ".join(f"{name!r} {count}" for count, name in shards.items())
            raise failures.BadInput(
                f"virtual_shards differ in the Mixture: {told}; give all its sources the same."
            )
        self.group_shards = next(iter(shards), 1)
        self._shards = next(iter(shards), global_batch)  # where all are read one by one, as rows
        self._rows_per_shard = global_batch // self._shards
        self._orders = [
            index.order(groups, length, global_batch, _seed(seed, number))
            for number, (groups, length) in enumerate(
                zip(sources.row_groups, sources.lengths, strict=True)
            )
        ]
        self._examples = [0, *itertools.accumulate(sources.lengths)]  # the first of each source
        counts = [len(it.lengths) if it else 0 for it in sources.row_groups]
        self._groups = [0, *itertools.accumulate(counts)]
        self._phases: list[_Phase] = []
        for step, weights in phases:
            before = self._drawn(step) if self._phases else np.zeros((len(weights), 1), int)
            self._phases.append(_Phase(step, turn(weights), before))

    def __len__(self) -> int:
        return sum(self._sources.lengths)

    def at(self, step: int, rows: np.ndarray) -> sequences.Rows:
        phase = self._phase(step)
        shards, offsets = np.divmod(np.arange(self.global_batch), self._rows_per_shard)
        draws = (step - phase.step) * self._rows_per_shard + offsets
        begin = self._begin(phase.turn)
        drawn = phase.turn.sources[(begin[shards] + draws) % len(phase.turn.sources)]
        before = self._drawn(step)
        found = sequences.Found(len(rows))
        for source in np.unique(drawn[rows]).tolist():
            order, first = self._orders[source], self._examples[source]
            mine = drawn == source
            own = np.flatnonzero(mine[rows])
            if order.group_shards == 1:  # draws are counted over the batch
                numbers = before[source].sum() + np.cumsum(mine)[rows[own]] - 1
                found.add(own, order.sequence(0, numbers), first, self._groups[source])
                continue
            counted = np.cumsum(mine) - mine
            counted -= counted[shards * self._rows_per_shard]  # within the shard
            numbers, its_shards = before[source, shards] + counted, shards[rows[own]]
            for shard in np.unique(its_shards).tolist():
                at = own[its_shards == shard]
                part = order.sequence(shard, numbers[rows[at]])
                found.add(at, part, first, self._groups[source])
        return found.rows()

    def bytes_in_hand(self, rows: np.ndarray) -> int:
        return sum(order.bytes_in_hand(rows) for order in self._orders)

    def remarks(self, rows: np.ndarray) -> list[str]:
        told = zip(self._sources.names, self._orders, strict=True)
        return [f"{name}: {remark}" for name, order in told for remark in order.remarks(rows)]

    def metrics(self, step: int) -> dict[str, float]:
        named = zip(self._sources.names, self._sources.lengths, self._drawn(step), strict=True)
        told: dict[str, float] = {}
        for name, length, drawn in named:
            examples = int(drawn.sum())
            told |= {f"data/{name}/examples": examples, f"data/{name}/epochs": examples / length}
        return told

    def _phase(self, step: int) -> _Phase:
        return next(phase for phase in reversed(self._phases) if phase.step <= step)

    def _begin(self, of: Turn) -> np.ndarray:
        """Where in the turn each virtual shard begins."""
        return np.arange(self._shards) * len(of.sources) // self._shards

    def _drawn(self, step: int) -> np.ndarray:
        """How often each virtual shard has drawn each source before a step [sources, shards]."""
        phase = self._phase(step)
        begin = self._begin(phase.turn)
        end = begin + (step - phase.step) * self._rows_per_shard
        count = phase.turn.count
        sources = range(len(self._orders))
        return phase.before + np.stack([count(it, end) - count(it, begin) for it in sources])


def _seed(seed: int, source: int) -> int:
    """Another one for each source, in [0, 2**32)."""
    return int(sequences.words(1, seed, 0, 0, 1 + source)[0] >> 32)


def reduced(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers with the same ratios, of numbers as they are written."""
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    common = math.lcm(*(it.denominator for it in exact))
    whole = [int(it * common) for it in exact]
    return tuple(it // math.gcd(*whole) for it in whole)
