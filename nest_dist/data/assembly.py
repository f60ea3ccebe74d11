"""From the rows that each process loads to global arrays on the mesh, ahead of the step."""

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
        depth: int = 2,
    ) -> None:
        """Starts the thread.

        Args:
            batches: what this process loads.
            place: puts one of them on the devices.
            depth: batches that wait there.
        """
        self._batches = batches
        self._place = place
        self._positions: batch.Positions = {}
        self._waiting: queue.Queue[typing.Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._load, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._stopped.is_set():
            raise StopIteration
        found, self._positions = self._waiting.get()
        if isinstance(found, BaseException):
            self.close()
            raise found
        return found

    def positions(self) -> batch.Positions:
        """Of a stream, by virtual shard, where to go on after the batch given last."""
        return self._positions

    def close(self) -> None:
        """Ends the thread, and what it loads from."""
        self._stopped.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            return  # it waits for a storage that does not answer; it must not keep the run waiting
        while not self._waiting.empty():
            self._waiting.get()
        self._batches.close()

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
