"""RandAugment on uint8 images [H, W, 3], with the operations and levels of the official NesT."""

import typing
from collections.abc import Callable

import cv2
import numpy as np

from nest_dist.base import failures, settings
from nest_dist.base.checks import Within
from nest_dist.data import batch

HIGHEST_MAGNITUDE = 10
GREY = (128, 128, 128)  # fills pixels that a move leaves empty
VALUES = np.arange(256, dtype=np.float32)
# Pillow's SMOOTH; Sharpness interpolates between the picture and its smoothed version.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13

Blend = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
Row = tuple[float, float, float] | np.ndarray  # of an affine matrix


@settings.register
class RandAugment:
    """A few operations, drawn evenly from 16 and applied with a random magnitude.

    Attributes:
        translation: pixels that a picture moves at the highest magnitude.
        operations: in a row; the same one may come twice.
        magnitude: mean of the drawn magnitudes, in [0, 10].
        magnitude_deviation: their standard deviation; draws outside [0, 10] are clipped.
        probability: that an operation is applied, in [0, 1].
        rounding: of values between two bytes in Color and Sharpness; the official code cuts them
            off.
    Source: arXiv 1909.13719; levels as in the official implementation of NesT, except that
        Posterize keeps at least one bit.
    """

    translation: typing.Annotated[int, Within(0)]
    operations: typing.Annotated[int, Within(0)] = 2
    magnitude: typing.Annotated[float, Within(0, HIGHEST_MAGNITUDE)] = 9.0
    magnitude_deviation: typing.Annotated[float, Within(0)] = 0.5
    probability: typing.Annotated[float, Within(0, 1)] = 0.5
    rounding: typing.Literal["nearest", "down"] = "nearest"

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image of the same shape."""
        operations = OPERATIONS if self.rounding == "nearest" else ROUNDING_DOWN
        for name, level, sign in self.choose(rng):
            image = operations[name](image, level, sign, self.translation)
        return image

    def output(self, image: batch.ImageSpec) -> batch.ImageSpec:
        if image.channels != 3:
            raise failures.BadInput(
                f"RandAugment is given {image}, it needs 3 channels; leave it out of the "
                "transforms."
            )
        return image

    def choose(self, rng: np.random.Generator) -> list[tuple[str, float, int]]:
        """The drawn operations, each with its level in [0, 1] and its direction, -1 or 1."""
        draws = rng.random((self.operations, 3))
        levels = rng.normal(self.magnitude, self.magnitude_deviation, self.operations)
        levels = np.clip(levels, 0, HIGHEST_MAGNITUDE) / HIGHEST_MAGNITUDE
        return [
            (_NAMES[int(operation * len(_NAMES))], float(level), 1 if direction < 0.5 else -1)
            for (applied, operation, direction), level in zip(draws.tolist(), levels, strict=True)
            if applied < self.probability
        ]


def blended(image: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """Between another image (0) and this one (1), and beyond it; to the nearest byte."""
    return cv2.addWeighted(image, factor, other, 1 - factor, 0)


def blended_down(image: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """As `blended`, without what exceeds a byte."""
    start = other.astype(np.float32)
    exact = start + np.float32(factor) * (image.astype(np.float32) - start)
    return np.clip(exact, 0, 255).astype(np.uint8)


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Each channel stretched to [0, 255]."""
    table = np.empty((1, 256, 3), np.uint8)
    for channel, plane in enumerate(cv2.split(image)):
        low, high, _, _ = cv2.minMaxLoc(plane)
        stretched = (VALUES - low) * (255 / (high - low)) if high > low else VALUES
        table[0, :, channel] = np.clip(stretched, 0, 255)
    return cv2.LUT(image, table)


