"""Global batches from data that can only be read in order, for any number of processes the same.

A stream is cut into a fixed number V of virtual shards. Each supplies global_batch / V rows of
every global batch, in the order of the shards; a process reads the shards whose rows its devices
hold, and its workers divide those among themselves. Where to go on is known for each shard by
itself, so a run can resume with another number of processes.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import typing
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, loading, preparation

POSITIONS = "positions"
ROWS = "rows"


@dataclasses.dataclass(frozen=True)
class Deal:
    """Which rows come from which virtual shard.

    Attributes:
        stream: what is dealt.
        global_batch: rows over all processes.
        rows: those that this process's devices hold.
    Raises:
        BadInput: if the batch cannot be dealt evenly, or a process would need part of a shard.
    """

    stream: batch.Stream
    global_batch: int
    rows: np.ndarray

    def __post_init__(self) -> None:
        shards = len(self.stream.shard_lengths)
        if remainder := self.global_batch % shards:
            fits = self.global_batch - remainder + shards
            raise failures.BadInput(
                f"Run.global_batch is {self.global_batch}, not a multiple of the stream's {shards} "
                f"virtual shards; set it to {fits} or change virtual_shards."
            )
        whole = np.concatenate([self.rows_of(shard) for shard in self.own_shards])
        if not np.array_equal(whole, self.rows):
            raise failures.BadInput(
                f"a process holds {len(self.rows)} rows of the batch, each of {shards} virtual "
                f"shards supplies {self.each}, all to one process; set virtual_shards to a "
                "multiple of the processes."
            )

    @property
    def each(self) -> int:
        """Rows that one virtual shard supplies to each global batch."""
        return self.global_batch // len(self.stream.shard_lengths)

    @property
    def own_shards(self) -> list[int]:
        """The virtual shards that this process reads."""
        return np.unique(self.rows // self.each).tolist()

    def rows_of(self, shard: int) -> np.ndarray:
        """The rows of the global batch that a virtual shard supplies."""
        return np.arange(shard * self.each, (shard + 1) * self.each)


def train(
    deal: Deal,
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
        shard: _TrainingReader(deal, prepare, replace, shard, first_step, positions.get(str(shard)))
        for shard in deal.own_shards
    }
    return _load(deal, readers, how)


def evaluate(
    deal: Deal,
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
        shard: _EvaluationReader(deal, prepare, replace, shard, image_shape)
        for shard in deal.own_shards
    }
    return _load(deal, readers, how)


def examples(deal: Deal, seed: int) -> Iterator[batch.Example]:
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


@dataclasses.dataclass
class _TrainingReader:
    """Prepared rows of one virtual shard, step after step."""

    deal: Deal
    prepare: preparation.Preparation
    replace: bool
    shard: int
    step: int
    start: batch.Position | None
    source: batch.ShardReader | None = None

    def open(self) -> None:
        self.source = self.deal.stream.train(self.shard, self.prepare.seed, self.start)

    def read(self, pool: concurrent.futures.Executor) -> list[batch.Example]:
        assert self.source is not None
        first = self.step * self.deal.global_batch
        places = [first + int(row) for row in self.deal.rows_of(self.shard)]
        examples = [next(self.source) for _ in places]
        results = list(pool.map(self._try, examples, places))
        self.step += 1
        return [self._made(*each) for each in zip(results, examples, places, strict=True)]

    def position(self) -> batch.Position:
        assert self.source is not None
        return self.source.position()

    def close(self) -> None:
        if self.source is not None:
            self.source.close()

    def _try(self, example: batch.Example, place: int) -> batch.Example | batch.Unreadable:
        try:
            return self.prepare(example, place)
        except batch.Unreadable as reason:
            return reason

    def _made(
        self, result: batch.Example | batch.Unreadable, example: batch.Example, place: int
    ) -> batch.Example:
        mark = preparation.NONE
        for _ in range(preparation.REPLACEMENTS):
            if not isinstance(result, batch.Unreadable):
                return {**result, preparation.UNREADABLE: np.int64(mark)}
            if not self.replace:
                raise failures.BadInput(preparation.refusal(place, example, result))
            mark = _number_of(example)
            assert self.source is not None
            example = next(self.source)
            result = self._try(example, place)
        raise failures.BadInput(
            f"{preparation.REPLACEMENTS} examples of virtual shard {self.shard} in a row are "
            "unreadable; the data set is damaged, make it anew."
        )


@dataclasses.dataclass
class _EvaluationReader:
    """Prepared rows of one virtual shard, until the longest shard is through."""

    deal: Deal
    prepare: preparation.Preparation
    replace: bool
    shard: int
    image_shape: tuple[int, ...]
    step: int = 0
    source: Iterator[batch.Example] | None = None

    def open(self) -> None:
        self.source = self.deal.stream.evaluate(self.shard)

    def read(self, pool: concurrent.futures.Executor) -> list[batch.Example]:
        if self.step == -(-max(self.deal.stream.shard_lengths) // self.deal.each):
            raise StopIteration
        assert self.source is not None
        self.step += 1
        made = list(pool.map(self._prepared, itertools.islice(self.source, self.deal.each)))
        blank = {
            "image": np.zeros(self.image_shape, np.uint8),
            "label": np.int32(0),
            preparation.UNREADABLE: np.int64(preparation.NONE),
            "weight": np.float32(0),
        }
        return [blank | each for each in made] + [blank] * (self.deal.each - len(made))

    def position(self) -> batch.Position:
        return {}

    def close(self) -> None:
        pass

    def _prepared(self, example: batch.Example) -> batch.Example:
        try:
            prepared = self.prepare(example, 0)
        except batch.Unreadable as reason:
            if not self.replace:
                raise failures.BadInput(preparation.refusal(0, example, reason)) from None
            return {preparation.UNREADABLE: np.int64(_number_of(example))}
        mark = np.int64(preparation.NONE)
        return {**prepared, preparation.UNREADABLE: mark, "weight": np.float32(1)}


class _Parts(grain.IterDataset):
    """The rows of some virtual shards of each batch; Grain gives each worker a slice of them."""

    def __init__(self, readers: Mapping[int, typing.Any], deal: Deal, threads: int) -> None:
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
    def __init__(self, readers: Mapping[int, typing.Any], deal: Deal, threads: int) -> None:
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
        part: dict[str, typing.Any] = {
            name: np.stack([each[name] for each in made]) for name in made[0]
        }
        part[ROWS] = np.concatenate([self._deal.rows_of(shard) for shard in self._readers])
        part[POSITIONS] = json.dumps(
            {str(shard): reader.position() for shard, reader in self._readers.items()}
        )
        return part

    def get_state(self) -> dict[str, typing.Any]:
        # Positions travel with the batches; Grain asks for a state after each and never uses it.
        return {}

    def set_state(self, state: dict[str, typing.Any]) -> None:
        raise NotImplementedError("a stream goes on from the positions it was opened with")

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        super().close()


def _load(deal: Deal, readers: Mapping[int, typing.Any], how: loading.Loading) -> Joined:
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


def _number_of(example: batch.Example) -> int:
    """A number for an example that has no index."""
    digest = hashlib.sha256(str(example.get("key")).encode()).digest()
    return int.from_bytes(digest[:7], "big")
