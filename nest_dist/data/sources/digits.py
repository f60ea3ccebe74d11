"""Handwritten digits that the package contains, for a first run without a download.

1,797 pictures written by 43 people: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998, licensed CC BY 4.0. The pixels are unchanged.
"""

import importlib.resources

import numpy as np

from nest_dist.base import checks, settings
from nest_dist.data import batch, parts

STORED_SIDE = 8
STORED_WHITE = 16
TEST_EVERY = 5


@settings.register
class Digits:
    """Handwritten digits, 10 classes, one channel; every fifth picture is in the test split.

    Attributes:
        split: "train" (1,438 pictures) or "test" (359).
        image_side: pixels; a multiple of 8. The stored pictures of 8 x 8 are interpolated to it.
    """

    split: str
    image_side: int = 32

    def __post_init__(self) -> None:
        checks.one_of("Digits.split", parts.split_name(self.split), ("train", "test"))
        checks.divides(
            "Digits.image_side", self.image_side, STORED_SIDE, "the stored side", "set one of them"
        )

    def open(self) -> batch.Arrays:
        """The pictures of the split, in memory: uint8 [N, image_side, image_side, 1]."""
        resource = importlib.resources.files("nest_dist.data.sources") / "digits.npz"
        with resource.open("rb") as file, np.load(file) as stored:
            images, labels = stored["image"], stored["label"]
        is_test = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
        in_split = is_test if self.split == "test" else ~is_test
        return batch.Arrays(
            images=_enlarge(images[in_split], self.image_side)[..., None],
            labels=labels[in_split],
            class_names=tuple(str(digit) for digit in range(10)),
        )


def _enlarge(images: np.ndarray, side: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres, of [N, 8, 8] in [0, 16] to uint8."""
    centres = (np.arange(side) + 0.5) * STORED_SIDE / side - 0.5
    distance = np.abs(np.clip(centres, 0, STORED_SIDE - 1)[:, None] - np.arange(STORED_SIDE))
    weights = np.maximum(0.0, 1.0 - distance)  # [side, 8], each row adds up to 1
    scaled = np.einsum("hi,nij,wj->nhw", weights, images * (255 / STORED_WHITE), weights)
    return np.round(scaled).astype(np.uint8)
