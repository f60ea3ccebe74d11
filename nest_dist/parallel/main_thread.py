"""What the main thread of this process is doing, seen from another."""

import os
import sys
import threading
import traceback
import typing

_FRAMES = 4
_PACKAGE = os.path.dirname(os.path.dirname(__file__))


def place() -> str:
    """Where the main thread is, and which places of this package led there."""
    frame = sys._current_frames().get(typing.cast(int, threading.main_thread().ident))
    if frame is None:
        return "its end"
    places: list[str] = []
    for inner, line in traceback.walk_stack(frame):
        code = inner.f_code
        if not places or _PACKAGE in code.co_filename:
            places.append(f"{os.path.basename(code.co_filename)}:{line} {code.co_name}")
    return " < ".join(places[:_FRAMES])
