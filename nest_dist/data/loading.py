"""Threads, worker processes and the memory that is read ahead into."""

import dataclasses
import os
import signal
import threading
import time
import typing

import grain
from absl import flags

from nest_dist.base import failures, memory
from nest_dist.data import segments

# More batches than this in waiting help nobody, however small they are.
DEEPEST = 16
PARENT_WATCH_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Loading:
    """How one process loads its batches; it changes when they are ready, never what they hold.

    Attributes:
        name: of the configuration, for the text of errors.
        threads: that prepare batches, in each worker, or in the process itself.
        workers: processes beside it; 0 uses threads only.
        read_ahead_bytes: that batches may take up while they wait, over all workers.
    """

    name: str
    threads: int
    workers: int
    read_ahead_bytes: int

    def batches(self, dataset: grain.MapDataset, batch_bytes: int) -> "Iteration":
        """The elements of `dataset`, in order, prepared ahead.

        Args:
            dataset: whose elements are batches.
            batch_bytes: size of one.
        Raises:
            BadInput: if the memory does not suffice for one batch in each place.
        """
        each, ready = self.depths(batch_bytes)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=each)
        return self.over_workers(dataset.to_iter_dataset(options), ready)

    def over_workers(self, dataset: grain.IterDataset, ready: int) -> "Iteration":
        """The elements of `dataset`, by worker processes if there are any.

        Args:
            dataset: that Grain can slice.
            ready: elements that wait in each worker.
        """
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads its own flags, whoever has parsed any
            options = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=ready)
            receive = segments.Receiver()
            dataset = dataset.map(segments.Sender(receive.prefix))
            dataset = dataset.mp_prefetch(options, worker_init_fn=start_worker)
            return Iteration(iter(dataset), self, receive)
        return Iteration(iter(dataset), self)

    def depths(self, batch_bytes: int) -> tuple[int, int]:
        """How many batches are in the making in each worker, and how many wait there.

        As many again wait here: Grain has a queue at both ends.

        Raises:
            BadInput: as of `batches`.
        """
        places = max(1, self.workers)
        # With workers one is in the making, one waits there and one here.
        least = 3 * places if self.workers else 1
        affordable = self.read_ahead_bytes // batch_bytes
        if affordable < least:
            raise failures.BadInput(
                f"{self.name}.read_ahead_bytes is {self.read_ahead_bytes}, less than {least} "
                f"batches of {batch_bytes} bytes for {self.workers} workers; raise it to "
                f"{least * batch_bytes} or lower {self.name}.workers."
            )
        if not self.workers:
            return min(affordable, DEEPEST), 0
        share = min(affordable // places, DEEPEST)
        making = min(self.threads, share - 2)
        return making, (share - making) // 2


class Iteration:
    """An iterator of batches that ends its threads and workers when it is closed."""

    def __init__(
        self,
        iterator: typing.Any,
        loading: Loading,
        receive: segments.Receiver | None = None,
    ) -> None:
        """Wraps an iterator of Grain's.

        Args:
            iterator: of batches, or of what workers have sent.
            loading: how.
            receive: finds what workers have sent.
        """
        self._iterator = iterator
        self._loading = loading
        self._receive = receive

    def __iter__(self) -> "Iteration":
        return self

    def __next__(self) -> dict[str, typing.Any]:
        try:
            found = next(self._iterator)
            return self._receive(found) if self._receive else found
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise failures.Failure(
                f"a data worker process has ended ({failures.first_line(error)}); start the run "
                f"again, with fewer {self._loading.name}.workers if the host was out of memory or "
                "its /dev/shm is small."
            ) from error

    def close(self) -> None:
        """Ends threads and worker processes; only then may the program end without complaints."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            if self._receive:
                self._receive.close()


def start_worker(index: int, count: int) -> None:
    """Makes a worker process end with its parent, and never before, and use its memory again.

    A SIGTERM to all processes of a job asks the parent to save and stop, for which it still needs
    its workers; a parent that is killed tells them nothing.
    """
    memory.keep_freed()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
