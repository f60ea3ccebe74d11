"""One virtual shard of a stream, read and prepared row by row."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, dealing, preparation


@dataclasses.dataclass
class TrainingReader:
    """Prepared rows of one virtual shard, step after step."""

    deal: dealing.Deal
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
class EvaluationReader:
    """Prepared rows of one virtual shard, until the longest shard is through."""

    deal: dealing.Deal
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


def _number_of(example: batch.Example) -> int:
    """A number for an example that has no index."""
    digest = hashlib.sha256(str(example.get("key")).encode()).digest()
    return int.from_bytes(digest[:7], "big")
