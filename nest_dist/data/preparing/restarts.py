"""Restart markers in JPEGs, put there without loss, so that a crop need not decode all of one.

Only the entropy code is written anew, by jpegtran of libjpeg-turbo: the pixels are the same, and a
progressive picture becomes one that is coded from top to bottom.
"""

import shutil
import subprocess

import numpy as np

from nest_dist.base import failures
from nest_dist.data import decode, partial_jpeg

PROGRAM = "jpegtran"
WIDTH = 16  # pixels of an interval: one unit, or two narrow ones; the markers are 2% of the bytes


def require_program() -> None:
    """Checks that the markers can be made.

    Raises:
        BadInput: if they cannot.
    """
    if shutil.which(PROGRAM) is None:
        raise failures.BadInput(
            f"--restart_markers needs the program {PROGRAM}, which is not here; install it, on "
            "Debian and Ubuntu as libjpeg-turbo-progs, or leave the flag out."
        )


def marked(image: bytes, pixels: np.ndarray) -> bytes | None:
    """A JPEG with markers that has the same pixels; None if the program refuses it."""
    jpeg = partial_jpeg.opened(image)
    if jpeg is None:
        return None
    units = max(1, WIDTH // jpeg.unit[1])
    interval = units if jpeg.grid[1] % units == 0 else 1
    command = [PROGRAM, "-copy", "all", "-optimize", "-restart", f"{interval}B"]
    done = subprocess.run(command, input=image, capture_output=True, check=False)
    try:
        same = done.returncode == 0 and np.array_equal(decode.pixels(done.stdout), pixels)
    except decode.Undecodable:
        return None
    return done.stdout if same else None
