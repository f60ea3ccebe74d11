"""Preprocessing: from a picture of any size to the images of a model."""

import dataclasses
import os
import pathlib
import stat
import sys
import typing
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures
from nest_dist.config import run_json
from nest_dist.data import batch
from nest_dist.data.transforms import crop, decode, depth, orientation, tiff
from nest_dist.model import nest
from nest_dist.pretrained import description
from nest_dist.train import inputs
from nest_dist.train.augment import jitter

IMAGENET = inputs.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
GREY = inputs.Normalize(mean=(0.5,), std=(0.5,))
LARGEST_UNCROPPED_SIDE = 64  # in pixels; larger models see the centre of a picture

# A path, encoded bytes, an array, or an image of Pillow, which is not imported for its type.
Picture: typing.TypeAlias = str | os.PathLike[str] | bytes | np.ndarray | typing.Any
Pictures: typing.TypeAlias = Picture | Sequence[Picture]
# Modes of Pillow that are grey; all others become RGB.
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Makes a model's images from pictures."""

    sides: tuple[int, int]  # height and width of its images, in pixels
    num_channels: int
    transforms: tuple[batch.Transform, ...]
    normalize: inputs.Normalize

    def __call__(self, pictures: Pictures) -> np.ndarray:
        """Float32 [B, H, W, C] of one picture or several.

        Args:
            pictures: a path, the bytes of a picture, an image of Pillow, a uint8 array [H, W] or
                [H, W, C]; or a list of such, or an array [B, H, W, C].
        Raises:
            BadInput: if one is no picture that can be decoded, or of more than 8 bits with values
                of an unknown range.
        """
        return np.asarray(self.normalize(jnp.asarray(self.images(_listed(pictures)))))

    def images(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Uint8 images [B, H, W, C] before normalization."""
        return np.stack([self._image(picture) for picture in pictures])

    @property
    def decoding(self) -> decode.Decoding:
        """How the pictures are read, as in training."""
        return decode.of(self.transforms)

    def _image(self, picture: Picture) -> np.ndarray:
        image = _with_channels(_pixels(picture, self.decoding), self.num_channels)
        resizes = any(isinstance(t, crop.ResizedCentreCrop) for t in self.transforms)
        if not resizes and any(np.greater(image.shape[:2], self.sides)):
            image = self._resized(image)
        for transform in self.transforms:
            image = transform(image, np.random.default_rng(0))
        return image if image.shape[:2] == self.sides else self._resized(image)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        ratio = max(side / length for side, length in zip(self.sides, image.shape, strict=False))
        return crop.resized_centre(image, ratio, self.sides)


def of_model(model: nest.NesT, run: run_json.Json | None) -> Preprocessing:
    """The preprocessing that belongs to a model.

    Args:
        run: that trained the model, as JSON. None stands for the published weights: ImageNet's
            mean and deviation, and for larger images the centre of a picture whose shorter side
            is 256 / 224 of the model's.
    """
    sides = model.geometry().image_sides
    transforms: tuple[batch.Transform, ...] = ()
    if run is not None:
        transforms = description.configured(run, "evaluations", 0, "data", "transforms")
        scale = description.configured(run, "step", "inputs", "normalize")
    else:
        scale = IMAGENET if model.num_channels == 3 else GREY
        if max(sides) > LARGEST_UNCROPPED_SIDE:
            height, width = (round(side * 256 / 224) for side in sides)
            transforms = (crop.ResizedCentreCrop(sides, shorter_side=(height, width)),)
    return Preprocessing(sides, model.num_channels, tuple(transforms), scale)


def _listed(pictures: Pictures) -> Sequence[Picture]:
    if isinstance(pictures, np.ndarray) and pictures.ndim == 4:
        return list(pictures)
    if isinstance(pictures, (str, os.PathLike, bytes, np.ndarray)) or _is_pillow(pictures):
        return [pictures]
    if not isinstance(pictures, Sequence) or not len(pictures):
        raise failures.BadInput(
            f"pictures are {type(pictures).__name__}; give a path, bytes, an image of Pillow, a "
            "uint8 array, or a list with at least one of them."
        )
    return pictures


def _is_pillow(picture: typing.Any) -> typing.TypeGuard[typing.Any]:
    # Where nobody has imported Pillow, nothing can be of its type.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(picture, pillow.Image)


def _pixels(picture: Picture, how: decode.Decoding) -> np.ndarray:
    if _is_pillow(picture):
        return _of_pillow(picture, how)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise failures.BadInput(
                f"a picture is an array {picture.dtype}{list(picture.shape)}; give uint8 [H, W] or "
                "[H, W, C], or a batch [B, H, W, C]."
            )
        return picture if picture.ndim == 3 else picture[..., None]
    if not isinstance(picture, (str, os.PathLike, bytes)):
        raise failures.BadInput(
            f"a picture is {type(picture).__name__}; give a path, bytes, an image of Pillow, or a "
            "uint8 array."
        )
    name = "the picture" if isinstance(picture, bytes) else str(picture)
    try:
        encoded = picture if isinstance(picture, bytes) else _read(pathlib.Path(picture))
        return decode.pixels(encoded, how)
    except OSError as error:
        raise failures.BadInput(
            f"{name} cannot be read ({error.strerror}); give the path of a picture."
        ) from None
    except decode.Undecodable as error:
        raise failures.BadInput(
            f"{name} is no picture that can be decoded ({error}); give JPEG, PNG or WebP."
        ) from None


def _read(path: pathlib.Path) -> bytes:
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        # A pipe may keep us waiting, and a device may have no end.
        raise failures.BadInput(f"{path} is no file; give the path of a picture.")
    return path.read_bytes()


def _of_pillow(picture: typing.Any, how: decode.Decoding) -> np.ndarray:
    """As when its file is decoded."""
    if picture.mode in DEEP_MODES:
        try:
            array = depth.as_bytes(np.asarray(picture), how.value_range)
        except depth.OutsideRange as reason:
            raise failures.BadInput(f"a picture of mode {picture.mode} has {reason}.") from None
    else:
        grey = picture.mode in GREY_MODES
        alpha = how.channels == 4  # else it is dropped
        array = np.asarray(picture.convert("L" if grey else "RGBA" if alpha else "RGB"))
    image = array if array.ndim == 3 else array[..., None]
    if not how.exif_orientation:
        return image
    number = picture.getexif().get(tiff.ORIENTATION, 1)
    return orientation.by_number(number).upright(image)


def _with_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
    C = image.shape[-1]
    if num_channels == C:
        return image
    if (C, num_channels) == (3, 1):
        luminance = image @ np.array(jitter.GREY_WEIGHTS)
        return np.round(luminance).astype(np.uint8)[..., None]
    if (C, num_channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    raise failures.BadInput(
        f"a picture has {C} channels, the model takes {num_channels}; convert it first."
    )
