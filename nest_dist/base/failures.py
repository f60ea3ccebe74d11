"""The errors that end a run, each with the exit code that says whether a restart helps."""

import errno
import os
import traceback

# 64-78 are the codes of BSD's sysexits.h; 75 (EX_TEMPFAIL) is its word for "try again later".
USAGE = 2
PEER_LOST = 75
PREEMPTED = 76
INTERRUPTED = 130
# With which a process ends itself otherwise than well; BUILD.md has the table.
EXIT_CODES = (1, USAGE, PEER_LOST, PREEMPTED, INTERRUPTED)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a path that names nothing, or something of another kind.
NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
# Of storage that fails for the moment; a restart may meet it in order.
TROUBLE = {
    *(errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EBUSY),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.EAGAIN),
}


class Failure(Exception):
    """An error with a known cause; its text is one line, shown without a traceback."""

    exit_code = 1


class BadInput(Failure, ValueError):
    """A flag, a binding, a file or a number that the user can correct; a restart does not help.

    The text names the value, the limit and the remedy.
    """

    exit_code = USAGE


class PeerLost(Failure):
    """Another process of this run has ended; starting all processes again continues the run."""

    exit_code = PEER_LOST


class Unavailable(Failure):
    """Storage or a server keeps failing; starting again later continues the run."""

    exit_code = PEER_LOST


class Preempted(Failure):
    """The run was asked to stop, saved what it had done, and can be continued by a restart."""

    exit_code = PREEMPTED


class Unsaved(Failure):
    """The run was asked to stop and cannot save; a restart goes on from the checkpoint before."""

    exit_code = PREEMPTED


class Interrupted(Failure):
    """The person at the terminal stopped the run with Ctrl-C; the text says what was saved."""

    exit_code = INTERRUPTED


def first_line(error: BaseException) -> str:
    """The message of `error` without the locations that gin and others append to it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def raise_trouble(error: BaseException) -> None:
    """Raises an error of the system again, unless it says that a file is missing."""
    missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    if isinstance(error, OSError) and error.errno and not isinstance(error, missing):
        raise error


def is_forbidden(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that this user may not do that."""
    while error is not None:
        errno_says = isinstance(error, OSError) and error.errno in FORBIDDEN
        if errno_says or "PERMISSION_DENIED" in str(error):  # the second is TensorStore's
            return True
        error = error.__cause__ or error.__context__
    return False


def cause(error: BaseException) -> str:
    """The reason of an error; those of the libraries of buckets have no `strerror`."""
    return getattr(error, "strerror", None) or first_line(error)


def known(error: BaseException) -> BaseException:
    """The `Failure` that an error of a library or the system amounts to; any other as it is."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, Failure) and any("xla_bridge" in it.filename for it in frames):
        return BadInput(
            f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS')!r}, and JAX cannot start it "
            f"({first_line(error)}); install what it needs, end who uses it, or choose another."
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return BadInput("a path begins with ~ and the name of no user of this host; correct it.")
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return BadInput(f"{first_line(error)}; raise the limit of open files (ulimit -Hn).")
    if isinstance(error, OSError) and error.errno in (*FORBIDDEN, *FULL):
        return BadInput(f"{first_line(error)}; make room there, or let the user {os.getuid()} in.")
    if isinstance(error, BrokenPipeError):
        return BadInput(f"{first_line(error)}; let what reads the output read it to its end.")
    if isinstance(error, FileNotFoundError) and error.errno and not error.filename:  # of getcwd
        return BadInput("the working folder of this program is gone; change to one that is there.")
    # Those of buckets have no number.
    if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in NO_PATH:
        return BadInput(f"{first_line(error)}; correct the path, or bring back what was there.")
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    if isinstance(error, MemoryError) or no_thread:
        return Failure(
            f"the memory or the threads of this user do not suffice ({first_line(error)}); raise "
            "its limits (ulimit -v, ulimit -u), or take a smaller batch or model."
        )
    if isinstance(error, OSError) and error.errno in TROUBLE:
        return Unavailable(
            f"{first_line(error)}; start the same command again when the storage answers."
        )
    return error


def end_now(exit_code: int) -> None:
    """Ends this process at once, without the exit handlers that would wait for lost peers."""
    os._exit(exit_code)
