"""Batches from worker processes, in shared memory that is used again and again.

Grain allocates new memory for each array; the kernel maps and clears its pages, which is more work
than to fill them. Here a worker reuses the segments that the receiving process has released.
"""

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import pathlib
import pickle
import secrets
import typing
import weakref
from collections.abc import Iterable, Mapping
from multiprocessing import shared_memory

import numpy as np

from nest_dist.base import failures

# The first byte of a segment says whether its batch is in use; the arrays follow, aligned.
FREE, IN_USE = 0, 1
ALIGNMENT = 64
# Linux shows the names of segments here.
FOLDER = pathlib.Path("/dev/shm")
# Suffix of the file that the process of the workers has locked.
OWNER = "owner"


class Descriptor(typing.NamedTuple):
    """A batch in shared memory."""

    segment: str  # name of the shared memory with its arrays
    pickled: bytes  # the batch without the bytes of its arrays
    sizes: tuple[int, ...]  # of these, in order

    def arrays(self, segment: np.ndarray) -> list[np.ndarray]:
        """The bytes of each array in those of a segment."""
        stops = itertools.accumulate(map(_padded, self.sizes), initial=ALIGNMENT)
        return [segment[at : at + size] for at, size in zip(stops, self.sizes, strict=False)]


class Sender:
    """In a worker process: copies batches to segments, which it makes as it needs them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._segments: list[shared_memory.SharedMemory] = []

    def __call__(self, batch: Mapping[str, np.ndarray]) -> Descriptor:
        """Copies a batch to a segment and describes it for the receiver."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(dict(batch), protocol=5, buffer_callback=buffers.append)
        arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        sizes = tuple(map(len, arrays))
        segment = self._free(ALIGNMENT + sum(map(_padded, sizes)))
        descriptor, content = Descriptor(segment.name, pickled, sizes), _bytes(segment)
        content[0] = IN_USE
        for target, array in zip(descriptor.arrays(content), arrays, strict=True):
            target[...] = array
        return descriptor

    def _free(self, size: int) -> shared_memory.SharedMemory:
        for segment in self._segments:
            if segment.size >= size and _bytes(segment)[0] == FREE:
                return segment
        name = f"{self._prefix}{os.getpid()}_{len(self._segments)}"
        self._segments.append(shared_memory.SharedMemory(name, create=True, size=size))
        return self._segments[-1]


class Receiver:
    """In the process that has the workers: opens the batches that they send.

    Attributes:
        prefix: of the names of segments, for the senders.
    """

    def __init__(self) -> None:
        """Removes what killed processes have left; a locked file says that this one lives."""
        remove_leftovers()
        self.prefix = f"nest_{secrets.token_hex(4)}_"
        self._segments: dict[str, shared_memory.SharedMemory] = {}
        # Of the semaphores that are made from now on; multiprocessing has no public name for it.
        multiprocessing.current_process()._config["semprefix"] = f"/{self.prefix}"  # type: ignore[attr-defined]
        owner = FOLDER / f"{self.prefix}{OWNER}"
        # The lock falls with this process, however that ends. Until it is there, others must not
        # look for it: they would take the process for dead.
        self._owner = owner.with_suffix(".new").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        owner.with_suffix(".new").rename(owner)

    def __call__(self, descriptor: Descriptor) -> dict[str, np.ndarray]:
        """The batch; its arrays are views of the segment, which is free once they are gone."""
        name = descriptor.segment
        if name not in self._segments:
            self._segments[name] = shared_memory.SharedMemory(name)
            self._segments[name].unlink()  # both ends have it open, and nobody else needs its name
        segment = self._segments[name]
        # All arrays are views of these bytes, and so are the views that others make of them.
        content = _bytes(segment)
        # The finalizer also keeps the segment open as long as these bytes are in use.
        weakref.finalize(content, _release, segment).atexit = False
        return pickle.loads(descriptor.pickled, buffers=descriptor.arrays(content))

    def close(self) -> None:
        """Removes segments that were never received, when the workers have ended."""
        _remove(FOLDER.glob(f"{self.prefix}*"))
        self._owner.close()


def remove_leftovers() -> None:
    """Removes what killed processes of this host have left."""
    for path in FOLDER.glob(f"nest_*_{OWNER}"):
        _remove_if_dead(path)


def require_room(name: str, workers: int, needed: int) -> None:
    """Checks that workers can share so many bytes of batches with their process.

    Raises:
        BadInput: if the shared memory of this host is smaller, or cannot be written.
    """
    if not FOLDER.is_dir():
        return  # not Linux
    status = os.statvfs(FOLDER)
    free = status.f_bavail * status.f_frsize if os.access(FOLDER, os.W_OK) else 0
    if free < needed:
        raise failures.BadInput(
            f"{FOLDER} has {free} bytes that can be written, and {workers} {name}.workers share up "
            f"to {needed}; enlarge it (docker run --shm-size), lower {name}.read_ahead_bytes, or "
            f"set {name}.workers to 0."
        )


def _remove_if_dead(owner: pathlib.Path) -> None:
    with contextlib.suppress(OSError), owner.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        prefix = owner.name.removesuffix(OWNER)
        _remove((*FOLDER.glob(f"sem.{prefix}*"), *FOLDER.glob(f"{prefix}*")))


def _remove(paths: Iterable[pathlib.Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(segment: shared_memory.SharedMemory) -> np.ndarray:
    """The bytes of a segment, which must stay open as long as they are in use."""
    return np.ndarray((segment.size,), np.uint8, buffer=segment.buf)


def _release(segment: shared_memory.SharedMemory) -> None:
    _bytes(segment)[0] = FREE
