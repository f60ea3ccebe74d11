"""Crops and paddings, which also decode, and flips: uint8 images [H, W, C]."""

import math
import typing

import cv2
import numpy as np

from nest_dist.base import checks, failures, settings
from nest_dist.base.checks import Within
from nest_dist.data import batch
from nest_dist.data.transforms import decode

Range = tuple[float, float]


@settings.frozen
class _ToSquare:
    """A transform that also decodes.

    Attributes:
        side: of the resulting square, in pixels.
    """

    side: typing.Annotated[int, Within(1)]

    def output(self, image: batch.ImageSpec) -> batch.ImageSpec:
        return batch.ImageSpec(self.side, self.side, image.channels)


@settings.register
class RandomResizedCrop(_ToSquare):
    """A random rectangle of the picture, resized to a square.

    The resizing is bilinear without smoothing, as in the official pipeline.

    Attributes:
        area: smallest and largest share of the picture, in (0, 1].
        aspect: smallest and largest width / height.
        sampling: how the rectangle is drawn. The official pipeline draws as TensorFlow does, which
            favours small ones; timm draws the area evenly. With area 0.05 to 1 of a picture of
            375 x 500, the mean area is 0.34 and 0.42.
    """

    area: Range
    aspect: Range = (3 / 4, 4 / 3)
    sampling: typing.Literal["tensorflow", "timm"] = "tensorflow"

    def __post_init__(self) -> None:
        checks.interval("RandomResizedCrop.area", self.area, 0, 1)
        checks.interval("RandomResizedCrop.aspect", self.aspect, 0)

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]; of a JPEG little beside the rectangle is decoded.

        Raises:
            Undecodable: if the bytes are cut short, altered or no picture.
        """
        pixels = decode.cut(image, lambda H, W: self.rectangle(H, W, rng))
        resized = cv2.resize(pixels, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(self.side, self.side, pixels.shape[2])

    def rectangle(self, H: int, W: int, rng: np.random.Generator) -> decode.Rectangle:
        """Top, left, height and width of the rectangle in a picture of [H, W]."""
        draw = _as_tensorflow if self.sampling == "tensorflow" else _as_timm
        return draw(H, W, self.area, self.aspect, rng)


@settings.register
class ResizedCentreCrop(_ToSquare):
    """The square in the middle of the picture, after resizing its shorter side.

    Attributes:
        shorter_side: of the picture after resizing, at least `side`; the official one is
            256 / 224 of `side`.
    """

    shorter_side: int

    def __post_init__(self) -> None:
        checks.in_range("ResizedCentreCrop.shorter_side", self.shorter_side, self.side)

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]; `rng` is not used."""
        pixels = decode.pixels(image)
        ratio = self.shorter_side / min(pixels.shape[:2])
        return resized_centre(pixels, ratio, (self.side, self.side))


@settings.register
class PaddedCrop(_ToSquare):
    """Zeros around the picture, then a random square of the result.

    Attributes:
        padding: pixels of zeros around the picture, after a smaller one was padded to `side`.
    """

    padding: typing.Annotated[int, Within(0)]

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]."""
        padded = _pad(decode.pixels(image), self.side, self.padding)
        H, W, _ = padded.shape
        top, left = rng.integers((H - self.side + 1, W - self.side + 1))
        return padded[top : top + self.side, left : left + self.side]


@settings.register
class CentrePad(_ToSquare):
    """The picture in the middle of a square of zeros."""

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]; `rng` is not used."""
        return _pad(decode.pixels(image), self.side, 0)


@settings.register
class Flip:
    """Mirrors left and right with the given probability.

    Attributes:
        probability: in [0, 1].
    """

    probability: typing.Annotated[float, Within(0, 1)] = 0.5

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image of the same shape."""
        if rng.random() >= self.probability:
            return image
        return cv2.flip(image, 1).reshape(image.shape)

    def output(self, image: batch.ImageSpec) -> batch.ImageSpec:
        return image


def resized_centre(image: np.ndarray, ratio: float, sides: tuple[int, int]) -> np.ndarray:
    """The middle of a picture after resizing both its sides by a ratio.

    Args:
        image: uint8 [H, W, C].
        ratio: length after resizing over length before.
        sides: height and width of the result.
    """
    H, W, C = image.shape
    height, width = sides
    resized = round(H * ratio), round(W * ratio)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    down, right = H / resized[0], W / resized[1]
    # This computes the pixels of the result alone; a resize would compute those outside, too.
    matrix = np.array(
        [
            [right, 0, (left + 0.5) * right - 0.5],
            [0, down, (top + 0.5) * down - 0.5],
        ]
    )
    cropped = cv2.warpAffine(
        image,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cropped.reshape(height, width, C)


def _as_tensorflow(
    H: int, W: int, area: Range, aspect: Range, rng: np.random.Generator
) -> decode.Rectangle:
    """The height is drawn evenly from those that the limits allow for an aspect drawn evenly.

    After 100 failures it is the complete picture.

    Source: `sample_distorted_bounding_box` of TensorFlow; its rectangles never reach the last row
        or column of a side that they do not fill.
    """
    smallest, largest = (share * H * W for share in area)
    for _ in range(100):
        form, size, down, right = rng.random(4)
        ratio = aspect[0] + (aspect[1] - aspect[0]) * form
        highest = min(H, round(math.sqrt(largest / ratio)), math.ceil((W + 0.5) / ratio) - 1)
        lowest = min(round(math.sqrt(smallest / ratio)), highest)
        height = lowest + int(size * (highest - lowest + 1))
        # Rounding may have left the limits by a row.
        height += height * round(height * ratio) < smallest
        height -= height * round(height * ratio) > largest
        width = round(height * ratio)
        if smallest <= height * width <= largest and 0 < height <= H and 0 < width <= W:
            return int(down * (H - height)), int(right * (W - width)), height, width
    return 0, 0, H, W


def _as_timm(
    H: int, W: int, area: Range, aspect: Range, rng: np.random.Generator
) -> decode.Rectangle:
    """The area is drawn evenly, the aspect evenly on a logarithmic scale.

    After 10 failures it is the largest centred rectangle with an allowed aspect.

    Source: arXiv 1409.4842, section 6, as timm and torchvision draw it.
    """
    flat, wide = map(math.log, aspect)
    for _ in range(10):
        size, form, down, right = rng.random(4)
        pixels = (area[0] + (area[1] - area[0]) * size) * H * W
        ratio = math.exp(flat + (wide - flat) * form)
        height, width = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < height <= H and 0 < width <= W:
            return int(down * (H - height + 1)), int(right * (W - width + 1)), height, width
    ratio = min(max(W / H, aspect[0]), aspect[1])
    height, width = min(H, round(W / ratio)), min(W, round(H * ratio))
    return (H - height) // 2, (W - width) // 2, height, width


def _pad(image: np.ndarray, side: int, padding: int) -> np.ndarray:
    H, W, _ = image.shape
    if max(H, W) > side:
        raise failures.BadInput(
            f"a picture has {H} x {W} pixels, more than the crop's side of {side}; raise the side "
            "or put a resizing transform before it."
        )
    rows, columns = side - H, side - W
    above, left = rows // 2, columns // 2
    return np.pad(
        image,
        (
            (above + padding, rows - above + padding),
            (left + padding, columns - left + padding),
            (0, 0),
        ),
    )
