"""RandAugment on uint8 images [H, W, 3], with the operations and levels of the official NesT."""

import dataclasses
from collections.abc import Callable

import cv2
import gin
import numpy as np

from nest_dist.base import checks, failures

HIGHEST_MAGNITUDE = 10
GREY = (128, 128, 128)  # fills what a move leaves empty
VALUES = np.arange(256, dtype=np.float32)
# Pillow's SMOOTH, between which and the picture Sharpness interpolates.
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


@gin.register
@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A few operations, each chosen evenly among 16 and applied with a random magnitude.

    Attributes:
        translation: pixels that a picture moves at the highest magnitude.
        operations: in a row; the same one may come twice.
        magnitude: in [0, 10].
        magnitude_deviation: standard deviation around it; what leaves [0, 10] is cut off.
        probability: that an operation takes place, in [0, 1].
    Source: arXiv 1909.13719; levels as in the official implementation of NesT, except that
        Posterize keeps at least one bit.
    """

    translation: int
    operations: int = 2
    magnitude: float = 9.0
    magnitude_deviation: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("RandAugment.translation", self.translation, 0)
        checks.in_range("RandAugment.operations", self.operations, 0)
        checks.in_range("RandAugment.magnitude", self.magnitude, 0, HIGHEST_MAGNITUDE)
        checks.in_range("RandAugment.magnitude_deviation", self.magnitude_deviation, 0)
        checks.in_range("RandAugment.probability", self.probability, 0, 1)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A uint8 image of the same shape."""
        if image.shape[2] != 3:
            raise failures.BadInput(
                f"RandAugment got an image of {image.shape[2]} channels, it needs 3; leave it out "
                "of the transforms."
            )
        for name, level, sign in self.choose(rng):
            image = OPERATIONS[name](image, level, sign, self.translation)
        return image

    def choose(self, rng: np.random.Generator) -> list[tuple[str, float, int]]:
        """What will take place: operation, level in [0, 1] and direction, -1 or 1."""
        draws = rng.random((self.operations, 3))
        levels = rng.normal(self.magnitude, self.magnitude_deviation, self.operations)
        levels = np.clip(levels, 0, HIGHEST_MAGNITUDE) / HIGHEST_MAGNITUDE
        return [
            (_NAMES[int(choice * len(_NAMES))], float(level), 1 if side < 0.5 else -1)
            for (chance, choice, side), level in zip(draws.tolist(), levels, strict=True)
            if chance < self.probability
        ]


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


def invert(image: np.ndarray) -> np.ndarray:
    """The negative."""
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Only the highest `bits` of each value."""
    return cv2.LUT(image, (np.arange(256) & (0xFF00 >> bits)).astype(np.uint8))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Values from the threshold on become negative."""
    return _table(image, np.where(threshold > VALUES, VALUES, 255 - VALUES))


def solarize_add(image: np.ndarray, addition: int) -> np.ndarray:
    """The darker half of values becomes lighter."""
    return _table(image, np.where(VALUES < 128, VALUES + addition, VALUES))


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Between grey (0), unchanged (1) and more colourful."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Between the mean grey (0), unchanged (1) and more contrast."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _table(image, mean * (1 - factor) + VALUES * factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between black (0), unchanged (1) and brighter."""
    return _table(image, VALUES * factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Between smooth (0), unchanged (1) and sharper; the border stays as it is."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned about its middle, counter-clockwise."""
    H, W, _ = image.shape
    turn = cv2.getRotationMatrix2D((W / 2 - 0.5, H / 2 - 0.5), -degrees, 1.0)
    return _move(image, turn)


def shear_x(image: np.ndarray, slope: float) -> np.ndarray:
    """Rows shifted in proportion to their height."""
    return _move(image, np.array([[1, slope, 0], [0, 1, 0]]))


def shear_y(image: np.ndarray, slope: float) -> np.ndarray:
    """Columns shifted in proportion to their place."""
    return _move(image, np.array([[1, 0, 0], [slope, 1, 0]]))


def translate(image: np.ndarray, right: float, down: float) -> np.ndarray:
    """Shifted by pixels."""
    return _move(image, np.array([[1, 0, -right], [0, 1, -down]]))


def _move(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    H, W, _ = image.shape
    return cv2.warpAffine(
        image,
        matrix.astype(np.float64),
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
    "Invert": lambda image, level, sign, shift: invert(image),
    "Posterize": lambda image, level, sign, shift: posterize(image, max(1, int(level * 4))),
    "Solarize": lambda image, level, sign, shift: solarize(image, min(255, int(level * 256))),
    "SolarizeAdd": lambda image, level, sign, shift: solarize_add(image, int(level * 110)),
    "Color": lambda image, level, sign, shift: color(image, _factor(level)),
    "Contrast": lambda image, level, sign, shift: contrast(image, _factor(level)),
    "Brightness": lambda image, level, sign, shift: brightness(image, _factor(level)),
    "Sharpness": lambda image, level, sign, shift: sharpness(image, _factor(level)),
    "Rotate": lambda image, level, sign, shift: rotate(image, sign * level * 30),
    "ShearX": lambda image, level, sign, shift: shear_x(image, sign * level * 0.3),
    "ShearY": lambda image, level, sign, shift: shear_y(image, sign * level * 0.3),
    "TranslateX": lambda image, level, sign, shift: translate(image, sign * level * shift, 0),
    "TranslateY": lambda image, level, sign, shift: translate(image, 0, sign * level * shift),
}
_NAMES = tuple(OPERATIONS)
