"""Pictures turned upright as their camera has stored; Pillow is the other reader."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from support import photographs

from nest_dist.data.transforms import crop, decode, orientation

STORED = photographs.photograph("chelsea")[:96, :160]
TURNED = decode.Decoding(exif_orientation=True)
FORMATS = [
    *({"format": "JPEG", "quality": 95}, {"format": "JPEG", "restart_marker_blocks": 2}),
    *({"format": "JPEG", "progressive": True}, {"format": "PNG"}, {"format": "TIFF"}),
    {"format": "WEBP", "lossless": True},
]


def saved(number: int | None, **options: object) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if number is not None:
        exif[0x0112] = number
    Image.fromarray(STORED).save(file, exif=exif, **options)
    return file.getvalue()


def by_pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


@pytest.mark.parametrize("options", FORMATS, ids=str)
@pytest.mark.parametrize("number", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(number, options):
    encoded = saved(number, **options)
    upright = decode.pixels(encoded, TURNED)
    difference = np.abs(upright.astype(int) - by_pillow(encoded))
    # Versions of libjpeg-turbo differ in the last bit of the inverse cosine transform.
    assert difference.max() <= (3 if options["format"] == "JPEG" else 0)
    if options["format"] != "TIFF":
        np.testing.assert_array_equal(decode.pixels(encoded), decode.pixels(saved(1, **options)))


@pytest.mark.parametrize("number", range(1, 9))
def test_a_tiff_of_16_bits_is_turned_always(number):
    file = io.BytesIO()
    values = STORED[..., 0].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = number
    Image.fromarray(values).save(file, format="TIFF", exif=exif)
    upright = by_pillow(saved(number, format="PNG"))[..., 0]
    for how in (decode.AS_STORED, TURNED):
        np.testing.assert_array_equal(decode.pixels(file.getvalue(), how)[..., 0], upright)


@pytest.mark.parametrize("options", FORMATS[:3], ids=str)
@pytest.mark.parametrize("number", range(1, 9))
def test_a_crop_is_that_of_the_upright_picture(number, options):
    encoded = saved(number, **options)
    upright = decode.pixels(encoded, TURNED)
    for rectangle in ((0, 0, 50, 40), (7, 3, 20, 33), (40, 30, 56, 64)):
        top, left, height, width = rectangle
        found = decode.cut(encoded, lambda H, W, wanted=rectangle: wanted, TURNED)
        np.testing.assert_array_equal(found, upright[top : top + height, left : left + width])


@pytest.mark.parametrize("number", [None, 0, 9, 77])
def test_without_a_valid_orientation_a_picture_stays_as_it_is(number):
    encoded = saved(number, format="JPEG")
    np.testing.assert_array_equal(decode.pixels(encoded, TURNED), decode.pixels(encoded))


@pytest.mark.parametrize("options", FORMATS, ids=str)
def test_altered_bytes_give_an_orientation_or_none(options):
    encoded = saved(6, **options)
    rng = np.random.default_rng(0)
    for _ in range(200):
        altered = np.frombuffer(encoded, np.uint8).copy()
        places = rng.integers(2, min(len(altered), 400), 4)
        altered[places] = rng.integers(0, 256, 4)
        assert orientation.of(altered.tobytes()[: rng.integers(1, len(altered))]) in (
            *orientation.BY_NUMBER,
        )


@pytest.mark.parametrize("number", [None, *range(1, 9)])
def test_a_converted_picture_keeps_its_orientation(number):
    encoded = saved(number, format="WEBP", lossless=True)
    converted = orientation.copied(encoded, decode.encode(STORED, "png"))
    np.testing.assert_array_equal(decode.pixels(converted), STORED)
    np.testing.assert_array_equal(decode.pixels(converted, TURNED), by_pillow(encoded))
    np.testing.assert_array_equal(by_pillow(converted), by_pillow(encoded))


def test_the_transforms_turn_pictures_only_where_they_are_asked_to():
    encoded = saved(6, format="JPEG", quality=95)
    upright = by_pillow(encoded)
    rng = np.random.default_rng(0)
    side = max(STORED.shape[:2])
    for turned in (False, True):
        padded = crop.CentrePad(side, exif_orientation=turned)(encoded, rng)
        rows, columns = (np.flatnonzero(padded.any((axis, 2))) for axis in (1, 0))
        shape = (len(rows), len(columns))
        assert shape == (upright.shape[:2] if turned else STORED.shape[:2])
    centre = crop.ResizedCentreCrop(96, shorter_side=96, exif_orientation=True)
    assert np.abs(centre(encoded, rng).astype(int) - upright[32:-32]).max() <= 3
    whole = crop.RandomResizedCrop((160, 96), area=(1, 1), aspect=(1, 1), exif_orientation=True)
    assert np.abs(whole(encoded, rng).astype(int) - upright).max() <= 3
