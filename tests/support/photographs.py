"""Real photographs from scikit-image's package, as pictures of the size that ImageNet has."""

import functools

import numpy as np
import skimage.data

from nest_dist.data.transforms import decode


@functools.cache
def photograph(name: str = "chelsea", side: int | None = None) -> np.ndarray:
    """uint8 [H, W, 3]; with `side` the square of that many pixels in its middle."""
    if name == "motorcycle":
        image, *_ = skimage.data.stereo_motorcycle()
    else:
        image = getattr(skimage.data, name)()
    image = np.ascontiguousarray(image)
    if side is not None:
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
    image.setflags(write=False)
    return image


@functools.cache
def jpeg(name: str = "chelsea", height: int = 75, width: int = 100) -> bytes:
    """The upper left rectangle of a photograph as JPEG."""
    return decode.encode(np.ascontiguousarray(photograph(name)[:height, :width]), "jpeg")
