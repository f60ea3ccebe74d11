"""Pictures of more than 8 bits, of any number of channels; Pillow and tifffile are the readers."""

import io
import re

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from support import photographs
from support.refusals import refusal

from nest_dist.data import batch
from nest_dist.data.transforms import crop, decode

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (24, 32), np.uint16)
COLOUR = RNG.integers(0, 65536, (24, 32, 3), np.uint16)
FLOATS = RNG.random((24, 32)).astype(np.float32)


REFUSED = (
    "grey 16-bit png with values in [0, 4084] of [0, 65535]; say what is black and white by "
    "value_range of the transform that decodes, such as (0, 4095)"
)


def by_pillow(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=kind)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()


def expected(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    scaled = np.rint(scaled)
    return np.repeat(scaled[..., None], 3, 2) if scaled.ndim == 2 else scaled


@pytest.mark.parametrize(
    ("encoded", "values", "high"),
    [
        (by_pillow(DEEP, "PNG"), DEEP, 65535),
        (by_pillow(DEEP, "TIFF"), DEEP, 65535),
        (png(COLOUR), COLOUR, 65535),
        (tiff(COLOUR, photometric="rgb"), COLOUR, 65535),
        (tiff(COLOUR, photometric="rgb", byteorder=">"), COLOUR, 65535),
        (by_pillow(FLOATS, "TIFF"), FLOATS, 1),
        (tiff(FLOATS.astype(np.float64)), FLOATS, 1),
        (cv2.imencode(".pgm", DEEP)[1].tobytes(), DEEP, 65535),
    ],
)
def test_deep_pictures_are_scaled_by_the_range_of_their_type(encoded, values, high):
    np.testing.assert_array_equal(decode.pixels(encoded), expected(values, 0, high))


def test_an_independent_reader_sees_the_same_values():
    seen = np.asarray(Image.open(io.BytesIO(by_pillow(DEEP, "PNG")))).astype(float)
    np.testing.assert_array_equal(decode.pixels(png(DEEP))[..., 0], np.rint(seen / 257))
    seen = tifffile.imread(io.BytesIO(tiff(COLOUR, photometric="rgb"))).astype(float)
    encoded = tiff(COLOUR, photometric="rgb")
    np.testing.assert_array_equal(decode.pixels(encoded), np.rint(seen / 257))


@pytest.mark.parametrize(
    ("encoded", "reason", "value_range", "values"),
    [
        (
            by_pillow(DEEP // 16, "PNG"),
            REFUSED,
            (0, 4095),
            DEEP // 16,
        ),
        (
            by_pillow(FLOATS * 1000 - 500, "TIFF"),
            "32-bit tiff with values in [-49",
            (-500, 500),
            FLOATS * 1000 - 500,
        ),
        (
            by_pillow(DEEP.astype(np.int32), "TIFF"),
            "32-bit tiff with values in [",
            (0, 65535),
            DEEP,
        ),
    ],
)
def test_values_of_another_range_are_refused_until_it_is_given(
    encoded, reason, value_range, values
):
    with pytest.raises(decode.Undecodable, match=re.escape(reason)):
        decode.pixels(encoded)
    whole = crop.CentrePad((24, 32), value_range=value_range)
    found = whole(encoded, RNG)
    np.testing.assert_array_equal(found, expected(values, *value_range))
    assert len(np.unique(found)) > 200


def test_values_outside_the_given_range_are_clipped_and_nan_is_refused():
    found = decode.pixels(by_pillow(DEEP, "PNG"), decode.Decoding(value_range=(20000, 30000)))
    np.testing.assert_array_equal(found, expected(DEEP, 20000, 30000))
    holes = FLOATS.copy()
    holes[3, 4] = np.nan
    reason = "32-bit tiff with values that are not finite; replace them in the picture"
    with pytest.raises(decode.Undecodable, match=reason):
        decode.pixels(by_pillow(holes, "TIFF"), decode.Decoding(value_range=(0, 1)))


@pytest.mark.parametrize("value_range", [(1.0, 1.0), (4095, 0)])
def test_a_range_without_extent_is_refused(value_range):
    text = f"ResizedCentreCrop.value_range is {value_range}; give (black, white), the first below"
    with refusal(text):
        crop.ResizedCentreCrop(8, shorter_side=8, value_range=value_range)


SEEN = np.dstack([photographs.photograph("chelsea")[:24, :32], np.uint8(DEEP >> 8)])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("stored", ["L", "RGB", "RGBA"])
def test_grey_colour_and_alpha_become_each_other(stored, channels):
    image = Image.fromarray(SEEN).convert(stored)
    encoded = by_pillow(np.asarray(image), "PNG")
    cut = crop.CentrePad((24, 32), channels=channels)
    assert cut.output(batch.ENCODED) == batch.ImageSpec(24, 32, channels)
    wanted = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    # Pillow and OpenCV round the weights of grey differently.
    np.testing.assert_allclose(cut(encoded, RNG), wanted.reshape(24, 32, channels), atol=1)
    array = np.asarray(image).reshape(24, 32, -1)
    np.testing.assert_array_equal(cut(array, RNG), cut(encoded, RNG))


def test_alpha_of_16_bits_is_scaled_like_the_colours():
    values = RNG.integers(0, 65536, (24, 32, 4), np.uint16)
    encoded = cv2.imencode(".png", values[..., [2, 1, 0, 3]])[1].tobytes()
    found = decode.pixels(encoded, decode.Decoding(channels=4))
    np.testing.assert_array_equal(found, expected(values, 0, 65535))
    np.testing.assert_array_equal(decode.pixels(encoded), found[..., :3])


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_the_pages_of_a_tiff_are_channels(channels):
    pages = RNG.integers(0, 65536, (channels, 24, 32), np.uint16)
    encoded = tiff(pages, photometric="minisblack")
    assert str(decode.describe(encoded)).endswith("16-bit tiff")
    found = crop.CentrePad((24, 32), channels=channels)(encoded, RNG)
    np.testing.assert_array_equal(found, expected(np.moveaxis(pages, 0, 2), 0, 65535))
    reason = f"it has {channels} channels, 7 are wanted; bind channels of the transform that"
    with pytest.raises(decode.Undecodable, match=reason):
        decode.pixels(encoded, decode.Decoding(channels=7))


def test_arrays_of_many_channels_pass_every_crop():
    many = RNG.integers(0, 256, (24, 32, 7), np.uint8)
    for transform in (
        crop.RandomResizedCrop((12, 16), area=(0.5, 1.0)),
        crop.RandomResizedCrop((12, 16), area=(0.5, 1.0), antialias=True),
        crop.ResizedCentreCrop((12, 16), shorter_side=(14, 18)),
        crop.ResizedCentreCrop((12, 16), shorter_side=(14, 18), antialias=True),
        crop.PaddedCrop((24, 32), padding=2),
        crop.CentrePad((24, 40)),
        crop.Flip(1.0),
    ):
        found = transform(many, RNG)
        spec = transform.output(batch.ImageSpec(24, 32, 7))
        assert found.shape == spec.shape, transform
