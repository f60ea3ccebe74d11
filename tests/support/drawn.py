"""Random arrays that are the same everywhere and for ever: numpy froze this generator."""

import math
import zlib

import numpy as np


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 values that depend on the name alone."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


def timm_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value for one entry of timm's state dictionary, of the size that training reaches."""
    drawn = array(name, shape)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * drawn
    if name.endswith("bias"):
        return 0.1 * drawn
    if name.endswith("pos_embed"):
        return 0.5 * drawn
    return drawn / np.float32(math.sqrt(math.prod(shape[1:])))


def images(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Normalised images [B, H, W, C]."""
    return array(f"image of {name}", shape)
