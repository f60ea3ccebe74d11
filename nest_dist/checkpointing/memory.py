"""Whether this machine can hold a file's arrays, asked before they are read."""

import pathlib

from nest_dist.base import failures

# The arrays of the file, and the same ones under other names and in another order.
COPIES = 2
_MEMINFO = pathlib.Path("/proc/meminfo")
_CGROUP = pathlib.Path("/sys/fs/cgroup")


def require(path: pathlib.Path, array_bytes: int) -> None:
    """Checks that the arrays of a file fit into memory.

    Raises:
        BadInput: naming what they need and what is free.
    """
    free = free_bytes()
    if free is not None and COPIES * array_bytes > free:
        raise failures.BadInput(
            f"{path} announces {_gigabytes(array_bytes)} of arrays, which take {COPIES} times that "
            f"to convert; this machine has {_gigabytes(free)} of free memory: use one with more."
        )


def free_bytes() -> int | None:
    """Memory that can be had without swapping, in this container; None where nothing tells."""
    found = [value for value in (_free_on_host(), _free_in_group()) if value is not None]
    return min(found, default=None)


def _free_on_host() -> int | None:
    if not _MEMINFO.exists():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _free_in_group() -> int | None:
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    try:
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # no such group, or the limit is "max"
        return None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
