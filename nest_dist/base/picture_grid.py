"""A grid of captioned pictures in one image."""

import typing
from collections.abc import Sequence

import cv2
import numpy as np

GAP = 4
LINE_HEIGHT = 16
TEXT_SIZE = 12
GREY, WHITE = 48, (255, 255, 255)


class Cell(typing.NamedTuple):
    """One picture, uint8 [H, W, 1 or 3], over the lines of its caption."""

    image: np.ndarray  # at most as large as the cells of the grid
    lines: Sequence[str]  # cut off at the width of the cell
    last_colour: tuple[int, int, int] = WHITE  # of the last line, RGB


def draw(
    rows: Sequence[Sequence[Cell]], sides: tuple[int, int], titles: Sequence[str] = ()
) -> np.ndarray:
    """The grid as a uint8 image [H', W', 3].

    Args:
        rows: cells from left to right; the last row may be shorter.
        sides: height and width of a picture; smaller ones are centred.
    """
    H, W = sides
    text_height = LINE_HEIGHT * max(len(cell.lines) for row in rows for cell in row)
    row_height, column_width = H + text_height + GAP, W + GAP
    first_row = GAP + (LINE_HEIGHT if titles else 0)
    shape = (first_row + len(rows) * row_height, GAP + len(rows[0]) * column_width, 3)
    grid = np.full(shape, GREY, np.uint8)
    for column, title in enumerate(titles):
        left = GAP + column * column_width
        _write(grid[GAP:first_row, left : left + W], [title], WHITE)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            top, left = first_row + row * row_height, GAP + column * column_width
            height, width, _ = cell.image.shape
            above, before = top + (H - height) // 2, left + (W - width) // 2
            grid[above : above + height, before : before + width] = cell.image
            text = grid[top + H : top + H + text_height, left : left + W]
            _write(text, cell.lines, cell.last_colour)
    return grid


def _write(area: np.ndarray, lines: Sequence[str], last_colour: tuple[int, int, int]) -> None:
    """Writes lines of text to an area of the grid, the last one in a colour of its own."""
    font = cv2.FontFace("sans")
    for number, line in enumerate(lines):
        colour = last_colour if number == len(lines) - 1 else WHITE
        text = line.encode(errors="backslashreplace").decode()  # OpenCV crashes at a lone surrogate
        cv2.putText(area, text, (1, (number + 1) * LINE_HEIGHT - GAP), colour, font, TEXT_SIZE)
