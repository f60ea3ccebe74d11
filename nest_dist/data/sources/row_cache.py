"""Row groups in memory: fetched once for as long as batches need them, and ahead of them."""

import atexit
import collections
import concurrent.futures
import contextlib
import threading
import typing
import weakref
from collections.abc import Callable, Iterator, Sequence

from nest_dist.data.sources import retries

FETCHES = 16  # at a time
END_SECONDS = 5.0
LOOK_SECONDS = 0.2

Group = typing.TypeVar("Group")


class RowCache(typing.Generic[Group]):
    """A cache within a limit in bytes."""

    def __init__(self, fetch: Callable[[int], Group], sizes: Sequence[int]) -> None:
        """Fetches nothing yet.

        Args:
            fetch: reads a row group, by number; runs in several threads.
            sizes: of all row groups in memory, in bytes.
        """
        self._fetch = fetch
        self._sizes = sizes
        self._limit = 2 * max(sizes)
        self._futures: dict[int, concurrent.futures.Future[Group]] = {}  # least recent first
        self._held: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(FETCHES)

    def __getitem__(self, number: int) -> Group:
        """A row group; waits for it."""
        closing = retries.current()
        while True:
            with self._lock:
                future = self._future(number)
                self._make_room(keep=(number,))
            while not concurrent.futures.wait([future], LOOK_SECONDS).done:
                closing.require_open(0)
            try:
                return future.result()
            except retries.Closed:  # by others, who have asked for it first
                closing.require_open(0)

    @contextlib.contextmanager
    def holding(
        self, groups: Sequence[int], ahead: Sequence[int], limit_bytes: int
    ) -> Iterator[None]:
        with self._lock:
            self._limit = max(limit_bytes, 2 * max(self._sizes))
            self._held.update(groups)
            for number in groups:
                self._future(number)
            self._make_room(keep=(*groups, *ahead))
            for number in ahead:
                if number in self._futures or self._bytes() + self._sizes[number] <= self._limit:
                    self._future(number)
        try:
            yield
        finally:
            with self._lock:
                self._held -= collections.Counter(groups)

    def _future(self, number: int) -> "concurrent.futures.Future[Group]":
        """The row group, now or later, as the most recent one."""
        future = self._futures.pop(number, None)
        if future is None or (future.done() and future.exception()):
            future = concurrent.futures.Future()
            # A daemon: a run that ends does not wait for a storage that does not answer.
            arguments = number, future, retries.current()
            thread = threading.Thread(target=self._run, args=arguments, daemon=True)
            _running.add(thread)
            thread.start()
        self._futures[number] = future
        return future

    def _run(
        self,
        number: int,
        future: "concurrent.futures.Future[Group]",
        closing: retries.Closing,
    ) -> None:
        with self._slots, retries.until(closing):
            try:
                closing.require_open(0)
                future.set_result(self._fetch(number))
            except BaseException as error:  # whatever it is, the reader must raise it
                future.set_exception(error)

    def _make_room(self, keep: Sequence[int]) -> None:
        kept = {*keep, *self._held}
        coming = sum(self._sizes[number] for number in kept.difference(self._futures))
        for number in [number for number in self._futures if number not in kept]:
            if self._bytes() + coming <= self._limit:
                return
            del self._futures[number]

    def _bytes(self) -> int:
        return sum(self._sizes[number] for number in self._futures)


_running: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """Waits a little for threads inside of libraries, which the end of Python would break."""
    for thread in list(_running):
        thread.join(END_SECONDS / max(1, len(_running)))
