"""Which rows of each global batch come from which virtual shard of a stream."""

import dataclasses

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch


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
