"""The C library's treatment of freed memory."""

import contextlib
import ctypes


def keep_freed() -> None:
    """Makes the C library reuse freed memory for the next allocation.

    By default it returns every large array to the system, which then maps and clears pages for the
    next one. This takes a quarter of the time of a model on a CPU, and a few percent of the time of
    loading pictures. Call it early: a thread that has allocated before has its own arena, without
    this setting. Without glibc on Linux nothing changes.
    """
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_TRIM_THRESHOLD etc. of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, -1)  # as an unsigned size: no limit
        library.mallopt(mmap_max, 0)
        library.mallopt(arena_max, 1)
