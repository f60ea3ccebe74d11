"""Reading from storage that fails now and then: again after growing pauses, a few times.

Trouble of the system is no damage of the data: it never makes an example corrupt.
"""

import contextlib
import dataclasses
import logging
import os
import threading
import time
import typing
from collections.abc import Callable, Iterator

from nest_dist.base import failures
from nest_dist.data import batch, parts

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
# Libraries whose errors are about the network or about an answer that was cut short.
NETWORK = ("http", "httpcore", "httpx", "httpx2", "huggingface_hub", "requests")
TOO_EARLY = (408, 425, 429)  # of the answers "your request is wrong", those that pass with time

Result = typing.TypeVar("Result")
_THREAD = threading.local()


class Closing:
    """Tells the threads that read for some batches that nobody wants these any more.

    A worker process gets one of its own, since it ends anyway.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def __reduce__(self) -> tuple[type["Closing"], tuple[()]]:
        return Closing, ()

    def close(self) -> None:
        """Ends what waits in `require_open`."""
        self._event.set()

    def require_open(self, pause: float) -> None:
        """Waits for so many seconds.

        Raises:
            Closed: if nobody wants the batches, at once.
        """
        if self._event.wait(pause):
            raise Closed("the batches were closed.")


class Closed(failures.Failure):
    """Nobody wants what is read."""


@contextlib.contextmanager
def until(closing: Closing) -> Iterator[None]:
    """Lets reads of this thread end when `closing` says so."""
    _THREAD.closing = closing
    try:
        yield
    finally:
        del _THREAD.closing


def current() -> Closing:
    """Of this thread; one that is never closed outside of `until`."""
    return getattr(_THREAD, "closing", Closing())


@dataclasses.dataclass(frozen=True)
class Retries:
    """Repeats reads that fail."""

    attempts: int = 8  # at most; the pause between them doubles

    def run(self, name: str, read: Callable[[], Result], listed: bool = False) -> Result:
        """The result of `read`.

        Args:
            name: of the file, for error texts.
            read: may be called several times.
            listed: whether the file was there before, so that it may come back.
        Raises:
            BadInput: if the file is missing or forbidden, which no repetition changes.
            Unavailable: if every attempt fails.
            Closed: as of `until`.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return read()
            except failures.Failure:
                raise
            except Exception as error:
                if not _is_of_storage(error):
                    raise
                name = os.fsdecode(getattr(error, "filename", None) or name)
                reason = _reason(error, name)
                if _is_final(error) and not (listed and isinstance(error, FileNotFoundError)):
                    raise failures.BadInput(
                        f"{name} is not there or may not be read ({reason}); correct its name, or "
                        "give this program access."
                    ) from error
                if attempt == self.attempts:
                    raise failures.Unavailable(
                        f"{name} could not be read in {attempt} attempts in a row ({reason}); "
                        "when the storage works again, start the run again and it goes on."
                    ) from error
                pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
                logging.getLogger(__name__).warning(
                    "%s: %s; attempt %d of %d in %.1f s",
                    *(name, reason, attempt + 1, self.attempts, pause),
                )
                if hasattr(_THREAD, "closing"):
                    _THREAD.closing.require_open(pause)
                else:
                    time.sleep(pause)


def opened(name: str, config: batch.SourceConfig) -> batch.Source:
    """An open data set or part of one, with the errors of `Retries.run`."""
    return Retries().run(name, lambda: parts.opened(config))


def example(source: batch.Source, index: int) -> batch.Example:
    """An example of a source, with the errors of `Retries.run`, or `Corrupt`."""
    return Retries().run(f"example {index}", lambda: source[index], listed=True)


def _is_of_storage(error: Exception) -> bool:
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, EOFError)) or library in NETWORK


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, FileNotFoundError):  # its text is the address once more
        return "404 not found" if "://" in name else "no such file"
    return (getattr(error, "strerror", None) or failures.first_line(error))[:200]


def _is_final(error: Exception) -> bool:
    if getattr(error, "errno", None) in (*failures.NO_PATH, *failures.FORBIDDEN):
        return True
    if isinstance(error, (FileNotFoundError, PermissionError)):  # of libraries, without a number
        return True
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in TOO_EARLY
