"""From the rows that each process loads to global arrays on the mesh, ahead of the step."""

import collections
import contextlib
import queue
import threading
import typing
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from nest_dist.data import batch

# How long the end of a run waits for a batch that is being loaded.
CLOSE_SECONDS = 10
# How long a batch may keep a stop waiting.
STALL_SECONDS = 5.0
POLL_SECONDS = 0.2
# Of how many batches the positions are known: of more than a loop runs ahead.
HISTORY = 16


def rows_of_process(sharding: jax.sharding.Sharding, global_batch: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending.

    Never derived from the process index: which rows a process holds depends on the mesh, and under
    some meshes several processes hold the same ones.
    """
    rows = np.arange(global_batch)
    places = sharding.addressable_devices_indices_map((global_batch,)).values()
    return np.unique(np.concatenate([rows[place] for place in places if place is not None]))


def assemble(
    local: batch.Batch,
    rows: np.ndarray,
    global_batch: int,
    shardings: Mapping[str, jax.sharding.Sharding],
) -> dict[str, jax.Array]:
    """Global arrays [global_batch, ...] of which this process supplies `rows`.

    Args:
        local: arrays whose first dimension is that of `rows`.
        rows: as of `rows_of_process`.
        global_batch: rows over all processes.
        shardings: of each array. What is cut along other dimensions than the first is loaded whole
            and sent in parts: a device gets its rows of an image, its host reads the picture.
    """

    def place(name: str, values: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(global_batch)
            first = int(np.searchsorted(rows, start))
            return values[(slice(first, first + stop - start), *index[1:])]

        shape = (global_batch, *values.shape[1:])
        return jax.make_array_from_callback(shape, shardings[name], part)

    return {name: place(name, values) for name, values in local.items()}


class Ahead:
    """Global batches on the devices, loaded and sent by a thread while the devices work."""

    def __init__(
        self,
        batches: batch.Batches,
        place: Callable[[batch.Batch], dict[str, jax.Array]],
        blank: batch.Batch | None = None,
        *,
        stopping: Callable[[], bool] = lambda: False,
        depth: int = 2,
    ) -> None:
        """Starts the thread.

        Args:
            batches: what this process loads.
            place: puts one of them on the devices.
            blank: a batch without data.
            stopping: whether a stop was asked; then `blank` takes the place of batches that do not
                come.
            depth: batches that wait there.
        """
        self._batches = batches
        self._place = place
        self._blank = blank
        self._stopping = stopping
        self._stalled = False
        # After each of the batches given last.
        self._positions: collections.deque[batch.Positions] = collections.deque(maxlen=HISTORY)
        self._waiting: queue.Queue[typing.Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._load, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._stopped.is_set():
            raise StopIteration
        found, positions = self._next()
        self._positions.append(positions)
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def positions(self, batches_back: int = 0) -> batch.Positions:
        """Of a stream, by virtual shard, where to go on after one of the batches given.

        Args:
            batches_back: 0 for the one given last, less than `HISTORY`.
        """
        return self._positions[-1 - batches_back]

    def close(self) -> None:
        """Ends the thread, and what it loads from."""
        self._stopped.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            return  # it waits for a storage that does not answer; it must not keep the run waiting
        while not self._waiting.empty():
            self._waiting.get()
        self._batches.close()

    def _next(self) -> tuple[typing.Any, batch.Positions]:
        stalled_for = 0.0
        # Once without data, always without: the other processes have gone on in the sequence.
        while not self._stalled:
            try:
                return self._waiting.get(timeout=POLL_SECONDS)
            except queue.Empty:
                stalled_for += POLL_SECONDS if self._stopping() else 0.0
                self._stalled = self._blank is not None and stalled_for > STALL_SECONDS
        assert self._blank is not None
        return self._place(self._blank), self.positions()

    def _load(self) -> None:
        try:
            for loaded in self._batches:
                self._put(self._place(loaded), self._batches.positions())
                if self._stopped.is_set():
                    return
            self._put(StopIteration(), {})
        except BaseException as error:  # whatever it is, the loop must hear of it
            self._put(error, {})

    def _put(self, item: typing.Any, positions: batch.Positions) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._waiting.put((item, positions), timeout=0.1)
                return
