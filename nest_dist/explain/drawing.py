"""One sheet for a picture: attention, paths through the tree of blocks, activation maps."""

from collections.abc import Sequence

import cv2
import numpy as np

from nest_dist.base import picture_grid
from nest_dist.explain import gradcat, views
from nest_dist.model import nest
from nest_dist.train.augment import jitter

SIDE = 224  # of a picture on the sheet, in pixels; a larger image keeps its own side
DIMMED = 0.35  # brightness of what is outside the leaf
OPAQUE = 0.6  # of a map over its picture, where it is strongest
# RGB, first level first: the leaf stands out, the blocks around it fade.
OUTLINES = ((255, 64, 64), (255, 176, 0), (255, 240, 96), (255, 255, 255))
FOR, AGAINST, BRIGHT = (255, 48, 32), (48, 96, 255), (255, 214, 64)


def sheet(
    image: np.ndarray, seen: views.Views, model: nest.NesT, names: Sequence[str], caption: str
) -> np.ndarray:
    """A sheet uint8 [H', W', 3] of one image.

    The first row has the image and the attention at each level. Each column below belongs to a
    class: the path that GradCAT finds, and the class activation map, red for the class and blue
    against it, on one scale for all classes.

    Args:
        image: uint8 [H, W, C], as the model sees it.
        seen: views of this image alone.
    """
    (H, W), (classes, paths) = image.shape[:2], (seen.gradcat.classes[0], seen.gradcat.path[0])
    scale = max(1, round(SIDE / max(H, W)))
    large = _enlarged(image, scale)
    first = [picture_grid.Cell(large, [caption, "as the model sees it"])]
    for level, received in enumerate(seen.attention):
        blocks = "x".join(map(str, model.geometry().grids[level]))
        lines = [
            f"attention, level {level + 1}",
            f"in {blocks} blocks, up to {received.max():.1f}x",
        ]
        strength = _over(received[0] / max(float(received.max()), 1e-9), large)
        first.append(picture_grid.Cell(_tinted(large, strength, BRIGHT), lines))
    traced, mapped = [], []
    reach = max(float(np.abs(seen.activation).max()), 1e-9)
    for label, path, activation in zip(classes, paths, seen.activation[0], strict=True):
        name, share = names[label], f"{seen.probabilities[0, label]:.1%}"
        lines = [f"{share} {name}", "GradCAT: block of each level"]
        traced.append(picture_grid.Cell(_path(large, model, path, scale), lines))
        strength = _over(activation / reach, large)
        colours = np.where(strength[..., None] > 0, FOR, AGAINST)
        reached = f"activation map, {activation.min():+.1f} to {activation.max():+.1f}"
        lines = [f"logit {activation.mean():+.1f} {name}", reached]
        mapped.append(picture_grid.Cell(_tinted(large, np.abs(strength), colours), lines))
    columns = max(len(first), len(classes))
    blank = picture_grid.Cell(np.full((1, 1, 3), picture_grid.GREY, np.uint8), [])
    rows = [row + [blank] * (columns - len(row)) for row in (first, traced, mapped)]
    return picture_grid.draw(rows, large.shape[:2])


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """RGB with visible pixels, uint8 [scale * H, scale * W, 3]."""
    if image.shape[-1] == 1:
        image = np.repeat(image, 3, axis=-1)
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def _path(large: np.ndarray, model: nest.NesT, path: np.ndarray, scale: int) -> np.ndarray:
    """The image, dim outside the leaf, with an outline for the block of each level."""
    boxes = [gradcat.box(model, level, int(block)) for level, block in enumerate(path)]
    drawn = (large * DIMMED).astype(np.uint8)
    for level, box in reversed(list(enumerate(boxes))):
        # Each inside the one around it, so that shared borders stay visible.
        inset = 3 * (len(boxes) - 1 - level) + 1
        left, top = scale * box.left + inset, scale * box.top + inset
        right, bottom = left + scale * box.width - 2 * inset, top + scale * box.height - 2 * inset
        if level == 0:
            drawn[top:bottom, left:right] = large[top:bottom, left:right]
        colour = OUTLINES[min(level, len(OUTLINES) - 1)]
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, 2)
    return drawn


def _over(values: np.ndarray, large: np.ndarray) -> np.ndarray:
    """Values [H, W] of tokens, interpolated over the pixels of the enlarged image."""
    size = large.shape[1], large.shape[0]
    return cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)


def _tinted(
    large: np.ndarray, strength: np.ndarray, colour: np.ndarray | tuple[int, int, int]
) -> np.ndarray:
    """The image in grey, mixed with a colour by a strength in [0, 1]."""
    grey = large @ np.array(jitter.GREY_WEIGHTS)
    share = OPAQUE * np.clip(strength, 0, 1)[..., None]
    return np.round(0.8 * (1 - share) * grey[..., None] + share * np.asarray(colour)).astype(
        np.uint8
    )
