"""Noise instead of pictures, for measuring everything but storage and decoding."""

import dataclasses
import functools

import gin
import numpy as np

from nest_dist.base import checks
from nest_dist.data import batch

SEED = 0
PERIOD = 65_521  # a prime, so that neighbouring pictures do not repeat each other


@gin.register
@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Pictures of noise with labels in turn.

    Attributes:
        num_examples: how many.
        image_side: pixels.
        num_classes: labels.
        num_channels: of each picture.
    """

    num_examples: int
    image_side: int
    num_classes: int
    num_channels: int = 3

    def __post_init__(self) -> None:
        checks.types(self)
        checks.in_range("Synthetic.num_examples", self.num_examples, 1)
        checks.in_range("Synthetic.image_side", self.image_side, 1)
        checks.in_range("Synthetic.num_classes", self.num_classes, 1)
        checks.in_range("Synthetic.num_channels", self.num_channels, 1)

    def open(self) -> "Noise":
        """The pictures, which share one stretch of noise in memory."""
        return Noise(self)


@dataclasses.dataclass(frozen=True)
class Noise:
    """What `Synthetic` describes."""

    config: Synthetic

    @property
    def class_names(self) -> tuple[str, ...]:
        """The numbers of the labels."""
        return tuple(str(label) for label in range(self.config.num_classes))

    @property
    def fingerprint(self) -> str:
        """What the noise is made from."""
        return f"{SEED} {self.config}"

    def __len__(self) -> int:
        return self.config.num_examples

    def __getitem__(self, index: int) -> batch.Example:
        config = self.config
        shape = (config.image_side, config.image_side, config.num_channels)
        size = shape[0] * shape[1] * shape[2]
        start = index * 97 % PERIOD
        return {
            "image": _noise(size + PERIOD)[start : start + size].reshape(shape),
            "label": index % config.num_classes,
            "key": f"synthetic {index}",
        }


@functools.lru_cache(maxsize=2)
def _noise(size: int) -> np.ndarray:
    noise = np.random.Generator(np.random.Philox(SEED)).integers(0, 256, size, np.uint8)
    noise.setflags(write=False)
    return noise
