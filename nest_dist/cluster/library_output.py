"""Standard output of libraries, in a file; that of Python, to whoever reads it."""

import contextlib
import os
import sys
import typing
from collections.abc import Iterator

import jax

NAME = "libraries.log"


class Lossy:
    """A text stream: a closed terminal, a lost reader or a full disk must not end a run."""

    def __init__(self, stream: typing.TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def diverted(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Meanwhile, what is not printed by Python goes from standard output to FOLDER/libraries.log.

    Where processes meet on CPUs, Gloo prints a line for each group of devices, and nothing else
    writes there from C++. Errors go to standard error, which stays as it is. So does all on GPUs,
    where NCCL prints errors to standard output, and where the file cannot be written.

    Args:
        folder: a local one; with another, or none, nothing is diverted.
    """
    several = jax.process_count() > 1 and jax.default_backend() == "cpu"
    with contextlib.ExitStack() as undo:
        if several and folder is not None and "://" not in os.fspath(folder):
            with contextlib.suppress(OSError, ValueError):
                undo.enter_context(_standard_output_in(os.path.join(folder, NAME)))
        yield


@contextlib.contextmanager
def _standard_output_in(path: str) -> Iterator[None]:
    if sys.stdout.fileno() != 1:  # of a notebook or a test
        yield
        return
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    sys.stdout.flush()
    own = open(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)  # noqa: SIM115
    os.dup2(log, 1)
    os.close(log)
    try:
        with contextlib.redirect_stdout(typing.cast(typing.TextIO, Lossy(own))):
            yield
    finally:
        os.dup2(own.fileno(), 1)
        with contextlib.suppress(OSError):
            own.close()
