"""Batches on their way from a worker process, in shared memory that is used again and again.

Grain takes new memory for each array, whose pages the kernel has to find and clear: more work than
to fill them. Here a worker takes a segment that the process it works for has done with.
"""

import contextlib
import dataclasses
import math
import typing
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing import shared_memory, util

import numpy as np

# The first byte of a segment says whether a batch in it is still needed; numbers follow aligned.
FREE, TAKEN = 0, 1
ALIGNMENT = 64


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

    def __init__(self) -> None:
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
        if not self._segments:
            util.Finalize(self, _unlink, (self._segments,), exitpriority=0)
        self._segments.append(shared_memory.SharedMemory(create=True, size=size))
        return self._segments[-1]


class Receiver:
    """In the process that workers work for: finds what they have sent."""

    def __init__(self) -> None:
        self._segments: dict[str, shared_memory.SharedMemory] = {}

    def __call__(self, sent: Sent) -> dict[str, typing.Any]:
        """The batch, whose arrays lie in the segment; it is free when none of them is in use."""
        if sent.segment not in self._segments:
            self._segments[sent.segment] = shared_memory.SharedMemory(sent.segment)
        segment = self._segments[sent.segment]
        # Of these bytes all arrays are views, and so is whatever is made of them without a copy.
        whole = _bytes(segment)
        weakref.finalize(whole, _done, segment).atexit = False
        return {**sent.others, **dict(sent.arrays(whole))}

    def close(self) -> None:
        """Removes what a worker that was killed has left; batches stay as they are."""
        _unlink(list(self._segments.values()))


def _padded(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _bytes(segment: shared_memory.SharedMemory) -> np.ndarray:
    """All of a segment, which has to be kept open as long as this is in use."""
    return np.ndarray((segment.size,), np.uint8, buffer=segment.buf)


def _done(segment: shared_memory.SharedMemory) -> None:
    _bytes(segment)[0] = FREE


def _unlink(segments: list[shared_memory.SharedMemory]) -> None:
    for segment in segments:
        with contextlib.suppress(FileNotFoundError):
            segment.unlink()
