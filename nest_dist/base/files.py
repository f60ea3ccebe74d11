"""Files that appear under their name only when they are whole and on the disk."""

import os
import pathlib
import typing
from collections.abc import Callable


def write_whole(path: pathlib.Path, writer: Callable[[pathlib.Path], typing.Any]) -> None:
    """Lets `writer` fill a file beside `path`, which then takes its place at once.

    A process that dies on the way leaves `path` as it was, and a file .NAME.PROCESS.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        writer(partial)
        _to_disk(partial)
        partial.replace(path)
        _to_disk(path.parent)  # the name itself; else a power failure may bring the old file back
    finally:
        partial.unlink(missing_ok=True)


def leftovers(path: pathlib.Path) -> list[pathlib.Path]:
    """What killed processes left of a file that they had begun, or of all with the name `*`."""
    return sorted(path.parent.glob(f".{path.name}.[0-9]*"))


def _to_disk(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
