"""Where the picture is looked at: crops, paddings and flips of uint8 images [H, W, C]."""

import dataclasses
import math

import cv2
import gin
import numpy as np

from nest_dist.base import checks, failures
from nest_dist.data import decode, partial_jpeg

ATTEMPTS = 10


@gin.register
@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random rectangle of the picture, brought to a square.

    The resizing is bilinear without smoothing, as in the official pipeline.

    Attributes:
        side: of the square, in pixels.
        area: smallest and largest share of the picture, drawn evenly; in (0, 1].
        aspect: smallest and largest width / height, drawn evenly on a logarithmic scale.
    Source: arXiv 1409.4842, section 6.
    """

    side: int
    area: tuple[float, float]
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("RandomResizedCrop.side", self.side, 1)
        checks.interval("RandomResizedCrop.area", self.area, 0, 1)
        checks.interval("RandomResizedCrop.aspect", self.aspect, 0)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]."""
        H, W, _ = image.shape
        top, left, height, width = self.rectangle(H, W, rng)
        return _resize(image[top : top + height, left : left + width], self.side)

    def decoded(self, picture: decode.Encoded | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same from a picture that is not yet decoded, of which the rest need not be.

        Raises:
            Undecodable: if the bytes are cut short, altered or no picture.
        """
        jpeg = partial_jpeg.opened(picture)
        if jpeg is None or not jpeg.in_parts:
            return self(decode.pixels(picture), rng)
        return _resize(jpeg.pixels(*self.rectangle(*jpeg.sides, rng)), self.side)

    def rectangle(self, H: int, W: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of the cut, for a picture of [H, W].

        A rectangle that does not fit is drawn again; after some attempts it is the largest one
        in the middle whose aspect is allowed.
        """
        low, high = self.area
        flat, wide = math.log(self.aspect[0]), math.log(self.aspect[1])
        for _ in range(ATTEMPTS):
            size, shape, down, right = rng.random(4)
            area = (low + (high - low) * size) * H * W
            aspect = math.exp(flat + (wide - flat) * shape)
            height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < height <= H and 0 < width <= W:
                return int(down * (H - height + 1)), int(right * (W - width + 1)), height, width
        aspect = min(max(W / H, self.aspect[0]), self.aspect[1])
        height, width = min(H, round(W / aspect)), min(W, round(H * aspect))
        return (H - height) // 2, (W - width) // 2, height, width


@gin.register
@dataclasses.dataclass(frozen=True)
class ResizedCentreCrop:
    """The picture brought to a length of its shorter side, and the square in its middle.

    Attributes:
        side: of the square, in pixels.
        shorter_side: of the picture after resizing, at least `side`; the official one is
            256 / 224 of `side`.
    """

    side: int
    shorter_side: int

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("ResizedCentreCrop.side", self.side, 1)
        checks.in_range("ResizedCentreCrop.shorter_side", self.shorter_side, self.side)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]; `rng` is not used."""
        ratio = self.shorter_side / min(image.shape[:2])
        return resized_centre(image, ratio, (self.side, self.side))


@gin.register
@dataclasses.dataclass(frozen=True)
class PaddedCrop:
    """Zeros around the picture, then a square cut out at a random place.

    Attributes:
        side: of the square, in pixels.
        padding: pixels of zeros around the picture, after a smaller one was brought to `side`.
    """

    side: int
    padding: int

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("PaddedCrop.side", self.side, 1)
        checks.in_range("PaddedCrop.padding", self.padding, 0)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]."""
        padded = _pad(image, self.side, self.padding)
        H, W, _ = padded.shape
        top, left = rng.integers((H - self.side + 1, W - self.side + 1))
        return padded[top : top + self.side, left : left + self.side]


@gin.register
@dataclasses.dataclass(frozen=True)
class CentrePad:
    """The picture in the middle of a square of zeros.

    Attributes:
        side: of the square, in pixels.
    """

    side: int

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("CentrePad.side", self.side, 1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image [side, side, C]; `rng` is not used."""
        return _pad(image, self.side, 0)


@gin.register
@dataclasses.dataclass(frozen=True)
class Flip:
    """Left becomes right with the given chance.

    Attributes:
        probability: in [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("Flip.probability", self.probability, 0, 1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image of the same shape."""
        if rng.random() >= self.probability:
            return image
        return cv2.flip(image, 1).reshape(image.shape)


def resized_centre(image: np.ndarray, ratio: float, sides: tuple[int, int]) -> np.ndarray:
    """The middle of a picture after both its sides were multiplied by a ratio.

    Args:
        image: uint8 [H, W, C].
        ratio: length after resizing over length before.
        sides: height and width that are cut out.
    """
    H, W, C = image.shape
    height, width = sides
    resized = round(H * ratio), round(W * ratio)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    down, right = H / resized[0], W / resized[1]
    # One look at each pixel of the result instead of resizing what is then cut off.
    matrix = np.array(
        [
            [right, 0, (left + 0.5) * right - 0.5],
            [0, down, (top + 0.5) * down - 0.5],
        ]
    )
    cut = cv2.warpAffine(
        image,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return cut.reshape(height, width, C)


def _resize(image: np.ndarray, side: int) -> np.ndarray:
    resized = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(side, side, image.shape[2])


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
