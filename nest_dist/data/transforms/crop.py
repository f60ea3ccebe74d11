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
Side = typing.Annotated[int | tuple[int, int], Within(1)]


@settings.frozen
class _Sized(decode.Decoding):
    """A transform that also decodes.

    Attributes:
        side: of the resulting square, or height and width of the result, in pixels.
    """

    side: Side

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return _both(self.side)

    def output(self, image: batch.ImageSpec) -> batch.ImageSpec:
        return batch.ImageSpec(*self.size, self.decoded_channels(image))


@settings.register
class RandomResizedCrop(_Sized):
    """A random rectangle of the picture, resized.

    Without `antialias` the resizing is bilinear, as in the official pipeline.

    Attributes:
        area: smallest and largest share of the picture, in (0, 1].
        aspect: smallest and largest width / height, times that of the result.
        sampling: how the rectangle is drawn. The official pipeline draws as TensorFlow does, which
            favours small ones; timm draws the area evenly. With area 0.05 to 1 of a picture of
            375 x 500, the mean area is 0.34 and 0.42.
        antialias: whether each pixel is the mean of those that it replaces. A large JPEG is then
            decoded at a half, quarter or eighth of its sides.
        rounding: of values between two bytes; the official pipeline cuts them off.
    """

    area: Range
    aspect: Range = (3 / 4, 4 / 3)
    sampling: typing.Literal["tensorflow", "timm"] = "tensorflow"
    antialias: bool = False
    rounding: typing.Literal["nearest", "down"] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.interval("RandomResizedCrop.area", self.area, 0, 1)
        checks.interval("RandomResizedCrop.aspect", self.aspect, 0)

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [*size, C]; of a JPEG little beside the rectangle is decoded.

        Raises:
            Undecodable: if the bytes are cut short, altered or no picture.
        """
        smallest = self.size if self.antialias else None
        pixels = decode.cut(image, lambda H, W: self.rectangle(H, W, rng), self, smallest)
        return resized(pixels, self.size, self.antialias, self.rounding)

    def rectangle(self, H: int, W: int, rng: np.random.Generator) -> decode.Rectangle:
        """Top, left, height and width of the rectangle in a picture of [H, W]."""
        draw = _as_tensorflow if self.sampling == "tensorflow" else _as_timm
        height, width = self.size
        flattest, widest = (width / height * ratio for ratio in self.aspect)
        return draw(H, W, self.area, (flattest, widest), rng)


@settings.register
class ResizedCentreCrop(_Sized):
    """The middle of the picture, after resizing its shorter side.

    Attributes:
        shorter_side: of the picture after resizing, at least `side`; the official one is
            256 / 224 of `side`. Two numbers are height and width of the smallest picture that
            covers them.
        antialias: see `RandomResizedCrop`.
    """

    shorter_side: Side
    antialias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for covered, side in zip(_both(self.shorter_side), self.size, strict=True):
            checks.in_range("ResizedCentreCrop.shorter_side", covered, side)

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [*size, C]; `rng` is not used."""
        if self.antialias:
            return resized(decode.cut(image, self.rectangle, self, self.size), self.size, True)
        pixels = decode.pixels(image, self)
        return resized_centre(pixels, self._ratio(*pixels.shape[:2]), self.size)

    def rectangle(self, H: int, W: int) -> decode.Rectangle:
        """Top, left, height and width of what is resized, in a picture of [H, W]."""
        ratio = self._ratio(H, W)
        height, width = (round(side / ratio) for side in self.size)
        height, width = min(H, max(1, height)), min(W, max(1, width))
        return (H - height) // 2, (W - width) // 2, height, width

    def _ratio(self, H: int, W: int) -> float:
        """Length after resizing over length before."""
        height, width = _both(self.shorter_side)
        return max(height / H, width / W)


@settings.register
class PaddedCrop(_Sized):
    """Zeros around the picture, then a random rectangle of the result.

    Attributes:
        padding: pixels of zeros around the picture, after a smaller one was padded to `side`.
    """

    padding: typing.Annotated[int, Within(0, 4096)]

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [*size, C]."""
        padded = _pad(decode.pixels(image, self), self.size, self.padding)
        (H, W, _), (height, width) = padded.shape, self.size
        top, left = rng.integers((H - height + 1, W - width + 1))
        return padded[top : top + height, left : left + width]


@settings.register
class CentrePad(_Sized):
    """The picture in the middle of zeros."""

    def __call__(self, image: batch.Stored, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [*size, C]; `rng` is not used."""
        return _pad(decode.pixels(image, self), self.size, 0)


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


def resized(
    image: np.ndarray,
    size: tuple[int, int],
    antialias: bool,
    rounding: typing.Literal["nearest", "down"] = "nearest",
) -> np.ndarray:
    """A uint8 image [*size, C]: bilinear, after means where it becomes smaller if `antialias`."""
    (H, W, C), (height, width) = image.shape, size
    if rounding == "down":
        # The division and the product are the official ones.
        image = image.astype(np.float32) / 255
    if antialias:
        image = _means(image, (min(H, height), min(W, width)))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if rounding == "down":
        image = (image * 255).astype(np.uint8)
    return image.reshape(height, width, C)


def _means(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each pixel of the result is the mean of those that it covers; neither side grows."""
    height, width = size
    parts = [
        cv2.resize(image[..., first : first + 4], (width, height), interpolation=cv2.INTER_AREA)
        for first in range(0, image.shape[2], 4)  # OpenCV takes no more channels at once
    ]
    return np.concatenate([part.reshape(height, width, -1) for part in parts], axis=2)


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


def _both(side: int | tuple[int, int]) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _pad(image: np.ndarray, size: tuple[int, int], padding: int) -> np.ndarray:
    (H, W, _), (height, width) = image.shape, size
    if max(H - height, W - width) > 0:
        side = height if height == width else f"{height} x {width}"
        raise failures.BadInput(
            f"a picture has {H} x {W} pixels, more than the crop's side of {side}; raise the side "
            "or put a resizing transform before it."
        )
    rows, columns = height - H, width - W
    above, left = rows // 2, columns // 2
    return np.pad(
        image,
        (
            (above + padding, rows - above + padding),
            (left + padding, columns - left + padding),
            (0, 0),
        ),
    )
