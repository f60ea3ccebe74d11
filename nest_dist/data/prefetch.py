"""From the rows of one process to global arrays on the mesh, ahead of the step."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from nest_dist.data import batch

# The end of a run waits for a loading batch at most this long.
CLOSE_SECONDS = 10
POLL_SECONDS = 0.2

DeviceBatch = dict[str, jax.Array]


def rows_of_process(sharding: jax.sharding.Sharding, global_batch: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending.

    They depend on the mesh, not on the process index: under some meshes several processes hold the
    same rows.
    """
    rows = np.arange(global_batch)
    slices = sharding.addressable_devices_indices_map((global_batch,)).values()
    return np.unique(np.concatenate([rows[held] for held in slices if held is not None]))


def to_global_arrays(
    local: batch.Batch,
    rows: np.ndarray,
    global_batch: int,
    shardings: Mapping[str, jax.sharding.Sharding],
) -> DeviceBatch:
    """Global arrays [global_batch, ...] of which this process supplies `rows`.

    Args:
        local: arrays whose first dimension is that of `rows`.
        shardings: of each array. They may shard other dimensions than the first, too: then the host
            reads a picture, and a device gets its rows of pixels.
    """

    def to_global(name: str, values: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(global_batch)
            first = int(np.searchsorted(rows, start))
            return values[(slice(first, first + stop - start), *index[1:])]

        shape = (global_batch, *values.shape[1:])
        return jax.make_array_from_callback(shape, shardings[name], shard)

    return {name: to_global(name, values) for name, values in local.items()}


class DevicePrefetcher:
    """Global batches on the devices, loaded and sent by a thread while the devices work."""

    def __init__(
        self,
        open_batches: Callable[[], batch.Batches],
        to_devices: Callable[[batch.Batch], DeviceBatch],
        stop_is_next: Callable[[], bool] = lambda: False,
        depth: int = 2,
    ) -> None:
        """Starts the thread.

        Args:
            open_batches: the batches of this process; called in the thread, since it may read.
            stop_is_next: whether a batch that stalls is not needed any more; then these end.
            depth: batches that wait on the devices.
        """
        self._open_batches = open_batches
        self._batches: batch.Batches | None = None
        self._to_devices = to_devices
        self._stop_is_next = stop_is_next
        self._waiting: queue.Queue[DeviceBatch | BaseException] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._load, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self

    def __next__(self) -> DeviceBatch:
        if self._stopped.is_set():
            raise StopIteration
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._waiting.get(timeout=POLL_SECONDS)
                break
            if self._stop_is_next():
                raise StopIteration
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Ends the thread and closes the batches of this process."""
        self._stopped.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            return  # it waits for a storage that does not answer; it must not keep the run waiting
        while not self._waiting.empty():
            self._waiting.get()
        if self._batches is not None:
            self._batches.close()

    def _load(self) -> None:
        try:
            self._batches = self._open_batches()
            for local in self._batches:
                self._put(self._to_devices(local))
                if self._stopped.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:  # whatever it is, the loop must raise it
            self._put(error)

    def _put(self, item: DeviceBatch | BaseException) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._waiting.put(item, timeout=0.1)
                return
