"""The Grain chain: the global batch of a step as a pure function of configuration, seed and step.

The examples of a run form one endless sequence: the data set, reshuffled for each epoch. Row r of
the global batch of step s is example s * global_batch + r of that sequence, and its randomness is
keyed by the seed and that number. So a process reads just the rows that its devices hold, resuming
is starting at another step, and neither the number of processes, workers or threads nor what ran
before can change a batch. Data that can only be read in order goes through `streaming` instead.
"""

import dataclasses
import itertools
import typing
from collections.abc import Iterator

import gin
import grain
import numpy as np

from nest_dist.base import checks, failures
from nest_dist.data import batch, dealing, loading, preparation, streaming

READ_AHEAD_BYTES = 1 << 30


class Examples(typing.Protocol):
    """Prepared examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> batch.Example: ...


@gin.register
@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Batches for training: shuffled anew each epoch, without end.

    Attributes:
        source: the data set.
        transforms: applied to each image in turn.
        threads: that prepare batches, in each process or in each of its workers.
        workers: processes that prepare batches for each process; 0 uses threads only.
        read_ahead_bytes: that batches may take up in the memory of each process and its workers.
        unreadable_share: of the examples that may be unreadable and are replaced by others; 0 stops
            at the first.
    """

    source: typing.Any
    transforms: tuple[typing.Any, ...]
    threads: int = 2
    workers: int = 0
    read_ahead_bytes: int = READ_AHEAD_BYTES
    unreadable_share: float = 0.0

    def __post_init__(self) -> None:
        checks.types(self)
        _check(self)

    def batches(
        self,
        source: batch.Source | batch.Stream,
        *,
        seed: int,
        global_batch: int,
        rows: np.ndarray,
        first_step: int,
        positions: batch.Positions | None = None,
    ) -> batch.Batches:
        """This process's rows of the global batches of `first_step` and all that follow.

        Args:
            source: `self.source`, opened.
            seed: in [0, 2**32).
            global_batch: rows over all processes.
            rows: those that this process's devices hold.
            first_step: in [0, 2**40).
            positions: of a stream, by virtual shard, as `Batches.positions` gave them after the
                step before, gathered from all processes.
        Raises:
            BadInput: if the data set is smaller than one batch.
        """
        if len(source) < global_batch:
            raise failures.BadInput(
                f"the training split has {len(source)} examples, fewer than one batch of "
                f"{global_batch}; lower Run.global_batch."
            )
        prepare = preparation.Preparation(self.transforms, seed, len(source.class_names))
        how = loading.Loading("TrainingData", self.threads, self.workers, self.read_ahead_bytes)
        replace = self.unreadable_share > 0
        found: typing.Any
        if batch.is_stream(source):
            deal = dealing.Deal(typing.cast(batch.Stream, source), global_batch, rows)
            found = streaming.train(deal, prepare, replace, how, first_step, positions or {})
        else:
            order = _order(len(source), seed)
            indexed = preparation.Indexed(typing.cast(batch.Source, source), prepare, replace)
            examples = order.map_with_index(indexed)
            found = _load(examples, global_batch, rows, how, first_step)
        return preparation.Counted(found, len(source), self.unreadable_share, "TrainingData")

    def examples(
        self, source: batch.Source | batch.Stream, *, seed: int, global_batch: int, step: int
    ) -> Iterator[batch.Example]:
        """The examples of the batch that follows `step` steps and of all later ones, as stored.

        A stream is read from its beginning.
        """
        if batch.is_stream(source):
            deal = dealing.Deal(
                typing.cast(batch.Stream, source), global_batch, np.arange(global_batch)
            )
            return itertools.islice(streaming.examples(deal, seed), step * global_batch, None)
        indexed = typing.cast(batch.Source, source)
        order = _order(len(source), seed)
        places = itertools.count(step * global_batch)
        return (indexed[int(order[place])] for place in places)

    def image_shape(self, source: batch.Source | batch.Stream) -> tuple[int, ...]:
        """Height, width and channels of what the transforms make of the first readable example."""
        return _image_shape(self, source)


