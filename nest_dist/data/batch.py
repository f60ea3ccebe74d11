"""The contract between sources, transforms and batches."""

import typing
from collections.abc import Iterator, Mapping

import numpy as np

# One picture with its class: "image" uint8 [H, W, C] or the bytes of an encoded picture, "label" an
# integer in [0, classes), and "key", by which a person finds the picture again.
Example = dict[str, typing.Any]

# "image" uint8 [B, H, W, C] and "label" int32 [B]; when evaluating also "weight" float32 [B], which
# is 1 for an example and 0 for the padding that fills the last batch.
Batch = Mapping[str, np.ndarray]

# Where a virtual shard of a stream goes on: what JSON can hold; and those of several, by shard.
Position = dict[str, typing.Any]
Positions = Mapping[str, Position]


class Unreadable(Exception):
    """An example that cannot be read or decoded; the text says why, in a few words."""


class Source(typing.Protocol):
    """A data set that is open: examples by index, the same for every process.

    It goes to worker processes, so it can be pickled.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the content does; a run refuses to go on with other data."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """One example.

        Raises:
            Unreadable: if what is stored is damaged.
        """


class ShardReader(typing.Protocol):
    """The endless sequence of one virtual shard."""

    def __next__(self) -> Example: ...

    def position(self) -> Position:
        """What `Stream.train` takes to go on with the example that comes next."""

    def close(self) -> None:
        """Ends reading ahead."""


class Stream(typing.Protocol):
    """A data set that can only be read in order, cut into a fixed number of virtual shards.

    It goes to worker processes, so it can be pickled.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """As of `Source`."""

    @property
    def fingerprint(self) -> str:
        """As of `Source`."""

    @property
    def shard_lengths(self) -> tuple[int, ...]:
        """Examples of each virtual shard when evaluating."""

    @property
    def shard_bytes(self) -> int:
        """Memory that the reading of a virtual shard takes up."""

    def __len__(self) -> int: ...

    def train(self, shard: int, seed: int, position: Position | None) -> ShardReader:
        """The shuffled, endless sequence of a virtual shard, from a position on."""

    def evaluate(self, shard: int) -> Iterator[Example]:
        """Each example of a virtual shard once, in order."""


def is_stream(source: Source | Stream) -> bool:
    """Whether a data set can only be read in order."""
    return hasattr(source, "shard_lengths")


class SourceConfig(typing.Protocol):
    """What gin configures: where a data set is, and which split of it."""

    def open(self) -> Source | Stream:
        """The data set, ready to be read."""


class Transform(typing.Protocol):
    """A change to one image; all its chance comes from `rng`."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [H, W, C] from a uint8 image."""


class Batches(typing.Protocol):
    """What one process loads, batch after batch."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def positions(self) -> Positions:
        """By virtual shard, where to go on after the batch given last; empty if the step tells."""

    def close(self) -> None:
        """Ends threads and worker processes."""
