"""Checks that memory can hold the arrays of a file, before they are read."""

import contextlib
import pathlib

from nest_dist.base import failures

# The arrays of the file, and their copies in another format.
COPIES = 2
_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def require(path: pathlib.Path, array_bytes: int) -> None:
    """Checks that the arrays of a file fit into memory."""
    free = free_bytes()
    if free is not None and COPIES * array_bytes > free:
        raise failures.BadInput(
            f"{path} announces {array_bytes / 1e9:.1f} GB of arrays, which take {COPIES} times "
            f"that to convert; this machine has {free / 1e9:.1f} GB of free memory: use one with "
            "more."
        )


def free_bytes() -> int | None:
    """Memory of this machine or container that is free without swapping; None if unknown."""
    free = []
    with contextlib.suppress(OSError):  # not Linux
        fields = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        free.append(1024 * int(fields["MemAvailable"].split()[0]))
    with contextlib.suppress(OSError, ValueError):  # no such group, or its limit is "max"
        limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
        free.append(int(limit.read_text()) - int(used.read_text()))
    return min(free, default=None)
