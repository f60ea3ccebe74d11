"""Whether a picture is stored as it is, converted or left out; and the report of it."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
import typing
from collections.abc import Iterator

import numpy as np

from nest_dist.base import failures
from nest_dist.data import batch
from nest_dist.data.sources import image_folder
from nest_dist.data.transforms import decode, jpeg, orientation

# Stored byte for byte, but for restart markers; everything else becomes an RGB PNG, without loss.
KEPT_KINDS = frozenset(("jpeg", "png", "webp"))
KEPT_COLOURS = frozenset(("rgb", "grey", "alpha"))
KIND_BY_SUFFIX = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
# Adds restart markers, with which a crop decodes few other pixels.
JPEGTRAN = "jpegtran"
INTERVAL_WIDTH = 16  # pixels: one unit, or two narrow ones; the markers are 2% of the bytes


@dataclasses.dataclass(frozen=True)
class Remark:
    """A line of the report."""

    key: str  # of the picture, or the name of another file
    outcome: typing.Literal["left out", "converted", "kept"]
    reason: str


def require_jpegtran() -> None:
    """Checks that jpegtran is installed."""
    if shutil.which(JPEGTRAN) is None:
        raise failures.BadInput(
            f"--restart_markers needs the program {JPEGTRAN}, which is not here; install it, on "
            "Debian and Ubuntu as libjpeg-turbo-progs, or leave the flag out."
        )


def stored(
    image: batch.Encoded | np.ndarray, key: str, restart_markers: bool
) -> tuple[batch.Encoded, Remark | None]:
    """The bytes to store, which decode to the same pixels, and a remark on an unusual picture.

    A picture of more than 8 bits, or of many channels, is stored as it is.

    Raises:
        Undecodable: if it is no complete picture.
    """
    with _complaints() as complaints:
        pixels = decode.pixels(image, decode.ANY_VALUES)
    if grave := [line for line in complaints if b"extraneous bytes before marker" not in line]:
        raise decode.Undecodable(grave[0].decode(errors="replace").strip())
    if isinstance(image, np.ndarray):
        return decode.encode(pixels, "png"), None
    header = decode.describe(image)
    if header.is_many_channels:
        return image, Remark(key, "kept", f"{header}, whose channels are bound for training")
    if header.bits != 8:
        return image, Remark(key, "kept", f"{header}, which is scaled to 8 bits when read")
    if header.kind not in KEPT_KINDS or header.colour not in KEPT_COLOURS:
        converted = orientation.copied(image, decode.encode(pixels, "png"))
        return converted, Remark(key, "converted", f"{header} to rgb png")
    suffix = os.path.splitext(key)[1].lower()
    other = suffix[1:] if suffix in image_folder.SUFFIXES else header.kind
    named = KIND_BY_SUFFIX.get(suffix, other)
    remark = None
    if named != header.kind:
        remark = Remark(key, "kept", f"{header} named as {named}; its bytes decide")
    elif header.colour != "rgb":
        remark = Remark(key, "kept", f"{header}, which is read as rgb")
    if restart_markers and header.kind == "jpeg":
        if (marked := _marked(bytes(image), pixels)) is None:
            return image, Remark(key, "kept", f"{header} without markers: {JPEGTRAN} refuses it")
        image = marked
    return image, remark


def _marked(image: bytes, pixels: np.ndarray) -> bytes | None:
    """The JPEG with restart markers and the same pixels; None if jpegtran refuses it.

    It writes the entropy code anew and nothing else. A progressive picture becomes one that is
    coded from top to bottom.
    """
    coded = jpeg.opened(image)
    if coded is None:
        return None
    units = max(1, INTERVAL_WIDTH // coded.unit[1])
    interval = units if coded.grid[1] % units == 0 else 1
    command = [JPEGTRAN, "-copy", "all", "-optimize", "-restart", f"{interval}B"]
    done = subprocess.run(command, input=image, capture_output=True, check=False)
    try:
        same = done.returncode == 0 and np.array_equal(decode.pixels(done.stdout), pixels)
    except decode.Undecodable:
        return None
    return done.stdout if same else None


@contextlib.contextmanager
def _complaints() -> Iterator[list[bytes]]:
    """The lines that decoders write to stderr meanwhile, which is all that some say of damage.

    For a process whose other threads write nothing.
    """
    lines: list[bytes] = []
    usual = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(usual, 2)
            os.close(usual)
            written.seek(0)
            lines += [line for line in written if line.startswith(b"Corrupt JPEG data")]
