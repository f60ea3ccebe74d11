"""From the picture that someone has to what a model was trained on."""

import dataclasses
import pathlib
import typing

import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures
from nest_dist.commands import recorded
from nest_dist.data import crop, decode
from nest_dist.model import nest
from nest_dist.train import pixels

IMAGENET = pixels.Pixels(mean=(0.485, 0.456, 0.406), standard_deviation=(0.229, 0.224, 0.225))
GREY = pixels.Pixels(mean=(0.5,), standard_deviation=(0.5,))
# Above this side, pictures are brought to 256 / 224 of it before the middle is cut out.
WHOLE_PICTURE_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Makes what the model takes out of any picture.

    Attributes:
        sides: height and width that the model takes, in pixels.
        num_channels: 1 or 3.
        transforms: those of the evaluation data that the model was measured on.
        pixels: how its images are normalised.
    """

    sides: tuple[int, int]
    num_channels: int
    transforms: tuple[typing.Any, ...]
    pixels: pixels.Pixels

    def __call__(self, pictures: typing.Any) -> np.ndarray:
        """Float32 [B, H, W, C] of one picture or several.

        Args:
            pictures: a path, the bytes of a picture or a uint8 array [H, W, C]; or a list of such.
        """
        several = isinstance(pictures, (list, tuple))
        images = self.images(pictures if several else [pictures])
        return np.asarray(self.pixels(jnp.asarray(images)))

    def images(self, pictures: typing.Sequence[typing.Any]) -> np.ndarray:
        """Uint8 [B, H, W, C], which normalised are what `__call__` gives."""
        return np.stack([self._image(picture) for picture in pictures])

    def _image(self, picture: typing.Any) -> np.ndarray:
        image = _with_channels(_pixels(picture), self.num_channels)
        resizes = any(isinstance(each, crop.ResizedCentreCrop) for each in self.transforms)
        if not resizes and any(np.greater(image.shape[:2], self.sides)):
            image = self._resized(image)
        for transform in self.transforms:
            image = transform(image, np.random.default_rng(0))
        return image if image.shape[:2] == self.sides else self._resized(image)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        ratio = max(side / length for side, length in zip(self.sides, image.shape, strict=False))
        return crop.resized_centre(image, ratio, self.sides)


def of_model(model: nest.NesT, configuration: str | None) -> Preprocessing:
    """The preprocessing that belongs to a model.

    Args:
        model: what it is for.
        configuration: the text of the run that trained the model; without it the ways of the
            published weights are taken: ImageNet's mean and deviation, and for larger images the
            middle of a picture whose shorter side is 256 / 224 of the model's.
    Raises:
        BadInput: if the configuration uses transforms that are not nest_dist's own.
    """
    sides = model.geometry().image_sides
    if configuration is not None:
        text = recorded.Recorded(configuration)
        transforms = text.value("EvaluationData", "transforms") or ()
        scale = text.build("Pixels")
    else:
        transforms = ()
        if sides[0] == sides[1] > WHOLE_PICTURE_SIDE:
            side = sides[0]
            transforms = (crop.ResizedCentreCrop(side, round(side * 256 / 224)),)
        scale = IMAGENET if model.num_channels == 3 else GREY
    return Preprocessing(sides, model.num_channels, tuple(transforms), scale)


def _pixels(picture: typing.Any) -> np.ndarray:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3:
            raise failures.BadInput(
                f"a picture is an array {picture.dtype}{list(picture.shape)}; give uint8 [H, W, C]."
            )
        return picture
    name = "the picture" if isinstance(picture, bytes) else str(picture)
    try:
        encoded = picture if isinstance(picture, bytes) else pathlib.Path(picture).read_bytes()
        return decode.pixels(encoded)
    except OSError as error:
        raise failures.BadInput(
            f"{name} cannot be read ({error.strerror}); give the path of a picture."
        ) from None
    except decode.Undecodable as error:
        raise failures.BadInput(
            f"{name} is no picture that can be decoded ({error}); give JPEG, PNG or WebP."
        ) from None


def _with_channels(image: np.ndarray, num_channels: int) -> np.ndarray:
    C = image.shape[-1]
    if num_channels == C:
        return image
    if (C, num_channels) == (3, 1):
        luminance = image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
        return np.round(luminance).astype(np.uint8)[..., None]
    if (C, num_channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    raise failures.BadInput(
        f"a picture has {C} channels, the model takes {num_channels}; convert it first."
    )
