"""The example in each row of a batch: pure functions of the step, so that no position is saved.

Row r of the batch of step s is position s * global_batch + r of one endless sequence, and an order
says which example stands at a position. A source fetches examples by number and knows no order.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable

import grain
import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch, sequences

# From this many on, little is fetched twice at the cuts between shards.
GROUPS_PER_SHARD = 10


def order(
    groups: batch.RowGroups | None, examples: int, global_batch: int, seed: int | None
) -> sequences.Sequences:
    """The order of a source that is drawn evenly.

    Raises:
        BadInput: if the batch is no multiple of the virtual shards.
    """
    if groups is None:
        return OneByOne(examples, global_batch, seed)
    return WindowShuffle(groups, global_batch, seed)


@dataclasses.dataclass(frozen=True)
class OneByOne(sequences.Sequences):
    """All examples in each epoch, each time in another order, by Grain's shuffle."""

    examples: int
    global_batch: int
    seed: int | None

    def __len__(self) -> int:
        return self.examples

    def sequence(self, shard: int, numbers: np.ndarray) -> sequences.Rows:
        if self.seed is None:
            return sequences.Rows(np.where(numbers < self.examples, numbers, sequences.PADDING))
        return sequences.Rows(np.array([self._shuffled[number] for number in numbers.tolist()]))

    @functools.cached_property
    def _shuffled(self) -> grain.MapDataset:
        return grain.MapDataset.range(self.examples).seed(self.seed).shuffle().repeat()


class _Window(typing.NamedTuple):
    """Examples that a virtual shard shuffles together, in their order."""

    start: int  # its first line, see `WindowShuffle`
    stop: int
    groups: tuple[int, ...]
    examples: np.ndarray


@dataclasses.dataclass(frozen=True)
class WindowShuffle(sequences.Sequences):
    """Row groups in random order, and the examples of a few of them shuffled together.

    In each epoch the row groups get a random order, and the sequence of their examples is cut into
    equal pieces, one a shard: virtual shard v reads piece v, in the next epoch piece v + 1, and so
    on. The line of an example is its number along all pieces of all epochs. So each example comes
    once an epoch, shards stay within one example of each other, and a row group is fetched by one
    shard, or by two where a cut goes through it.
    """

    groups: batch.RowGroups  # of the source, of whose virtual shards the batch is a multiple
    global_batch: int
    seed: int | None

    def __post_init__(self) -> None:
        shards = self.groups.virtual_shards
        if shards > len(self):
            raise failures.BadInput(
                f"virtual_shards is {shards}, the split has {len(self)} examples; set it to "
                f"{len(self)} or less."
            )
        if remainder := self.global_batch % shards:
            raise failures.BadInput(
                f"Run.global_batch is {self.global_batch}, not a multiple of {shards} virtual "
                f"shards; set it to {self.global_batch - remainder + shards} or change "
                "virtual_shards."
            )

    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    def group_shards(self) -> int:  # type: ignore[override]
        return self.groups.virtual_shards

    @property
    def rows_per_shard(self) -> int:
        """sequences.Rows of a batch that one virtual shard supplies."""
        return self.global_batch // self.groups.virtual_shards

    def bytes_in_hand(self, rows: np.ndarray) -> int:
        # Of the windows that are being read, and of those ahead.
        lengths, window = self.groups.lengths, self.groups.window
        typical = len(self) * min(window, len(lengths)) // len(lengths)
        windows = 2 + (self.rows_per_shard - 1) // typical
        shards = len(np.unique(rows // self.rows_per_shard))
        return shards * windows * sum(sorted(self.groups.bytes)[-window:])

    def remarks(self, rows: np.ndarray) -> list[str]:
        # The process with the first row speaks for all.
        shards, count, remarks = self.groups.virtual_shards, len(self.groups.lengths), []
        if rows[0]:
            return []
        if 1 < shards > count // GROUPS_PER_SHARD:
            most = max(1, count // GROUPS_PER_SHARD)
            fits = max(fit for fit in range(1, most + 1) if self.global_batch % fit == 0)
            remarks.append(
                f"row groups are fetched {1 + (shards - 1) / count:.1f} times an epoch, since "
                f"{shards} virtual shards share {count} of them; virtual_shards = {fits} fits."
            )
        cuts = range(len(rows), self.global_batch, len(rows))
        if shared := sum(cut % self.rows_per_shard > 0 for cut in cuts):
            divisors = [str(fit) for fit in range(1, shards + 1) if shards % fit == 0]
            remarks.append(
                f"row groups are fetched {1 + shared / shards:.1f} times an epoch, since "
                f"{len(cuts) + 1} processes do not divide {shards} virtual shards; "
                f"{', '.join(divisors)} processes do."
            )
        return remarks

    def sequence(self, shard: int, numbers: np.ndarray) -> sequences.Rows:
        examples = np.full(len(numbers), sequences.PADDING)
        groups: list[int] = []
        ahead: tuple[int, ...] = ()
        first, end = self._begin(shard), self._begin(shard + 1)
        lines = first + numbers if self.seed is not None else first + numbers[numbers < end - first]
        done = 0
        while done < len(lines):
            window = self._window(shard, int(lines[done]))
            stop = int(np.searchsorted(lines, window.stop))
            examples[done:stop] = window.examples[lines[done:stop] - window.start]
            groups += window.groups
            done = stop
            if done == len(lines) and (self.seed is not None or window.stop < end):
                ahead = self._window(shard, window.stop).groups
        return sequences.Rows(examples, tuple(dict.fromkeys(groups)), ahead)

    def _begin(self, piece: int) -> int:
        """Where a piece begins; later pieces are those of later epochs."""
        return piece * len(self) // self.groups.virtual_shards

    def _window(self, shard: int, line: int) -> _Window:
        """The window of a shard that holds a line."""
        piece = ((line + 1) * self.groups.virtual_shards - 1) // len(self)
        epoch, base = piece - shard, line - line % len(self)
        low, high = self._begin(piece) - base, self._begin(piece + 1) - base
        order, ends = self._epochs(epoch)
        # Groups of the piece's first example, of this one, and of its last.
        first, group, last = np.searchsorted(ends, (low, line - base, high - 1), side="right")
        number = int(group - first) // self.groups.window
        begin = int(first) + number * self.groups.window
        members = order[begin : min(begin + self.groups.window, int(last) + 1)]
        stored = np.concatenate([np.arange(*self._bounds[each : each + 2]) for each in members])
        before = int(ends[begin - 1]) if begin else 0
        start, stop = max(low, before), min(high, before + len(stored))
        examples = stored[start - before : stop - before]
        if self.seed is not None:
            examples = examples[
                sequences.permutation(len(examples), self.seed, 1 + epoch, shard, number)
            ]
        return _Window(base + start, base + stop, tuple(members.tolist()), examples)

    @functools.cached_property
    def _epochs(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        """The order of the row groups in an epoch, and where each ends; of those in use."""
        return functools.lru_cache(maxsize=4)(self._epoch)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.arange(len(self.groups.lengths))
        if self.seed is not None:
            order = sequences.permutation(len(order), self.seed, 0, epoch, 0)
        return order, np.cumsum(np.diff(self._bounds)[order])

    def __getstate__(self) -> dict[str, typing.Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        """The first example of each row group, and the number of all."""
        return np.cumsum([0, *self.groups.lengths])
