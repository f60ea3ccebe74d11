"""Signals of a run: blocked from the first line of Python on, and read by a thread of their own.

A blocked signal waits until it is read, also in process 1 of a container, and no library can take
its handler away. Processes that are started inherit the block. So a signal to a process group never
ends a data worker.

Python's resource tracker, which starts with the first worker process, unblocks SIGINT and SIGTERM
in the thread that starts it. `start_resource_tracker` gives it a thread that ends at once, and
`listen` handlers that pass on what comes in this moment.
"""

import contextlib
import gc
import signal
import threading
import types
from collections.abc import Callable, Iterator

AGAIN_SECONDS = 0.05
STOPS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def hold_back() -> None:
    """Blocks stops and SIGUSR1 in this thread and in all that it starts.

    What is ignored already stays so, as SIGHUP under `nohup`.
    """
    ignored = {number for number in STOPS if signal.getsignal(number) == signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS - ignored | {signal.SIGUSR1})


def release() -> None:
    """Gives all signals their ordinary effect again; Ctrl-C has it at every moment."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS | {signal.SIGUSR1})


def _interrupt(number: int, frame: types.FrameType | None) -> None:
    """Python ignores what is raised in a callback of its garbage collector, and JAX has one."""
    while frame is not None:
        if any(frame.f_code is getattr(it, "__code__", None) for it in gc.callbacks):
            main = threading.main_thread().ident or 0
            threading.Timer(AGAIN_SECONDS, signal.pthread_kill, (main, number)).start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def listen(handle: Callable[[int], None]) -> None:
    """Calls `handle` with the number of each stop that is held back, in a thread of its own."""

    def read() -> None:
        while True:
            handle(signal.sigwait(held))

    def pass_on(number: int, _frame: object) -> None:
        signal.pthread_kill(reader.ident or 0, number)

    if held := STOPS & signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        reader = threading.Thread(target=read, name="signals", daemon=True)
        reader.start()
        for number in held:
            signal.signal(number, pass_on)


def start_resource_tracker() -> None:
    """Starts what Python starts with a first worker process, so that no thread loses its block."""
    from multiprocessing import resource_tracker  # takes 20 ms, too long before `hold_back`

    thread = threading.Thread(target=resource_tracker.ensure_running, name="resource tracker")
    thread.start()
    thread.join()


@contextlib.contextmanager
def held_interrupts() -> Iterator[None]:
    """Ctrl-C waits while this is open, and never reaches the processes that are started in it.

    Call it in the main thread.
    """
    start_resource_tracker()
    came: list[int] = []
    # The block is for those that inherit it; here any other thread may take the signal.
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def trace_requested() -> bool:
    """Whether a SIGUSR1 has come, and is held back, since the last call."""
    requested = signal.SIGUSR1 in signal.sigpending()
    if requested:
        signal.sigwait({signal.SIGUSR1})
    return requested
