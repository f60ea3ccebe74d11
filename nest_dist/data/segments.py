"""Batches on their way from a worker process, in shared memory that is used again and again.

Grain takes new memory for each array, whose pages the kernel has to find and clear: more work than
to fill them. Here a worker takes a segment that the process it works for has done with.
"""

import dataclasses
import math
import os
import pathlib
import secrets
import typing
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing import shared_memory

import numpy as np

# The first byte of a segment says whether a batch in it is still needed; numbers follow aligned.
FREE, TAKEN = 0, 1
ALIGNMENT = 64
# Where Linux shows the names of segments.
FOLDER = pathlib.Path("/dev/shm")


@dataclasses.dataclass(frozen=True)
class Sent:
    """What a worker tells of a batch.

    Attributes:
        segment: name of the shared memory with its arrays.
        layout: name, shape and type of each array, in order.
        others: what the batch holds besides arrays.
    """

    segment: str
    layout: tuple[tuple[str, tuple[int, ...], np.dtype], ...]
    others: dict[str, typing.Any]

    def size(self) -> int:
        """Bytes of the segment."""
        return ALIGNMENT + sum(_padded(shape, dtype) for _, shape, dtype in self.layout)

    def arrays(self, whole: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays in a segment, given as bytes."""
        start = ALIGNMENT
        for name, shape, dtype in self.layout:
            stop = start + math.prod(shape) * dtype.itemsize
            yield name, whole[start:stop].view(dtype).reshape(shape)
            start += _padded(shape, dtype)


class Sender:
    """In a worker process: lays batches into segments, of which it has as many as it needs."""

    def __init__(self, prefix: str) -> None:
        """Makes one without segments.

        Args:
            prefix: of their names, as the receiver knows it.
        """
        self._prefix = prefix
        self._segments: list[shared_memory.SharedMemory] = []

    def __call__(self, batch: Mapping[str, typing.Any]) -> Sent:
        """What the other process needs to find the arrays of `batch`."""
        arrays = {name: x for name, x in batch.items() if isinstance(x, np.ndarray)}
        layout = tuple((name, x.shape, x.dtype) for name, x in arrays.items())
        others = {name: x for name, x in batch.items() if name not in arrays}
        sent = Sent("", layout, others)
        segment = self._free(sent.size())
        whole = _bytes(segment)
        whole[0] = TAKEN
        for name, place in sent.arrays(whole):
            place[...] = arrays[name]
        return dataclasses.replace(sent, segment=segment.name)

    def _free(self, size: int) -> shared_memory.SharedMemory:
        for segment in self._segments:
            if segment.size >= size and _bytes(segment)[0] == FREE:
                return segment
        name = f"{self._prefix}{os.getpid()}_{len(self._segments)}"
        self._segments.append(shared_memory.SharedMemory(name, create=True, size=size))
        return self._segments[-1]


class Receiver:
    """In the process that workers work for: finds what they have sent.

    Attributes:
        prefix: of the names of segments, for the senders.
    """

    def __init__(self) -> None:
        self.prefix = f"nest_{secrets.token_hex(4)}_"
        self._segments: dict[str, shared_memory.SharedMemory] = {}

    def __call__(self, sent: Sent) -> dict[str, typing.Any]:
        """The batch, whose arrays lie in the segment; it is free when none of them is in use."""
        if sent.segment not in self._segments:
            opened = shared_memory.SharedMemory(sent.segment)
            opened.unlink()  # both ends have it, and nobody else needs its name
            self._segments[sent.segment] = opened
        segment = self._segments[sent.segment]
        # Of these bytes all arrays are views, and so is whatever is made of them without a copy.
        whole = _bytes(segment)
        # The finalizer also keeps the segment open, or these bytes would be nobody's.
        weakref.finalize(whole, _done, segment).atexit = False
        return {**sent.others, **dict(sent.arrays(whole))}

    def close(self) -> None:
        """Removes what was sent and never received, when workers have ended."""
        for path in FOLDER.glob(f"{self.prefix}*"):
            shared_memory.SharedMemory(path.name).unlink()


def _padded(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _bytes(segment: shared_memory.SharedMemory) -> np.ndarray:
    """All of a segment, which has to be kept open as long as this is in use."""
    return np.ndarray((segment.size,), np.uint8, buffer=segment.buf)


def _done(segment: shared_memory.SharedMemory) -> None:
    _bytes(segment)[0] = FREE
