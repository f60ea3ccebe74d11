"""Noise instead of pictures, for measurements without storage and decoding."""

import dataclasses
import functools
import math
import typing

import numpy as np

from nest_dist.base import settings
from nest_dist.base.checks import Within
from nest_dist.data import batch

SEED = 0
PERIOD = 65_521  # a prime, so that neighbouring pictures do not repeat each other


@settings.register
class Synthetic:
    """Pictures of noise; their labels take turns.

    Attributes:
        num_examples: in the split.
        image_side: pixels.
        num_classes: labels.
        num_channels: of each picture.
    """

    num_examples: typing.Annotated[int, Within(1)]
    image_side: typing.Annotated[int, Within(1)]
    num_classes: typing.Annotated[int, Within(1)]
    num_channels: typing.Annotated[int, Within(1)] = 3

    def open(self) -> "Noise":
        """The pictures, which share one array of noise."""
        return Noise(
            self.num_examples,
            tuple(map(str, range(self.num_classes))),
            f"{SEED} {self}",
            batch.ImageSpec(self.image_side, self.image_side, self.num_channels),
        )


@dataclasses.dataclass(frozen=True)
class Noise(batch.Source):
    """What `Synthetic` describes."""

    num_examples: int
    class_names: tuple[str, ...]
    fingerprint: str
    image_spec: batch.ImageSpec

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> batch.Example:
        shape = self.image_spec.shape
        size, start = math.prod(shape), index * 97 % PERIOD
        return {
            "image": _noise(size + PERIOD)[start : start + size].reshape(shape),
            "labels": (index % len(self.class_names),),
            "key": f"synthetic {index}",
        }


@functools.lru_cache(maxsize=2)
def _noise(size: int) -> np.ndarray:
    noise = np.random.Generator(np.random.Philox(SEED)).integers(0, 256, size, np.uint8)
    noise.setflags(write=False)
    return noise
