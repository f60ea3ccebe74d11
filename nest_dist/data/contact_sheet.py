"""Contact sheets: pictures in rows and columns with captions, to be looked at."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 192
GAP = 8
LINE = 18
FONT_SCALE = 0.42
INK = (20, 20, 20)
PAPER = 255


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture, uint8 [H, W, 1 or 3], and what is written under it."""

    image: np.ndarray
    caption: str


def draw(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> np.ndarray:
    """A uint8 image [H, W, 3].

    Args:
        titles: of the columns.
        rows: a cell for each title.
    """
    height = GAP + LINE + len(rows) * (SIDE + LINE + GAP)
    sheet = np.full((height, GAP + len(titles) * (SIDE + GAP), 3), PAPER, np.uint8)
    for column, title in enumerate(titles):
        left = GAP + column * (SIDE + GAP)
        _write(sheet, title, left, GAP)
        for row, cells in enumerate(rows):
            top = GAP + LINE + row * (SIDE + LINE + GAP)
            fitted = _fitted(cells[column].image)
            H, W, _ = fitted.shape
            down, right = top + (SIDE - H) // 2, left + (SIDE - W) // 2
            sheet[down : down + H, right : right + W] = fitted
            _write(sheet, cells[column].caption, left, top + SIDE)
    return sheet


def _fitted(image: np.ndarray) -> np.ndarray:
    """The whole picture in a square of `SIDE`; small ones with visible pixels."""
    H, W, C = image.shape
    ratio = SIDE / max(H, W)
    size = max(1, round(W * ratio)), max(1, round(H * ratio))
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_NEAREST
    fitted = cv2.resize(image, size, interpolation=how).reshape(size[1], size[0], C)
    return np.broadcast_to(fitted, (*fitted.shape[:2], 3))


def _write(sheet: np.ndarray, text: str, left: int, top: int) -> None:
    known = text.encode("ascii", "replace").decode()
    while cv2.getTextSize(known, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, 1)[0][0] > SIDE:
        known = known.rstrip(".")[:-1] + ".."
    place = (left, top + LINE - 5)
    cv2.putText(sheet, known, place, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, INK, 1, cv2.LINE_AA)
