"""SIGTERM and SIGINT, heard whatever the main thread does.

Python runs its handlers between two steps of the main thread's code only. What a signal writes to a
socket is read at once, also while the main thread is in a compiler, waits for data or hangs.
"""

import signal
import socket
import threading
from collections.abc import Callable


def hold_back() -> None:
    """Lets SIGTERM wait until there is a `Listener`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


class Listener:
    """Takes over both signals, with one that was held back; for the main thread."""

    def __init__(self, hear: Callable[[int], None]) -> None:
        """Begins to listen.

        Args:
            hear: is given the number of each signal, in a thread of its own.
        """
        self._hear = hear
        # Both ends stay open as long as the process: the system writes, the thread reads.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="signals", daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _run(self) -> None:
        while True:
            for number in self._reader.recv(64):
                self._hear(number)
