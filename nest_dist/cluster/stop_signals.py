"""Signals of a run: blocked from the first line of Python on, and read by a thread of their own.

A blocked signal waits until it is read, also in process 1 of a container, and no library can take
its handler away. Processes that are started inherit the block. So a signal to a process group never
ends a data worker.
"""

import signal
import threading
from collections.abc import Callable

STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def hold_back() -> None:
    """Blocks stops and SIGUSR1 in this thread and in all that it starts.

    What is ignored already stays so, as SIGHUP under `nohup`.
    """
    ignored = {number for number in STOPS if signal.getsignal(number) == signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS - ignored | {signal.SIGUSR1})


def release() -> None:
    """Gives all signals their ordinary effect again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS | {signal.SIGUSR1})


def listen(handle: Callable[[int], None]) -> None:
    """Calls `handle` with the number of each stop that is held back, in a thread of its own."""

    def read() -> None:
        while True:
            handle(signal.sigwait(held))

    if held := STOPS & signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        threading.Thread(target=read, name="signals", daemon=True).start()


def trace_requested() -> bool:
    """Whether a SIGUSR1 has come, and is held back, since the last call."""
    requested = signal.SIGUSR1 in signal.sigpending()
    if requested:
        signal.sigwait({signal.SIGUSR1})
    return requested
