"""What the C library does with memory that is freed."""

import contextlib
import ctypes


def keep_freed() -> None:
    """Has the C library keep what is freed for the next allocation.

    By default it gives every large array back to the system, and the pages of the next one are
    mapped and cleared anew: a quarter of the time of a model on a CPU, a few hundredths of that of
    loading pictures. A thread that has allocated before keeps an arena of its own, in which that
    cannot be changed. Where the library knows no such setting (elsewhere than on Linux with glibc),
    nothing changes.
    """
    most_trimmed, most_mapped, most_arenas = -1, -4, -8  # M_TRIM_THRESHOLD and so on of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(most_trimmed, -1)  # as a size: without limit
        library.mallopt(most_mapped, 0)
        library.mallopt(most_arenas, 1)
