"""Bytes that came from servers and from the cache, of a process and its workers."""

import threading

import numpy as np

NAMES = ("cache_hits", "cache_bytes", "requests", "fetched_bytes")


class Traffic:
    """Counts in the order of `NAMES`."""

    def __init__(self) -> None:
        """All are 0."""
        self._counts = np.zeros(len(NAMES), np.int64)
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Adds to the counts with these names."""
        with self._lock:
            for name, count in counts.items():
                self._counts[NAMES.index(name)] += count

    def take(self) -> np.ndarray:
        """The counts [4], which begin at 0 again."""
        with self._lock:
            taken, self._counts = self._counts, np.zeros(len(NAMES), np.int64)
        return taken

    def counts(self) -> np.ndarray:
        """The counts [4]."""
        with self._lock:
            return self._counts.copy()


# Of this process, since its last batch; and those that came with batches.
here, told = Traffic(), Traffic()


def tell(taken: np.ndarray) -> None:
    """Adds counts [4] that came with a batch."""
    told.add(**dict(zip(NAMES, taken.tolist(), strict=True)))


def metrics() -> dict[str, float]:
    """All counts since the program started, or nothing where no source is remote."""
    counts = here.counts() + told.counts()
    named = zip(NAMES, counts.tolist(), strict=True)
    return {f"data/{name}": float(count) for name, count in named} if counts.any() else {}
