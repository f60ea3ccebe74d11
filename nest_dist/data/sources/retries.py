"""Reading from servers that fail now and then: again after a growing pause, and not for ever."""

import dataclasses
import logging
import time
import typing
from collections.abc import Callable

from nest_dist.base import failures

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
# Libraries whose errors are about the network or about an answer that was cut short.
NETWORK = ("aiohttp", "fsspec", "httpcore", "httpx", "huggingface_hub", "pyarrow", "requests")
TOO_EARLY = (408, 425, 429)  # of the answers "your request is wrong", those that pass with time

Result = typing.TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Retries:
    """Repeats what fails.

    Attributes:
        attempts: at most, each after twice the pause of the one before.
    """

    attempts: int

    def run(self, name: str, read: Callable[[], Result]) -> Result:
        """What `read` returns in the end.

        Args:
            name: what is read, for the text of errors.
            read: may be called several times.
        Raises:
            BadInput: if it is not there or may not be read; that no repetition changes.
            Unavailable: if every attempt fails.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return read()
            except failures.Failure:
                raise
            except Exception as error:
                if not _is_of_storage(error):
                    raise
                reason = _reason(error, name)
                if _is_final(error):
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
                time.sleep(pause)
        raise AssertionError("unreachable")


def _is_of_storage(error: Exception) -> bool:
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, EOFError)) or library in NETWORK


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, FileNotFoundError):  # its text is the address once more
        return "404 not found" if "://" in name else "no such file"
    return failures.first_line(error)[:200]


def _is_final(error: Exception) -> bool:
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return True
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in TOO_EARLY
