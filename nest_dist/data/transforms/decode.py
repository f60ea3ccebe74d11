"""From the bytes of a picture to its pixels, and to the description in its header."""

import dataclasses
import functools
import os
from collections.abc import Callable

import cv2
import numpy as np

from nest_dist.data import batch
from nest_dist.data.transforms import jpeg

# Stored orientation is ignored, as by the pipelines that the published weights were trained with.
COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# Top, left, height and width in pixels.
Rectangle = tuple[int, int, int, int]

LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
JPEG_QUALITY = 95


class Undecodable(batch.Corrupt):
    """The bytes are no complete picture; the text says why."""


def pixels(image: batch.Stored) -> np.ndarray:
    """A uint8 image [H, W, C]: arrays as they are, encoded pictures as RGB.

    Of more pixels than OPENCV_IO_MAX_IMAGE_PIXELS nothing is decoded. A JPEG is cut short also if
    an end was put behind the cut, unless it is progressive.

    Raises:
        Undecodable: if the bytes are cut short, altered, too many or no picture.
    """
    if isinstance(image, np.ndarray):
        return image
    if not len(image):
        raise Undecodable("it is empty")
    coded = jpeg.opened(image)
    return _decoded(coded.without_end() if coded else image)


def cut(image: batch.Stored, choose: Callable[[int, int], Rectangle]) -> np.ndarray:
    """A uint8 image [height, width, C]; of a JPEG little beside the rectangle is decoded.

    Args:
        image: as of `pixels`.
        choose: a rectangle of a picture of [H, W].
    Raises:
        Undecodable: as of `pixels`.
    """
    coded = jpeg.opened(image)
    if coded and coded.can_be_cut:
        top, left, height, width = choose(*coded.sides)
        encoded, first_row, first_column = coded.around(top, left, top + height, left + width)
        decoded = _decoded(coded.without_end() if encoded is coded.encoded else encoded)
        top, left = top - first_row, left - first_column
    else:
        decoded = pixels(image)
        top, left, height, width = choose(*decoded.shape[:2])
    return decoded[top : top + height, left : left + width]


def _decoded(encoded: batch.Encoded) -> np.ndarray:
    _configure_opencv()
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), COLOUR)
    except cv2.error as error:
        if LIMIT.removeprefix("OPEN") in error.err:
            raise Undecodable(f"it has more than {os.environ[LIMIT]} pixels, see {LIMIT}") from None
        raise Undecodable(f"the decoder refused it: {error.err}") from None
    if image is None:
        raise Undecodable(f"{describe(encoded)}, cut short or altered")
    return image


def encode(image: np.ndarray, kind: str) -> bytes:
    """The bytes of an image [H, W, C], RGB or grey: kind "jpeg", or "png" without loss."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else []
    if image.shape[2] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(f".{'jpg' if kind == 'jpeg' else 'png'}", image, options)
    assert done
    return encoded.tobytes()


@dataclasses.dataclass(frozen=True)
class Description:
    """What the header of a picture announces.

    Attributes:
        kind: "jpeg", "png", "webp", "gif", "bmp", "tiff" or "unknown".
        colour: "rgb", "grey", "cmyk", "alpha", "palette", or "" for the other formats.
        bits: of each channel.
    """

    kind: str
    colour: str = ""
    bits: int = 8

    def __str__(self) -> str:
        words = [self.colour, "" if self.bits == 8 else f"{self.bits}-bit", self.kind]
        return " ".join(word for word in words if word)


_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_PNG_COLOURS = {0: "grey", 2: "rgb", 3: "palette", 4: "alpha", 6: "alpha"}
_WEBP_ALPHA = 0x10  # in the flags of the extended format, and of the lossless one
_JPEG_COLOURS = {1: "grey", 3: "rgb", 4: "cmyk"}


def describe(encoded: batch.Encoded) -> Description:
    """Format, colours and depth, read from the header alone."""
    head = bytes(encoded[:32])
    kind = "webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else "unknown"
    kind = next((name for start, name in _SIGNATURES if head.startswith(start)), kind)
    if kind == "png" and len(head) >= 26:
        return Description(kind, _PNG_COLOURS.get(head[25], ""), head[24])
    if kind == "jpeg":
        frame = next((at for marker, at in jpeg.segments(encoded) if marker in jpeg.FRAMES), None)
        if frame is None:
            return Description(kind)
        return Description(kind, _JPEG_COLOURS.get(encoded[frame + 9], ""), encoded[frame + 4])
    if kind == "webp" and len(head) >= 25:
        flags = {b"VP8X": head[20], b"VP8L": head[24]}.get(head[12:16], 0)
        return Description(kind, "alpha" if flags & _WEBP_ALPHA else "rgb")
    return Description(kind)


@functools.cache
def _configure_opencv() -> None:
    """Once in a process, before its first picture."""
    # Threads belong to the pipeline; OpenCV's own would fight over the same cores.
    cv2.setNumThreads(0)
    # We report corrupt pictures ourselves, with their key.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
