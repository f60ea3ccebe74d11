"""Pages of pictures with a few words under each, as PNG or JPEG."""

import math
import typing
from collections.abc import Sequence

import cv2
import numpy as np

PAGE_WIDTH = 1024
# A smaller picture is enlarged, so that its words have room.
SMALLEST_SIDE = 96
GAP = 4
LINE_HEIGHT = 16
TEXT_SIZE = 12
GREY, WHITE = (48, 48, 48), (255, 255, 255)
GREEN, RED = (96, 224, 96), (255, 112, 112)


class Caption(typing.NamedTuple):
    """What stands under a picture; `right` colours the last line green or red."""

    lines: Sequence[str]
    right: bool | None = None


def room(height: int, width: int) -> int:
    """How many pictures of this size make a page: at most 64, at least 4."""
    columns = PAGE_WIDTH // (width * _scale(height, width) + GAP)
    return min(max(columns, 2), 8) ** 2


def page(images: np.ndarray, captions: Sequence[Caption]) -> np.ndarray:
    """Pictures side by side, each over its words: uint8 [H', W', 3].

    Args:
        images: uint8 [N, H, W, C] with 1 or 3 channels.
        captions: one for each.
    """
    N, H, W, _ = images.shape
    scale = _scale(H, W)
    columns = math.ceil(math.sqrt(N))
    text_height = LINE_HEIGHT * max(len(caption.lines) for caption in captions)
    height, width = H * scale + text_height + GAP, W * scale + GAP
    sheet = np.full((math.ceil(N / columns) * height + GAP, columns * width + GAP, 3), GREY[0])
    sheet = sheet.astype(np.uint8)
    font = cv2.FontFace("sans")
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        top, left = GAP + index // columns * height, GAP + index % columns * width
        enlarged = image.repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + H * scale, left : left + W * scale] = enlarged
        words = np.full((text_height, W * scale, 3), GREY[0], np.uint8)
        for number, line in enumerate(caption.lines):
            is_last = number == len(caption.lines) - 1
            colour = WHITE if caption.right is None or not is_last else _colour(caption.right)
            place = (1, (number + 1) * LINE_HEIGHT - GAP)
            cv2.putText(words, line, place, colour, font, TEXT_SIZE)
        sheet[top + H * scale : top + H * scale + text_height, left : left + W * scale] = words
    return sheet


def encoded(sheet: np.ndarray, lossless: bool) -> bytes:
    """A page uint8 [H, W, 3] as PNG, or as JPEG, which is a tenth of it for photographs."""
    found, data = cv2.imencode(".png" if lossless else ".jpg", sheet[..., ::-1])
    assert found
    return data.tobytes()


def _scale(height: int, width: int) -> int:
    return math.ceil(SMALLEST_SIDE / min(height, width))


def _colour(right: bool) -> tuple[int, int, int]:
    return GREEN if right else RED
