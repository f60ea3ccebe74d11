"""What an order is: the example in each row of a batch; and random numbers that NumPy promises."""

import abc
import functools
import typing

import numpy as np

PADDING = -1  # a row without an example
ENDLESS_STEPS = 1 << 50
# A second word of the key that no position of an example has, so that no two uses of random numbers
# share a stream.
ORDER_KEY = 1 << 63


class Rows(typing.NamedTuple):
    """The examples of some rows of a batch."""

    examples: np.ndarray  # of each row, or `PADDING`
    groups: tuple[int, ...] = ()  # row groups that hold them; empty where the source has none
    ahead: tuple[int, ...] = ()  # row groups that are needed next


class Order(abc.ABC):
    """The examples of all batches.

    Attributes:
        seed: of endless, shuffled batches; None for each example once, as stored, then padding.
        group_shards: contiguous pieces of a batch that read row groups of their own; 1 without.
    """

    global_batch: int
    seed: int | None
    group_shards: int = 1

    @abc.abstractmethod
    def at(self, step: int, rows: np.ndarray) -> Rows:
        """The examples in rows of the batch after `step` steps; the rows ascend."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Examples of an epoch."""

    def steps(self) -> int:
        return -(-len(self) // self.global_batch) if self.seed is None else ENDLESS_STEPS

    def pieces(self, rows: np.ndarray, count: int) -> list[np.ndarray]:
        """The rows of a process, cut into at most `count` pieces that share no row group."""
        if self.group_shards == 1:
            return [rows]
        shards = rows // (self.global_batch // self.group_shards)
        cut = np.array_split(np.unique(shards), count)
        return [rows[np.isin(shards, some)] for some in cut if len(some)]

    def bytes_in_hand(self, rows: np.ndarray) -> int:
        """Memory of the row groups that some rows of a batch need."""
        return 0

    def remarks(self, rows: np.ndarray) -> list[str]:
        """Lines for the user on row groups that are fetched more than once an epoch."""
        return []

    def metrics(self, step: int) -> dict[str, float]:
        """What is told of the sources of a mixture, after `step` steps."""
        return {}


class Sequences(Order):
    """An endless sequence of examples for each of the `group_shards`."""

    @abc.abstractmethod
    def sequence(self, shard: int, numbers: np.ndarray) -> Rows:
        """The examples with some numbers, ascending, in the sequence of a shard."""

    def at(self, step: int, rows: np.ndarray) -> Rows:
        rows_per_shard = self.global_batch // self.group_shards
        shards, offsets = np.divmod(rows, rows_per_shard)
        found = Found(len(rows))
        for shard in np.unique(shards).tolist():
            own = np.flatnonzero(shards == shard)
            found.add(own, self.sequence(shard, step * rows_per_shard + offsets[own]))
        return found.rows()


class Found:
    """The rows of a batch, gathered from several sequences."""

    def __init__(self, count: int) -> None:
        self._examples = np.full(count, PADDING)
        self._groups: dict[int, None] = {}
        self._ahead: dict[int, None] = {}

    def add(self, positions: np.ndarray, found: Rows, example: int = 0, group: int = 0) -> None:
        """Fills in some rows, whose source begins at an `example` and a row `group`."""
        self._examples[positions] = np.where(
            found.examples == PADDING, PADDING, found.examples + example
        )
        self._groups |= dict.fromkeys(group + each for each in found.groups)
        self._ahead |= dict.fromkeys(group + each for each in found.ahead)

    def rows(self) -> Rows:
        return Rows(self._examples, tuple(self._groups), tuple(self._ahead))


@functools.lru_cache(maxsize=64)  # a window is read in many steps
def permutation(length: int, seed: int, *key: int) -> np.ndarray:
    """A random order of range(length), a function of the seed and a key of three numbers."""
    order = np.argsort(words(length, seed, *key), kind="stable")
    order.setflags(write=False)
    return order


def words(count: int, seed: int, *key: int) -> np.ndarray:
    """Random numbers uint64, a function of the seed and a key of three numbers.

    NumPy promises the words of its bit generators, but not what `Generator.permutation` does.
    """
    return np.random.Philox(
        key=np.array([seed, ORDER_KEY], np.uint64), counter=np.array([0, *key], np.uint64)
    ).random_raw(count)
