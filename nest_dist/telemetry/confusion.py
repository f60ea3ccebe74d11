"""Pictures of a confusion matrix, and of examples that were confused."""

from collections.abc import Sequence

import cv2
import numpy as np

from nest_dist.base import picture_grid
from nest_dist.telemetry import pictures

MOST_CLASSES = 32  # in a matrix that can be read
CELL, SMALLEST_CELL, LARGEST_SIDE = 44, 26, 960  # pixels
MARGIN, GAP = 150, 6
RIGHT, WRONG = (33, 102, 172), (178, 24, 43)  # RGB, of a share of 1
BLACK, WHITE, GREY = (40, 40, 40), (255, 255, 255), (215, 215, 215)


def draw_matrix(counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A matrix as uint8 [H, W, 3]: rows are true classes, columns predicted ones.

    Numbers are per cent of a row; blue is right, red is wrong.

    Args:
        counts: integers [n + 1, n + 1]; the last row and column stand for all other classes, and
            are left out if they are empty.
    """
    titles = [*names, "others"]
    if not counts[-1].any() and not counts[:, -1].any():
        counts, titles = counts[:-1, :-1], list(names)
    n = len(titles)
    cell = min(CELL, max(SMALLEST_CELL, LARGEST_SIDE // n))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    top, left, side = MARGIN, MARGIN, n * cell
    canvas = np.full((top + side + GAP, left + side + GAP, 3), 255, np.uint8)
    _column_titles(canvas[:top, left:], titles, cell)
    for row in range(n):
        y = top + row * cell
        title = _fitting(titles[row], left - 2 * GAP)
        pictures.write(
            canvas, title, (left - GAP - pictures.width_of(title), _baseline(y, cell)), BLACK
        )
        for column in range(n):
            x = left + column * cell
            share = float(shares[row, column])
            colour = RIGHT if row == column else WRONG
            # A share of a few per cent must be seen: the root lifts it.
            mixed = np.array(WHITE) + np.sqrt(share) * (np.array(colour) - np.array(WHITE))
            canvas[y : y + cell, x : x + cell] = mixed.round()
            if counts[row, column]:
                text = _per_cent(share)
                middle = x + (cell - pictures.width_of(text)) // 2
                bright = WHITE if share > 0.3 else BLACK
                pictures.write(canvas, text, (middle, _baseline(y, cell)), bright)
    for line in range(n + 1):
        at = line * cell
        cv2.line(canvas, (left + at, top), (left + at, top + side), GREY, 1)
        cv2.line(canvas, (left, top + at), (left + side, top + at), GREY, 1)
    for line, text in enumerate(("rows: true", "columns: predicted", "numbers: % of the row")):
        pictures.write(canvas, text, (GAP, 22 + 20 * line), BLACK)
    return canvas


def draw_pairs(rows: Sequence[Sequence[tuple[np.ndarray, pictures.Caption]]]) -> np.ndarray:
    """Examples of confused classes as uint8 [H, W, 3]: a row for each pair, the longest first.

    Args:
        rows: images uint8 [H, W, 1 or 3] of one size, with their captions.
    """
    H, W, _ = rows[0][0][0].shape
    scale = pictures.scale(H, W)
    cells = [
        [
            picture_grid.Cell(pictures.enlarged(image, scale), caption.lines, pictures.RED)
            for image, caption in row
        ]
        for row in rows
    ]
    return picture_grid.draw(cells, (H * scale, W * scale))


def _column_titles(area: np.ndarray, titles: Sequence[str], cell: int) -> None:
    """Writes the titles upwards, each over its column."""
    height, width, _ = area.shape
    upright = np.full((width, height, 3), 255, np.uint8)
    for number, title in enumerate(titles):
        text = _fitting(title, height - 2 * GAP)
        pictures.write(upright, text, (GAP, _baseline(number * cell, cell)), BLACK)
    area[:] = np.rot90(upright)[:, :width]


def _per_cent(share: float) -> str:
    if share < 0.005:
        return "<1"
    return f"{100 * share:.0f}"


def _baseline(y: int, cell: int) -> int:
    return y + (cell + pictures.TEXT_SIZE) // 2 - 2


def _fitting(text: str, pixels: int) -> str:
    """The text, cut off where it is wider."""
    text = text.encode(errors="backslashreplace").decode()  # OpenCV crashes at a lone surrogate
    while len(text) > 1 and pictures.width_of(text) > pixels:
        text = text[:-2] + "…"
    return text
