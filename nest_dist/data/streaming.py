"""Global batches from data that can only be read in order, for any number of processes the same.

A stream is cut into a fixed number V of virtual shards. Each supplies global_batch / V rows of
every global batch, in the order of the shards; a process reads the shards whose rows its devices
hold, and its workers divide those among themselves. Where to go on is known for each shard by
itself, so a run can resume with another number of processes.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import typing
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, dealing, loading, preparation, shard_readers

POSITIONS = "positions"
ROWS = "rows"


def train(
    deal: dealing.Deal,
    prepare: preparation.Preparation,
    replace: bool,
    how: loading.Loading,
    first_step: int,
    positions: batch.Positions,
) -> "Joined":
    """This process's rows of the global batches from `first_step` on.

    Args:
        deal: which rows those are.
        prepare: what is done to each example.
        replace: whether the next readable example stands in for an unreadable one.
        how: threads, workers and memory.
        first_step: of the run.
        positions: after the step before, by virtual shard; may be empty at step 0.
    Raises:
        BadInput: if the position of a shard is missing.
    """
    if first_step and (missing := [v for v in deal.own_shards if str(v) not in positions]):
        raise failures.BadInput(
            f"the checkpoint has no position for virtual shard {missing[0]} of the data; resume "
            "with the number of virtual shards that the run was started with."
        )
    readers = {
        shard: shard_readers.TrainingReader(
            deal, prepare, replace, shard, first_step, positions.get(str(shard))
        )
        for shard in deal.own_shards
    }
    return _load(deal, readers, how)


def evaluate(
    deal: dealing.Deal,
    prepare: preparation.Preparation,
    replace: bool,
    how: loading.Loading,
    image_shape: tuple[int, ...],
) -> "Joined":
    """This process's rows of all evaluation batches: each example once, the rest with weight 0.

    Args:
        deal: which rows those are.
        prepare: what is done to each example.
        replace: whether an unreadable example gets weight 0.
        how: threads, workers and memory.
        image_shape: that `prepare` makes.
    """
    readers = {
        shard: shard_readers.EvaluationReader(deal, prepare, replace, shard, image_shape)
        for shard in deal.own_shards
    }
    return _load(deal, readers, how)


def examples(deal: dealing.Deal, seed: int) -> Iterator[batch.Example]:
    """The endless sequence of all shards, as stored, from the beginning of the run."""
    readers = [deal.stream.train(shard, seed, None) for shard in deal.own_shards]
    try:
        while True:
            for reader in readers:
                for _ in range(deal.each):
                    yield next(reader)
    finally:
        for reader in readers:
            reader.close()


class Joined:
    """Batches put together from the parts that workers made."""

    def __init__(self, parts: loading.Iteration, parts_per_batch: int) -> None:
        self._parts = parts
        self._parts_per_batch = parts_per_batch
        self._positions: dict[str, batch.Position] = {}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        parts = [dict(part) for part in itertools.islice(self._parts, self._parts_per_batch)]
        if not parts:
            raise StopIteration
        for part in parts:
            self._positions.update(json.loads(part.pop(POSITIONS)))
        if len(parts) == 1:
            return {name: value for name, value in parts[0].items() if name != ROWS}
        order = np.argsort(np.concatenate([part.pop(ROWS) for part in parts]))
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def positions(self) -> batch.Positions:
        """By virtual shard, where to go on after the batch given last."""
        return dict(self._positions)

    def close(self) -> None:
        """Ends threads and workers."""
        self._parts.close()


class _Parts(grain.IterDataset):
    """The rows of some virtual shards of each batch; Grain gives each worker a slice of them."""

    def __init__(self, readers: Mapping[int, typing.Any], deal: dealing.Deal, threads: int) -> None:
        super().__init__()
        self._readers = dict(readers)
        self._deal = deal
        self._threads = threads

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Keeps a part of the shards; Grain calls it in the worker."""
        self._readers = {shard: self._readers[shard] for shard in list(self._readers)[sl]}

    def __iter__(self) -> grain.DatasetIterator:
        return _PartIterator(self._readers, self._deal, self._threads)


class _PartIterator(grain.DatasetIterator):
    def __init__(self, readers: Mapping[int, typing.Any], deal: dealing.Deal, threads: int) -> None:
        super().__init__()
        self._readers = readers
        self._deal = deal
        self._threads = threads
        self._pool: concurrent.futures.Executor | None = None

    def __next__(self) -> dict[str, typing.Any]:
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self._threads)
            for reader in self._readers.values():
                reader.open()  # each begins to read; none waits for another's storage
        made = [each for reader in self._readers.values() for each in reader.read(self._pool)]
        part: dict[str, typing.Any] = preparation.stacked(made, len(made))
        part[ROWS] = np.concatenate([self._deal.rows_of(shard) for shard in self._readers])
        part[POSITIONS] = json.dumps(
            {str(shard): reader.position() for shard, reader in self._readers.items()}
        )
        return part

    def get_state(self) -> dict[str, typing.Any]:
        # Positions travel with the batches; Grain asks for a state after each and never uses it.
        return {}

    # Grain's interface has it; nothing here asks an iterator to go elsewhere.
    def set_state(self, state: dict[str, typing.Any]) -> None:
        raise NotImplementedError("a stream goes on from the positions it was opened with")

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        super().close()


def _load(deal: dealing.Deal, readers: Mapping[int, typing.Any], how: loading.Loading) -> Joined:
    needed = len(readers) * deal.stream.shard_bytes
    if needed > how.read_ahead_bytes:
        raise failures.BadInput(
            f"{how.name}.read_ahead_bytes is {how.read_ahead_bytes}, {len(readers)} virtual shards "
            f"of a process keep {needed} bytes in memory; raise it to that, lower the block of the "
            "source, or use more processes."
        )
    workers = min(how.workers, len(readers))
    how = dataclasses.replace(how, workers=workers)
    dataset: grain.IterDataset = _Parts(readers, deal, how.threads)
    if not workers:
        # One batch is in the making while another waits; blocks of examples are read ahead anyway.
        dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
    return Joined(how.over_workers(dataset, 1), max(1, workers))
