"""What the main thread of this process does, as the pulses of its supervisor tell the leader."""

import contextlib
import os
import sys
import threading
import time
import traceback
import typing
from collections.abc import Iterator

# Of a stack that is shown.
_FRAMES = 4
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


class Activity:
    """The phase of the main thread, since when, and how long it has waited for data.

    Attributes:
        phase: its work, in one or two words.
    """

    def __init__(self) -> None:
        self.phase, self._since, self._waited = "start", time.monotonic(), 0.0

    def enter(self, phase: str) -> None:
        """Begins a phase."""
        self._waited = self._waited_so_far()
        self.phase, self._since = phase, time.monotonic()

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A phase while this is open, then the one before."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def status(self) -> dict[str, float | str]:
        """Of a pulse: phase and its seconds, seconds of waiting for data in all, and the stack."""
        return {
            "phase": self.phase,
            "seconds": time.monotonic() - self._since,
            "waited": self._waited_so_far(),
            "stack": _main_stack(),
        }

    def _waited_so_far(self) -> float:
        current = time.monotonic() - self._since if self.phase == "data_wait" else 0.0
        return self._waited + current


def _main_stack() -> str:
    """The innermost frame of the main thread, and the frames of this package that led to it."""
    frame = sys._current_frames().get(typing.cast(int, threading.main_thread().ident))
    frames: list[str] = []
    for inner, line in traceback.walk_stack(frame) if frame else ():
        code = inner.f_code
        if not frames or _PACKAGE in code.co_filename:
            frames.append(f"{os.path.basename(code.co_filename)}:{line} {code.co_name}")
    return " < ".join(frames[:_FRAMES]) or "its end"
