"""Threads, worker processes and the memory of batches that wait for their step."""

import contextlib
import dataclasses
import os
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import flags

from nest_dist.base import allocator, failures
from nest_dist.cluster import stop_signals
from nest_dist.data import shm_pool
from nest_dist.data.sources import retries

# More waiting batches than this help nobody, however small they are.
DEEPEST = 16
PARENT_WATCH_SECONDS = 0.5

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class Loaded:
    """Batches, which one thread may close while another waits for the next."""

    arrays: Iterator[Arrays]
    close: Callable[[], None]

    def __iter__(self) -> Iterator[Arrays]:
        return self

    def __next__(self) -> Arrays:
        return next(self.arrays)


@dataclasses.dataclass(frozen=True)
class WorkerPool:
    """How one process loads its batches; it changes when they are ready, never their content."""

    name: str
    threads: int  # that transform examples, in each worker, or in the process itself
    workers: int  # processes beside it; 0 uses threads only
    read_ahead_bytes: int  # memory of waiting batches and of row groups, over all workers
    row_group_bytes: int = 0  # memory of row groups

    def batches(
        self, dataset: grain.MapDataset, batch_bytes: int, pieces: int, closing: retries.Closing
    ) -> Loaded:
        """The batches of `dataset` in order, loaded ahead.

        Args:
            dataset: of pieces of batches.
            batch_bytes: size of a piece.
            pieces: of each batch; one, or as many as workers.
            closing: of what is read for the batches.
        Raises:
            BadInput: as of `depths`.
            PeerLost: from the iterator, if a worker has been killed.
        """
        making, waiting = self.depths(batch_bytes)
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=making)
        loaded = dataset.to_iter_dataset(options)
        receive: Callable[[typing.Any], Arrays] = dict
        opened = contextlib.ExitStack()
        if self.workers:
            if not flags.FLAGS.is_parsed():  # Grain reads its own, whoever has parsed any
                flags.FLAGS.mark_as_parsed()
            stop_signals.start_resource_tracker()
            processes = grain.MultiprocessingOptions(self.workers, waiting)
            receive = receiver = opened.enter_context(contextlib.closing(shm_pool.Receiver()))
            sent = loaded.map(shm_pool.Sender(receiver.prefix))
            loaded = sent.mp_prefetch(processes, worker_init_fn=start_worker)
        else:
            shm_pool.remove_leftovers()
        iterator = opened.enter_context(contextlib.closing(iter(loaded)))
        opened.callback(closing.close)  # first of all, for the iterator waits for its threads
        return Loaded(self._received(iterator, receive, pieces), opened.close)

    def _received(
        self, iterator: Iterator[typing.Any], receive: Callable[[typing.Any], Arrays], pieces: int
    ) -> Iterator[Arrays]:
        while True:
            try:
                # Without a name here, for then its memory would be in use until the next one.
                yield _joined([receive(next(iterator)) for _ in range(pieces)])
            except StopIteration:
                return
            except RuntimeError as error:
                if "Worker process was terminated" not in str(error):
                    raise
                raise failures.PeerLost(
                    f"a data worker process has ended ({failures.first_line(error)}); start the "
                    f"run again, with fewer {self.name}.workers if the host was out of memory or "
                    "its /dev/shm is small."
                ) from error

    def depths(self, batch_bytes: int) -> tuple[int, int]:
        """Batches in the making in each worker, and batches in its queue.

        As many again wait in this process: Grain has a queue at both ends.

        Raises:
            BadInput: if the memory does not suffice for one batch in each queue.
        """
        makers = max(1, self.workers)
        # With workers one is in the making, one in the worker's queue and one in ours.
        least = 3 * makers if self.workers else 1
        affordable = (self.read_ahead_bytes - self.row_group_bytes) // batch_bytes
        if affordable < least:
            groups = self.row_group_bytes
            held = f"{groups} bytes of row groups and " if groups else ""
            shards = "virtual_shards or window of the source, or " if groups else ""
            raise failures.BadInput(
                f"{self.name}.read_ahead_bytes is {self.read_ahead_bytes}, less than {held}{least} "
                f"batches of {batch_bytes} bytes for {self.workers} workers; raise it to "
                f"{groups + least * batch_bytes} or lower {shards}{self.name}.workers."
            )
        if not self.workers:
            return min(affordable, DEEPEST), 0
        share = min(affordable // makers, DEEPEST)
        making = min(self.threads, share - 2)
        waiting = (share - making) // 2
        shm_pool.require_room(self.name, makers, makers * (making + 2 * waiting) * batch_bytes)
        return making, waiting


def start_worker(index: int, count: int) -> None:
    """Makes a worker process end with its parent, and never before, and reuse its memory.

    A SIGTERM to all processes of a job asks the parent to save and stop. Until then it needs its
    workers; in a run they have inherited the block of signals. A parent that is killed cannot stop
    them.
    """
    allocator.keep_freed()
    stop_signals.hold_back()
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _joined(pieces: Sequence[Arrays]) -> Arrays:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
