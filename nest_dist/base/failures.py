"""The few errors that end a run, each with the exit code that says whether a restart helps."""

import os

# 64-78 are the codes of BSD's sysexits.h; 75 (EX_TEMPFAIL) is its word for "try again later".
USAGE = 2
PEER_LOST = 75
PREEMPTED = 76
INTERRUPTED = 130


class Failure(Exception):
    """An end with a known cause: its text is one line, shown without a traceback."""

    exit_code = 1


class BadInput(Failure, ValueError):
    """A flag, a binding, a file or a number that the user can correct; a restart does not help.

    The text names the value, the limit and the remedy.
    """

    exit_code = USAGE


class PeerLost(Failure):
    """Another process of this run has ended; starting all of them again continues the run."""

    exit_code = PEER_LOST


class Unavailable(Failure):
    """A server that the run reads from keeps failing; starting again later continues the run."""

    exit_code = PEER_LOST


class Preempted(Failure):
    """The run was asked to stop, saved a checkpoint and can be continued by a restart."""

    exit_code = PREEMPTED


class Interrupted(Failure):
    """The person at the terminal stopped the run with Ctrl-C; a checkpoint was saved."""

    exit_code = INTERRUPTED


def first_line(error: BaseException) -> str:
    """The message of `error` without the places that gin and others append to it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def end_now(exit_code: int) -> None:
    """Ends this process at once, without the exit handlers that would wait for lost peers."""
    os._exit(exit_code)
