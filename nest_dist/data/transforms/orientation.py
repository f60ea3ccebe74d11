"""The orientation that a camera has stored with a picture, and the picture turned upright.

Source: Exif 2.32, tag 0x0112; PNG, eXIf chunk; WebP container, EXIF chunk.
"""

import dataclasses
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from nest_dist.data import batch
from nest_dist.data.transforms import jpeg, tiff

# Top, left, height and width in pixels.
Rectangle = tuple[int, int, int, int]

EXIF = b"Exif\0\0"
APP1 = 0xE1
PNG = b"\x89PNG\r\n\x1a\n"
FIRST_CHUNK_END = 33  # of a PNG: its mark of 8 bytes, and the header in 25


@dataclasses.dataclass(frozen=True)
class Orientation:
    """How the stored picture becomes the upright one: transposed first, then mirrored."""

    transposes: bool = False  # whether rows become columns
    flips_rows: bool = False  # whether top and bottom are then exchanged
    flips_columns: bool = False  # whether left and right are then exchanged

    def sides(self, H: int, W: int) -> tuple[int, int]:
        """Height and width of one picture from those of the other."""
        return (W, H) if self.transposes else (H, W)

    def upright(self, image: np.ndarray) -> np.ndarray:
        """The upright image [H, W, C] of the stored one."""
        if self.transposes:
            image = image.swapaxes(0, 1)
        rows, columns = (-1 if flips else 1 for flips in (self.flips_rows, self.flips_columns))
        return np.ascontiguousarray(image[::rows, ::columns])

    def stored(self, rectangle: Rectangle, H: int, W: int) -> Rectangle:
        """The rectangle of the stored picture for one of the upright picture of [H, W]."""
        top, left, height, width = rectangle
        if self.flips_rows:
            top = H - top - height
        if self.flips_columns:
            left = W - left - width
        return (left, top, width, height) if self.transposes else (top, left, height, width)


UPRIGHT = Orientation()
# By the number in EXIF, from 1.
BY_NUMBER = (
    UPRIGHT,
    Orientation(flips_columns=True),
    Orientation(flips_rows=True, flips_columns=True),
    Orientation(flips_rows=True),
    Orientation(transposes=True),
    Orientation(transposes=True, flips_columns=True),
    Orientation(transposes=True, flips_rows=True, flips_columns=True),
    Orientation(transposes=True, flips_rows=True),
)


def by_number(number: int) -> Orientation:
    """That of a number in EXIF; upright for one that has no meaning."""
    return BY_NUMBER[number - 1] if 1 <= number <= len(BY_NUMBER) else UPRIGHT


def of(encoded: batch.Encoded) -> Orientation:
    """The orientation of a JPEG, PNG or WebP; upright where none is stored.

    A TIFF is upright: its orientation belongs to the format, and every decoder turns it.
    """
    for directory in _directories(memoryview(encoded)):
        for number in tiff.entries(directory, (tiff.ORIENTATION,)).get(tiff.ORIENTATION, ())[:1]:
            return by_number(number)
    return UPRIGHT


def copied(encoded: batch.Encoded, png: bytes) -> bytes:
    """The PNG with the orientation that another picture has stored, if it has one."""
    number = BY_NUMBER.index(of(encoded)) + 1
    if number == 1:
        return png
    entry = struct.pack("<HHIHH", tiff.ORIENTATION, tiff.SHORT, 1, number, 0)
    content = b"eXIf" + b"II*\x00" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:FIRST_CHUNK_END] + chunk + png[FIRST_CHUNK_END:]


def _directories(encoded: memoryview) -> Iterator[memoryview]:
    """What holds EXIF, which begins like a TIFF."""
    head = bytes(encoded[:12])
    if head[:2] == jpeg.START:
        for marker, at in jpeg.segments(encoded):
            begin = at + 4 + len(EXIF)
            if marker == APP1 and bytes(encoded[at + 4 : begin]) == EXIF:
                yield encoded[begin : at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")]
    elif head[:8] == PNG:
        yield from _chunks(encoded, b"eXIf", 8, length_first=True)
    elif head[:4] == b"RIFF" and head[8:] == b"WEBP":
        yield from _chunks(encoded, b"EXIF", 12, length_first=False)


def _chunks(
    encoded: memoryview, wanted: bytes, at: int, *, length_first: bool
) -> Iterator[memoryview]:
    """The contents of the chunks of a name in a PNG, or in a WebP."""
    while at + 8 <= len(encoded):
        first, second = bytes(encoded[at : at + 4]), bytes(encoded[at + 4 : at + 8])
        if length_first:
            name, length = second, int.from_bytes(first, "big")
            following = at + 12 + length  # a checksum follows
        else:
            name, length = first, int.from_bytes(second, "little")
            following = at + 8 + length + length % 2
        if name == wanted:
            content = encoded[at + 8 : at + 8 + length]
            yield content[len(EXIF) :] if bytes(content[: len(EXIF)]) == EXIF else content
        at = following
