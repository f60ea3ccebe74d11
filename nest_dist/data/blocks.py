"""A shuffle of files that can only be read in order, and that can be taken up again anywhere.

In each epoch the files are put in a random order and dealt to the virtual shards in turn. A shard
reads its files one after the other, block by block, and gives the examples of a block in a random
order. Order and blocks are pure functions of seed, epoch and place, so the position of a shard is
a few numbers, and to go on there is to read one block again.
"""

import concurrent.futures
import dataclasses
import typing
from collections.abc import Callable

import numpy as np

from nest_dist.data import batch

# Keys that no position of an example reaches, so that no two uses of chance share one.
ORDER_KEY = 1 << 63
BLOCK_KEY = ORDER_KEY + 1


class Reader(typing.Protocol):
    """The examples of one file, in order."""

    def state(self) -> batch.Position:
        """What goes on here when it is given to the function that opens the file."""

    def take(self, count: int) -> list[batch.Example]:
        """The next examples; fewer than `count` only where the file ends."""

    def close(self) -> None:
        """Lets go of the file."""


# From the number of a file, and the state to go on from or None.
Open = Callable[[int, batch.Position | None], Reader]


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """What the virtual shards of a data set are made of.

    Attributes:
        open: opens a file by its number.
        files: how many there are, at least as many as virtual shards.
        virtual_shards: among which they are dealt.
        block: examples that are shuffled together, and at most read twice.
        seed: of the order, in [0, 2**63).
    """

    open: Open
    files: int
    virtual_shards: int
    block: int
    seed: int

    def files_of(self, shard: int, epoch: int) -> list[int]:
        """The numbers of the files that a shard reads in an epoch, in order."""
        order = _chance(self.seed, ORDER_KEY, epoch, 0, 0).permutation(self.files)
        return order[shard :: self.virtual_shards].tolist()


class Blocks:
    """The endless sequence of one virtual shard; a thread reads one block ahead."""

    def __init__(
        self, shuffled: Shuffled, shard: int, position: batch.Position | None = None
    ) -> None:
        """Begins, or goes on.

        Args:
            shuffled: what is read.
            shard: in [0, virtual_shards).
            position: as `position` gave it; None for the beginning.
        """
        self._shuffled = shuffled
        self._shard = shard
        start = position or {"epoch": 0, "place": 0, "row": 0, "given": 0, "state": None}
        # What the reading thread alone uses.
        self._epoch: int = start["epoch"]
        self._place: int = start["place"]
        self._row: int = start["row"]
        self._state: batch.Position | None = start["state"]
        self._file: Reader | None = None
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "block")
        self._now = _Block(start, [])
        self._given = 0
        self._skipped: int = start["given"]
        self._next = self._pool.submit(self._read)

    def __next__(self) -> batch.Example:
        while self._given == len(self._now.examples):
            self._now, self._given, self._skipped = self._next.result(), self._skipped, 0
            self._next = self._pool.submit(self._read)
        self._given += 1
        return self._now.examples[self._given - 1]

    def position(self) -> batch.Position:
        """Where to go on with the example that comes next."""
        return {**self._now.start, "given": self._given + self._skipped}

    def close(self) -> None:
        """Ends reading ahead."""
        self._pool.shutdown(cancel_futures=True)
        if self._file is not None:
            self._file.close()

    def _read(self) -> "_Block":
        """The block that comes next, of this file or of the one after it."""
        while True:
            files = self._shuffled.files_of(self._shard, self._epoch)
            number = files[self._place]
            if self._file is None:
                self._file = self._shuffled.open(number, self._state)
            epoch = self._epoch
            start = {
                "epoch": epoch,
                "place": self._place,
                "row": self._row,
                "state": self._file.state(),
            }
            examples = self._file.take(self._shuffled.block)
            if len(examples) == self._shuffled.block:
                row, self._row = self._row, self._row + len(examples)
            else:  # the file ends here
                self._file.close()
                self._file, self._state, row, self._row = None, None, self._row, 0
                self._epoch += self._place + 1 == len(files)
                self._place = (self._place + 1) % len(files)
            if examples:
                chance = _chance(self._shuffled.seed, BLOCK_KEY, epoch, number, row)
                order = chance.permutation(len(examples))
                return _Block(start, [examples[index] for index in order])


@dataclasses.dataclass(frozen=True)
class _Block:
    start: batch.Position
    examples: list[batch.Example]


def _chance(seed: int, key: int, *place: int) -> np.random.Generator:
    # The first word of the counter is the one that counts.
    return np.random.Generator(np.random.Philox(key=[seed, key], counter=[0, *place]))
