"""Runs in every Python process that has this folder on its path: dies where a test wants it to.

NEST_DIST_SIGNAL="NUMBER PROCESS WRITE" makes that process of a run send itself a signal just before
its WRITE-th change below `checkpoints`: a file opened to be written, a folder made, a rename, a
removal.
"""

import itertools
import os
import sys

SENT = "sabotage: a signal is sent"
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def arm(number: int, process: str, write: int) -> None:
    counted = itertools.count(1)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        opens = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        # What opens by os.open, as Orbax's writers do, tells flags in place of a mode.
        opens |= event == "open" and arguments[1] is None and bool(_flags(arguments) & os.O_CREAT)
        if not opens and event not in WRITES:
            return
        if "/checkpoints" not in str(arguments[0]) or f"--process_id={process}" not in sys.argv:
            return
        if next(counted) == write:
            os.write(2, SENT.encode() + b"\n")
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def _flags(arguments: tuple[object, ...]) -> int:
    return arguments[2] if isinstance(arguments[2], int) else 0


if _wanted := os.environ.get("NEST_DIST_SIGNAL"):
    _number, _process, _write = _wanted.split()
    arm(int(_number), _process, int(_write))
