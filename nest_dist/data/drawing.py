"""How training draws examples: each once an epoch, by weight, evenly by class, several times."""

import dataclasses
import typing

import numpy as np

from nest_dist.base import checks, failures
from nest_dist.data import batch, index, mixture, sequences


def order(
    source: batch.Source,
    global_batch: int,
    seed: int | None,
    *,
    phases: mixture.Phases = (),
    balanced: bool = False,
    repeats: int = 1,
) -> sequences.Order:
    """The order of the examples of an open data set.

    Args:
        phases: weights of a mixture.
    """
    groups = source.row_groups
    if repeats > 1:
        shards = [
            it.virtual_shards for it in (source.mixture.row_groups if source.mixture else ()) if it
        ]
        shards += [groups.virtual_shards] if groups else []
        unit = f" x {shards[0]} virtual shards" if shards else ""
        checks.divides(
            "Run.global_batch",
            global_batch,
            repeats * (shards[0] if shards else 1),
            f"{repeats} of TrainingData.repeats{unit}",
            "set it to one of them, or change TrainingData.repeats",
        )
        inner = order(source, global_batch // repeats, seed, phases=phases, balanced=balanced)
        return Repeated(inner, repeats)
    if source.mixture is not None:
        if seed is None or not phases or balanced:
            where = "TrainingData.balanced" if balanced else "an evaluation"
            raise failures.BadInput(
                f"{where} has a Mixture, which is drawn by weight in training alone; give one "
                "source."
            )
        return mixture.Mixture(source.mixture, phases, global_batch, seed)
    if not balanced:
        return index.order(groups, len(source), global_batch, seed)
    labels = source.read_labels()
    if labels is None:
        raise failures.BadInput(
            "TrainingData.balanced is True, but the source does not tell one class of each "
            "picture; set it to False, or give ArrayRecord, Parquet, Tars or an ImageFolder with "
            "one."
        )
    assert seed is not None
    group_bytes = sum(groups.bytes) if groups else 0
    return Balanced(labels, len(source.class_names), global_batch, seed, group_bytes)


class Balanced(sequences.Sequences):
    """Each class as often as any other; each is shuffled and repeats by itself.

    The sequence consists of turns, in which each class with examples comes once, in random order.
    So in T turns an example of a class of n is drawn floor(T / n) or ceil(T / n) times.
    """

    def __init__(
        self,
        labels: np.ndarray,
        classes: int,
        global_batch: int,
        seed: int,
        group_bytes: int = 0,
    ) -> None:
        """Draws nothing yet.

        Args:
            classes: labels are below.
            group_bytes: of all row groups, any of which each batch may need.
        """
        self.global_batch, self.seed, self._group_bytes = global_batch, seed, group_bytes
        self._ids = np.argsort(labels, kind="stable").astype(np.int32)  # class after class
        counts = np.bincount(labels, minlength=classes)
        self._first = np.cumsum(counts) - counts
        self._counts = counts
        self._classes = np.flatnonzero(counts)
        self._epochs: dict[int, tuple[int, np.ndarray]] = {}  # of each class, the one in use

    def __len__(self) -> int:
        return len(self._ids)

    def __getstate__(self) -> dict[str, typing.Any]:
        return self.__dict__ | {"_epochs": {}}

    def bytes_in_hand(self, rows: np.ndarray) -> int:
        return self._group_bytes

    def sequence(self, shard: int, numbers: np.ndarray) -> sequences.Rows:
        turns, places = np.divmod(numbers, len(self._classes))
        drawn = []
        for turn, place in zip(turns.tolist(), places.tolist(), strict=True):
            assert self.seed is not None
            order = sequences.permutation(
                len(self._classes), self.seed, 0, turn, sequences.ORDER_KEY
            )
            label = int(self._classes[order[place]])
            drawn.append(self._ids[self._first[label] + self._number(label, turn)])
        return sequences.Rows(np.array(drawn, int))

    def _number(self, label: int, turn: int) -> int:
        """Which of its examples a class has in a turn."""
        epoch, number = divmod(turn, int(self._counts[label]))
        known, order = self._epochs.get(label, (-1, self._ids))
        if known != epoch:
            assert self.seed is not None
            key = label, epoch, sequences.ORDER_KEY + 1
            order = sequences.words(int(self._counts[label]), self.seed, *key).argsort(
                kind="stable"
            )
            self._epochs[label] = epoch, order.astype(np.int32)
        return int(order[number])


@dataclasses.dataclass(frozen=True)
class Repeated(sequences.Order):
    """Each example in several rows of a batch, which differ in their random numbers.

    Rows are repeated within their virtual shard; without row groups, the batch consists of as many
    equal parts with the same examples in the same order.

    Source: M. Berman et al., MultiGrain, arXiv 1902.05509, section 3.2.
    """

    inner: sequences.Order  # of a batch without repetitions
    repeats: int  # rows of an example

    @property
    def group_shards(self) -> int:  # type: ignore[override]
        return self.inner.group_shards

    @property
    def global_batch(self) -> int:  # type: ignore[override]
        return self.inner.global_batch * self.repeats

    @property
    def seed(self) -> int | None:  # type: ignore[override]
        return self.inner.seed

    def __len__(self) -> int:
        return len(self.inner)

    def at(self, step: int, rows: np.ndarray) -> sequences.Rows:
        distinct, which = np.unique(self._inner(rows), return_inverse=True)
        found = self.inner.at(step, distinct)
        return found._replace(examples=found.examples[which])

    def bytes_in_hand(self, rows: np.ndarray) -> int:
        return self.inner.bytes_in_hand(np.unique(self._inner(rows)))

    def remarks(self, rows: np.ndarray) -> list[str]:
        return self.inner.remarks(np.unique(self._inner(rows)))

    def metrics(self, step: int) -> dict[str, float]:
        return self.inner.metrics(step)

    def _inner(self, rows: np.ndarray) -> np.ndarray:
        """The rows of the inner batch with the same examples."""
        parts = self.inner.group_shards
        shard, offset = np.divmod(rows, self.global_batch // parts)
        length = self.inner.global_batch // parts
        return shard * length + offset % length
