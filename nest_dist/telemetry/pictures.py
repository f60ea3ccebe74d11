"""Pages of pictures with a few words under each, as PNG or JPEG."""

import math
import typing
from collections.abc import Sequence

import cv2
import numpy as np

from nest_dist.base import picture_grid

PAGE_WIDTH = 1024
# A smaller picture is enlarged, so that its caption fits.
SMALLEST_SIDE = 96
GREEN, RED = (96, 224, 96), (255, 112, 112)
TEXT_SIZE = 13


class Caption(typing.NamedTuple):
    """The lines under a picture; `right` colours the last line green or red."""

    lines: Sequence[str]
    right: bool | None = None


def room(height: int, width: int) -> int:
    """The number of pictures of this size on a page: at most 64, at least 4."""
    columns = PAGE_WIDTH // (width * scale(height, width) + picture_grid.GAP)
    return min(max(columns, 2), 8) ** 2


def scale(height: int, width: int) -> int:
    """By which a small picture is enlarged."""
    return math.ceil(SMALLEST_SIDE / min(height, width))


def page(images: np.ndarray, captions: Sequence[Caption]) -> np.ndarray:
    """Pictures uint8 [N, H, W, 1 or 3] side by side, over their captions: uint8 [H', W', 3]."""
    N, H, W, _ = images.shape
    times = scale(H, W)
    columns = math.ceil(math.sqrt(N))
    cells = [
        picture_grid.Cell(
            enlarged(image, times),
            caption.lines,
            {None: picture_grid.WHITE, True: GREEN, False: RED}[caption.right],
        )
        for image, caption in zip(images, captions, strict=True)
    ]
    rows = [cells[start : start + columns] for start in range(0, N, columns)]
    return picture_grid.draw(rows, (H * times, W * times))


def enlarged(image: np.ndarray, times: int) -> np.ndarray:
    """A small picture with visible pixels."""
    return image.repeat(times, axis=0).repeat(times, axis=1)


def write(
    canvas: np.ndarray,
    text: str,
    at: tuple[int, int],
    colour: tuple[int, int, int],
    size: int = TEXT_SIZE,
) -> None:
    """Writes a text into a canvas uint8 [H, W, 3]; `at` is the left end of its base line."""
    cv2.putText(canvas, text, at, colour, cv2.FontFace("sans"), size)


def width_of(text: str) -> int:
    """The pixels that `write` takes for a text."""
    (_, _, width, _) = cv2.getTextSize((1, 1), text, (0, 0), cv2.FontFace("sans"), TEXT_SIZE)
    return int(width)


def encoded(sheet: np.ndarray, lossless: bool) -> bytes:
    """A page uint8 [H, W, 3] as PNG, or as JPEG, which is a tenth of it for photographs."""
    done, data = cv2.imencode(".png" if lossless else ".jpg", sheet[..., ::-1])
    assert done
    return data.tobytes()