def equalize(image: np.ndarray) -> np.ndarray:
    """Each channel's values spread so that all are about as frequent."""
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).reshape(256)
        counts = counts.astype(np.int64)
        used = counts[counts > 0]
        step = (int(used.sum()) - int(used[-1])) // 255
        if len(used) > 1 and step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table[0, :, channel] = np.clip((before + step // 2) // step, 0, 255)
        else:
            table[0, :, channel] = VALUES
    return cv2.LUT(image, table)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Only the highest `bits` of each value."""
    return cv2.LUT(image, (np.arange(256) & (0xFF00 >> bits)).astype(np.uint8))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Values from the threshold on become negative."""
    return _table(image, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """The darker half of values becomes lighter."""
    return _table(image, np.where(VALUES < 128, VALUES + addition, VALUES))


def color(image: np.ndarray, factor: float, blend: Blend = blended) -> np.ndarray:
    """Between grey (0), unchanged (1) and more colourful."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return blend(image, grey, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Between the mean grey (0), unchanged (1) and more contrast."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _table(image, mean * (1 - factor) + VALUES * factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between black (0), unchanged (1) and brighter."""
    return _table(image, VALUES * factor)


def sharpness(image: np.ndarray, factor: float, blend: Blend = blended) -> np.ndarray:
    """Between smooth (0), unchanged (1) and sharper; the border stays as it is."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTH)[1:-1, 1:-1]
    return blend(image, smooth, factor)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned about its middle, counter-clockwise."""
    H, W, _ = image.shape
    turn = cv2.getRotationMatrix2D((W / 2 - 0.5, H / 2 - 0.5), -degrees, 1.0)
    return _move(image, *turn)


def _move(image: np.ndarray, x: Row = (1, 0, 0), y: Row = (0, 1, 0)) -> np.ndarray:
    """Each pixel from the column and the row that x and y give of its own (column, row, 1)."""
    H, W, _ = image.shape
    return cv2.warpAffine(
        image,
        np.array([x, y], np.float64),
        (W, H),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=GREY,
    )


def _table(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.clip(values, 0, 255).astype(np.uint8))


def _factor(level: float) -> float:
    return 0.1 + 1.8 * level


# From image, level in [0, 1], direction and largest translation.
OPERATIONS: dict[str, Callable[[np.ndarray, float, int, int], np.ndarray]] = {
    "Identity": lambda image, level, sign, shift: image,
    "AutoContrast": lambda image, level, sign, shift: auto_contrast(image),
    "Equalize": lambda image, level, sign, shift: equalize(image),
    "Invert": lambda image, level, sign, shift: cv2.bitwise_not(image),
    "Posterize": lambda image, level, sign, shift: posterize(image, max(1, int(level * 4))),
    "Solarize": lambda image, level, sign, shift: solarize(image, min(255, int(level * 256))),
    "SolarizeAdd": lambda image, level, sign, shift: solarize_add(image, int(level * 110)),
    "Color": lambda image, level, sign, shift: color(image, _factor(level)),
    "Contrast": lambda image, level, sign, shift: contrast(image, _factor(level)),
    "Brightness": lambda image, level, sign, shift: brightness(image, _factor(level)),
    "Sharpness": lambda image, level, sign, shift: sharpness(image, _factor(level)),
    "Rotate": lambda image, level, sign, shift: rotate(image, sign * level * 30),
    "ShearX": lambda image, level, sign, shift: _move(image, x=(1, sign * level * 0.3, 0)),
    "ShearY": lambda image, level, sign, shift: _move(image, y=(sign * level * 0.3, 1, 0)),
    "TranslateX": lambda image, level, sign, shift: _move(image, x=(1, 0, -sign * level * shift)),
    "TranslateY": lambda image, level, sign, shift: _move(image, y=(0, 1, -sign * level * shift)),
}
ROUNDING_DOWN = OPERATIONS | {
    "Color": lambda image, level, sign, shift: color(image, _factor(level), blended_down),
    "Sharpness": lambda image, level, sign, shift: sharpness(image, _factor(level), blended_down),
}
_NAMES = tuple(OPERATIONS)
