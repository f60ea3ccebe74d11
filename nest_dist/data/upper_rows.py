"""The upper rows of a JPEG, decoded without those below: 6% less work for random crops.

A JPEG is coded from top to bottom. Told of fewer rows, a decoder stops there, and the pixels are
the same bit by bit.
"""

import dataclasses

import numpy as np

from nest_dist.data import decode

# Smooth chroma takes a row from below, so the last row decoded would differ; this is ample.
MARGIN_ROWS = 16
SEQUENTIAL = (0xC0, 0xC1)  # a progressive picture is coded from top to bottom many times over
AHEAD_BYTES = 64  # more than a decoder looks ahead
RESTART_INTERVAL, SCAN, END = 0xDD, 0xDA, b"\xff\xd9"


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """A JPEG of one scan.

    Attributes:
        encoded: all of it.
        frame: where its frame header is.
        scan: where its scan begins.
    """

    encoded: decode.Encoded
    frame: int
    scan: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        height, width = (self.encoded[self.frame + at : self.frame + at + 2] for at in (5, 7))
        return int.from_bytes(height, "big"), int.from_bytes(width, "big")

    def pixels(self, rows: int) -> np.ndarray:
        """A uint8 image [H, W, 3] of which the first `rows` rows are right; H is at least that.

        Raises:
            Undecodable: as of `decode.pixels`.
        """
        told = rows + MARGIN_ROWS
        part = bytearray(self.encoded)
        # Data without an end is ignored in silence, before an end it is called corrupt. Where the
        # file itself has none it is cut short, and must be found to be.
        end = part.rfind(END, self.scan)
        if end < 0 or told >= self.sides[0]:
            return decode.pixels(self.encoded)
        part[end:] = bytes(AHEAD_BYTES)
        part[self.frame + 5 : self.frame + 7] = told.to_bytes(2, "big")
        return decode.pixels(part)


def opened(image: decode.Encoded | np.ndarray) -> Jpeg | None:
    """The JPEG, or None if the picture is none or is coded in another way."""
    if isinstance(image, np.ndarray) or bytes(image[:2]) != b"\xff\xd8":
        return None
    frame = 0
    for marker, at in decode.jpeg_segments(image):
        if marker == RESTART_INTERVAL:
            return None
        if marker in decode.JPEG_FRAMES:
            if marker not in SEQUENTIAL:
                return None
            frame = at
        if marker == SCAN:
            found = Jpeg(image, frame, at)
            all_channels = frame > 0 and image[at + 4] == image[frame + 9]
            return found if all_channels and min(found.sides) > 0 else None
    return None
