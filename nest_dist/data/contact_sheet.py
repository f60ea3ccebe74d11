"""Contact sheets: a picture after each transform, side by side."""

from collections.abc import Sequence

import cv2
import numpy as np

from nest_dist.base import picture_grid

SIDE = 192


def draw(titles: Sequence[str], rows: Sequence[Sequence[picture_grid.Cell]]) -> np.ndarray:
    """A uint8 image [H, W, 3].

    Args:
        rows: a cell for each title; its picture may have any size.
    """
    grid = [[cell._replace(image=_fitted(cell.image)) for cell in row] for row in rows]
    return picture_grid.draw(grid, (SIDE, SIDE), titles)


def _fitted(image: np.ndarray) -> np.ndarray:
    """The picture resized to fit a square of `SIDE`; small ones with visible pixels."""
    H, W, C = image.shape
    ratio = SIDE / max(H, W)
    size = max(1, round(W * ratio)), max(1, round(H * ratio))
    interpolation = cv2.INTER_AREA if ratio < 1 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=interpolation).reshape(size[1], size[0], C)