@gin.register
@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Batches for evaluation: each example once, in order; the last batch padded, weight 0.

    Attributes:
        source: the data set.
        transforms: applied to each image in turn; they get a fixed generator.
        threads: that prepare batches, in each process or in each of its workers.
        workers: processes that prepare batches for each process; 0 uses threads only.
        read_ahead_bytes: that batches may take up in the memory of each process and its workers.
        unreadable_share: of the examples that may be unreadable and get weight 0; 0 stops at the
            first.
    """

    source: typing.Any
    transforms: tuple[typing.Any, ...]
    threads: int = 2
    workers: int = 0
    read_ahead_bytes: int = READ_AHEAD_BYTES
    unreadable_share: float = 0.0

    def __post_init__(self) -> None:
        checks.types(self)
        _check(self)

    def batches(
        self, source: batch.Source | batch.Stream, *, global_batch: int, rows: np.ndarray
    ) -> batch.Batches:
        """This process's rows of every evaluation batch.

        Args:
            source: `self.source`, opened.
            global_batch: rows over all processes.
            rows: those that this process's devices hold.
        """
        prepare = preparation.Preparation(self.transforms, 0, len(source.class_names))
        how = loading.Loading("EvaluationData", self.threads, self.workers, self.read_ahead_bytes)
        replace = self.unreadable_share > 0
        found: typing.Any
        if batch.is_stream(source):
            deal = dealing.Deal(typing.cast(batch.Stream, source), global_batch, rows)
            shape = self.image_shape(source)
            found = streaming.evaluate(deal, prepare, replace, how, shape)
        else:
            indexed = preparation.Indexed(typing.cast(batch.Source, source), prepare, replace)
            examples = grain.MapDataset.range(len(source)).map_with_index(indexed)
            padded = _Padded(examples, -(-len(source) // global_batch) * global_batch)
            found = _load(padded, global_batch, rows, how, 0)
        return preparation.Counted(found, len(source), self.unreadable_share, "EvaluationData")

    def image_shape(self, source: batch.Source | batch.Stream) -> tuple[int, ...]:
        """Height, width and channels of what the transforms make of the first readable example."""
        return _image_shape(self, source)


def require_dealable(
    source: batch.Source | batch.Stream, global_batch: int, rows: np.ndarray
) -> None:
    """Checks that each process can have its rows of a batch; any can, unless it is a stream.

    Raises:
        BadInput: if the virtual shards of a stream do not fit the batch or the processes.
    """
    if batch.is_stream(source):
        dealing.Deal(typing.cast(batch.Stream, source), global_batch, rows)


class _Steps:
    """By step, the given rows of its global batch."""

    def __init__(self, examples: Examples, global_batch: int, rows: np.ndarray) -> None:
        self._examples = examples
        self._global_batch = global_batch
        self._rows = rows

    def __len__(self) -> int:
        return len(self._examples) // self._global_batch

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        places = step * self._global_batch + self._rows
        return preparation.stacked((self._examples[int(place)] for place in places), len(places))


class _Padded:
    """Every example once with weight 1, then repetitions of the first with weight 0."""

    def __init__(self, examples: Examples, length: int) -> None:
        self._examples = examples
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> batch.Example:
        example = self._examples[index if index < len(self._examples) else 0]
        real = index < len(self._examples) and example[preparation.UNREADABLE] == preparation.NONE
        return {**example, "weight": np.float32(real)}


def _order(length: int, seed: int) -> grain.MapDataset:
    """Indices of the endless sequence: all of them in each epoch, each time in another order."""
    return grain.MapDataset.range(length).seed(seed).shuffle().repeat()


def _check(data: TrainingData | EvaluationData) -> None:
    name = type(data).__name__
    checks.in_range(f"{name}.threads", data.threads, 1)
    checks.in_range(f"{name}.workers", data.workers, 0)
    checks.in_range(f"{name}.read_ahead_bytes", data.read_ahead_bytes, 1)
    checks.in_range(f"{name}.unreadable_share", data.unreadable_share, 0, 1)


def _image_shape(
    data: TrainingData | EvaluationData, source: batch.Source | batch.Stream
) -> tuple[int, ...]:
    prepare = preparation.Preparation(data.transforms, 0, len(source.class_names))
    examples: typing.Iterable[batch.Example]
    if batch.is_stream(source):
        examples = typing.cast(batch.Stream, source).evaluate(0)
    else:
        indexed = typing.cast(batch.Source, source)
        examples = (indexed[index] for index in range(len(indexed)))
    for example in examples:
        try:
            return prepare(example, 0)["image"].shape
        except batch.Unreadable as reason:
            if not data.unreadable_share:
                raise failures.BadInput(preparation.refusal(0, example, reason)) from None
    raise failures.BadInput("no example of a split is readable; make the data set anew.")


def _load(
    examples: Examples, global_batch: int, rows: np.ndarray, how: loading.Loading, first_step: int
) -> loading.Iteration:
    """Batches of prepared examples, from a step on."""
    one = sum(value.nbytes for value in examples[int(rows[0])].values())
    steps = grain.MapDataset.source(_Steps(examples, global_batch, rows))
    return how.batches(steps[first_step:], one * len(rows))
