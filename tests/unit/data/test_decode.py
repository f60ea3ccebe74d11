import io

import numpy as np
import pytest
from PIL import Image
from support import photographs

from nest_dist.data import decode

CHELSEA = photographs.photograph("chelsea")[:75, :100]


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(CHELSEA).convert(mode)


def see_through() -> Image.Image:
    image = picture("RGBA")
    image.putalpha(Image.fromarray(CHELSEA).convert("L"))
    return image


def test_a_jpeg_decodes_to_what_pillow_sees():
    encoded = photographs.jpeg()
    pillow = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
    # Both use libjpeg-turbo; versions differ in the last bit of the inverse cosine transform.
    assert np.abs(decode.pixels(encoded).astype(int) - pillow).max() <= 3


def test_a_png_survives_encoding_and_decoding_unchanged():
    np.testing.assert_array_equal(decode.pixels(decode.encode(CHELSEA, "png")), CHELSEA)


def test_arrays_pass_unchanged():
    assert decode.pixels(CHELSEA) is CHELSEA


@pytest.mark.parametrize(
    ("encoded", "description"),
    [
        (saved(picture(), format="JPEG"), "rgb jpeg"),
        (saved(picture(), format="JPEG", progressive=True), "rgb jpeg"),
        (saved(picture("L"), format="JPEG"), "grey jpeg"),
        (saved(picture("CMYK"), format="JPEG"), "cmyk jpeg"),
        (saved(picture(), format="PNG"), "rgb png"),
        (saved(picture("RGBA"), format="PNG"), "alpha png"),
        (saved(picture("L"), format="PNG"), "grey png"),
        (saved(picture("P"), format="PNG"), "palette png"),
        (saved(picture("I;16"), format="PNG"), "grey 16-bit png"),
        (saved(picture(), format="WEBP"), "rgb webp"),
        (saved(picture(), format="WEBP", lossless=True), "rgb webp"),
        (saved(see_through(), format="WEBP"), "alpha webp"),
        (saved(see_through(), format="WEBP", lossless=True), "alpha webp"),
        (saved(picture(), format="BMP"), "bmp"),
        (saved(picture(), format="TIFF"), "tiff"),
    ],
)
def test_every_kind_of_picture_becomes_rgb_and_is_described(encoded, description):
    assert str(decode.describe(encoded)) == description
    decoded = decode.pixels(encoded)
    assert decoded.shape == CHELSEA.shape
    assert decoded.dtype == np.uint8


def test_stored_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = saved(picture(), format="JPEG", exif=exif)
    assert decode.pixels(encoded).shape == CHELSEA.shape


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "unknown, cut short or altered"),
        (photographs.jpeg()[:200], "jpeg, cut short or altered"),
        (decode.encode(CHELSEA, "png")[:60], "rgb png, cut short or altered"),
    ],
)
def test_what_is_no_whole_picture_is_undecodable(encoded, reason):
    with pytest.raises(decode.Undecodable, match=reason):
        decode.pixels(encoded)


@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_jpeg_cut_short_is_undecodable_rather_than_grey_below(share):
    encoded = photographs.jpeg("coffee", 300, 400)
    with pytest.raises(decode.Undecodable, match="cut short"):
        decode.pixels(encoded[: int(share * len(encoded))])
