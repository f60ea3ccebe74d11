"""The contract between sources, transforms and batches."""

import abc
import contextlib
import dataclasses
import hashlib
import typing
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Encoded: typing.TypeAlias = bytes | bytearray | memoryview
Stored: typing.TypeAlias = Encoded | np.ndarray


class Example(typing.TypedDict):
    """One picture with its classes, as stored."""

    image: Stored  # uint8 [H, W, C], or the bytes of an encoded picture
    labels: tuple[int, ...]  # of its classes, ascending, each in [0, classes)
    # Likewise, of classes of which nobody knows whether the picture has them
    unknown: typing.NotRequired[tuple[int, ...]]
    key: typing.NotRequired[str]  # by which a person finds the picture again


class ClassSet(typing.NamedTuple):
    """The classes of a picture that may have several or none; fields as of `Example`."""

    labels: tuple[int, ...]
    unknown: tuple[int, ...] = ()


def labelled(stored: Stored, label: "int | ClassSet", key: str) -> Example:
    """An example with one class, or with a set."""
    if isinstance(label, int):
        return {"image": stored, "labels": (label,), "key": key}
    return {"image": stored, "labels": label.labels, "unknown": label.unknown, "key": key}


# "image" uint8 [B, H, W, C], of several views [B, V, H, W, C], and labels in a form of
# `data/targets.py`; when evaluating also "weight" float32 [B], which is 1 for an example and 0 for
# the padding that fills the last batch.
Batch = Mapping[str, np.ndarray]


class Batches(typing.Protocol):
    """The rows of one process, batch after batch."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Ends threads and worker processes."""


class Corrupt(Exception):
    """An example cannot be read or decoded; the text says why, in a few words."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Shape and type of the images at a stage of the pipeline."""

    height: int | None  # in pixels; None where it differs from picture to picture
    width: int | None  # likewise
    channels: int
    dtype: str = "uint8"  # of NumPy, or "encoded"
    views: int = 1  # images that are made of one picture

    @property
    def shape(self) -> tuple[int, ...]:
        """Of images that all have the same: [H, W, C], of several views [V, H, W, C]."""
        assert self.height is not None
        assert self.width is not None
        views = (self.views,) if self.views > 1 else ()
        return *views, self.height, self.width, self.channels

    def __str__(self) -> str:
        if self.dtype == "encoded":
            return "encoded pictures"
        views = f"{self.views} views of " if self.views > 1 else ""
        return f"{views}{self.dtype} [{self.height or 'H'}, {self.width or 'W'}, {self.channels}]"


# The bytes of files; a decoder makes RGB of whatever they hold.
ENCODED = ImageSpec(None, None, 3, "encoded")


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """How a source stores examples that it cannot fetch one by one."""

    lengths: tuple[int, ...]  # examples of each row group, at least 1
    bytes: tuple[int, ...]  # of each row group in memory
    virtual_shards: int  # contiguous pieces of each batch, each with a sequence of its own
    window: int  # row groups of a virtual shard that are shuffled together


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The sources of which a source consists; their examples and row groups follow each other."""

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    row_groups: tuple[RowGroups | None, ...]


class Source(abc.ABC):
    """An open data set: examples by index, the same for every process.

    It is pickled for worker processes. By default its pictures are encoded and fetched one by one.
    """

    class_names: tuple[str, ...]
    fingerprint: str  # changes whenever the content does; a run does not resume with other data
    image_spec = ENCODED
    # That hold the examples, if they cannot be fetched one by one
    row_groups: RowGroups | None = None
    mixture: Mixture | None = None  # of a source that is drawn from several by weight

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Example:
        """One example.

        Raises:
            Corrupt: if it cannot be read.
        """

    def known_labels(self) -> np.ndarray | None:
        """The label of each example [N], where no picture has to be read for it."""
        return None

    def read_labels(self) -> np.ndarray | None:
        """Likewise, after reading all examples if need be; None where one has several or none.

        Raises:
            BadInput: if an example is corrupt.
        """
        return self.known_labels()

    def class_counts(self) -> tuple[int, ...] | None:
        """The number of examples that have each class; None where all would have to be read."""
        if (labels := self.known_labels()) is not None:
            return tuple(np.bincount(labels, minlength=len(self.class_names)).tolist())
        return None

    def holding(
        self, groups: Sequence[int], ahead: Sequence[int], limit_bytes: int
    ) -> contextlib.AbstractContextManager[None]:
        """Keeps row groups in memory while their examples are read.

        Args:
            groups: that are read inside this context.
            ahead: that are fetched in the background, where the limit allows it.
            limit_bytes: of all row groups in memory.
        """
        return contextlib.nullcontext()


@dataclasses.dataclass(eq=False)
class Arrays(Source):
    """A small data set in memory: images [N, H, W, C] and labels [N]."""

    images: np.ndarray  # uint8
    labels: np.ndarray  # integers in [0, len(class_names))
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.image_spec = ImageSpec(*self.images.shape[1:])
        digest = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        digest.update(self.images.tobytes())
        digest.update(self.labels.astype(np.int64).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "labels": (int(self.labels[index]),)}

    def known_labels(self) -> np.ndarray | None:
        return self.labels


class SourceConfig(typing.Protocol):
    """What gin configures: the location of a data set, and its split."""

    def open(self) -> Source:
        """The data set, ready to be read."""


class Transform(typing.Protocol):
    """A change to one image; all its random numbers come from `rng`.

    The first one of a chain is given the picture as it is stored. So where pictures are encoded, it
    has to decode them.
    """

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The changed image [H, W, C]."""

    def output(self, image: ImageSpec) -> ImageSpec:
        """Shape and type of the result, from those of the image."""
