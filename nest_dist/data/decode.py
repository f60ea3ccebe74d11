"""From the bytes of a picture to its pixels, and what the bytes say about themselves."""

import dataclasses
import typing
from collections.abc import Iterator

import cv2
import numpy as np

from nest_dist.data import batch

# Threads belong to the pipeline; OpenCV's own would fight over the same cores.
cv2.setNumThreads(0)
# Broken pictures are reported by us, with their key.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Stored orientation is ignored, as by the pipelines that the published weights were trained with.
COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

Encoded: typing.TypeAlias = bytes | bytearray | memoryview
JPEG_QUALITY = 95


class Undecodable(batch.Unreadable):
    """The bytes are no whole picture; the text says why."""


def pixels(image: Encoded | np.ndarray) -> np.ndarray:
    """A uint8 image [H, W, C]: arrays as they are, encoded pictures as RGB.

    Raises:
        Undecodable: if the bytes are cut short, altered or no picture.
    """
    if isinstance(image, np.ndarray):
        return image
    if not len(image):
        raise Undecodable("it is empty")
    try:
        decoded = cv2.imdecode(np.frombuffer(image, np.uint8), COLOUR)
    except cv2.error as error:
        raise Undecodable(f"the decoder refused it: {error.err}") from None
    if decoded is None:
        raise Undecodable(f"{describe(image)}, cut short or altered")
    return decoded


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
    """What the first bytes of a picture announce.

    Attributes:
        kind: "jpeg", "png", "webp", "gif", "bmp", "tiff" or "unknown".
        colour: "rgb", "grey", "cmyk", "alpha", "palette" or "" where it is not looked up.
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
# Start-of-frame markers; C4, C8 and CC are tables and extensions.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def describe(encoded: Encoded) -> Description:
    """Format, colours and depth, read from the header alone."""
    head = bytes(encoded[:32])
    kind = "webp" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else "unknown"
    kind = next((name for start, name in _SIGNATURES if head.startswith(start)), kind)
    if kind == "png" and len(head) >= 26:
        return Description(kind, _PNG_COLOURS.get(head[25], ""), head[24])
    if kind == "jpeg":
        return _describe_jpeg(encoded)
    if kind == "webp" and len(head) >= 25:
        flags = {b"VP8X": head[20], b"VP8L": head[24]}.get(head[12:16], 0)
        return Description(kind, "alpha" if flags & _WEBP_ALPHA else "rgb")
    return Description(kind)


def jpeg_segments(encoded: Encoded) -> Iterator[tuple[int, int]]:
    """Marker and place of each segment of a JPEG, up to its first scan."""
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        yield marker, at
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")


def _describe_jpeg(encoded: Encoded) -> Description:
    for marker, at in jpeg_segments(encoded):
        if marker in JPEG_FRAMES:
            return Description("jpeg", _JPEG_COLOURS.get(encoded[at + 9], ""), encoded[at + 4])
    return Description("jpeg")
