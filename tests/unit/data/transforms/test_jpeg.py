"""A crop of a JPEG is the same whether or not its other pixels were decoded."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from support import photographs

from nest_dist.data.transforms import crop, decode, jpeg

COFFEE = photographs.photograph("coffee")[:200, :311]  # 20 units of 16 pixels in a row
H, W, _ = COFFEE.shape
CROP = crop.RandomResizedCrop(side=48, area=(0.05, 1.0))


def saved(mode="RGB", form="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(COFFEE).convert(mode).save(file, form, **options)
    return file.getvalue()


def without_height():
    """A JPEG whose number of rows stands at its end."""
    encoded = bytearray(saved())
    frame = jpeg.opened(encoded).frame
    encoded[frame + 5 : frame + 7] = bytes(2)
    return bytes(encoded)


def thumbnail():
    exif = Image.Exif()
    exif[0x010E] = "a description" + photographs.jpeg().decode("latin-1")
    return exif


def without_a_marker():
    encoded = INTERVALS["4:2:0"]
    at = encoded.rfind(b"\xff\xd3")
    return encoded[:at] + encoded[at + 2 :]


UPPER_ROWS = {
    "4:2:0": saved(quality=97),
    "4:2:2": saved(subsampling=1),
    "4:4:4": saved(subsampling=0),
    "grey": saved("L"),
    "cmyk": saved("CMYK"),
    "optimized": saved(optimize=True),
    "a picture in its header": saved(exif=thumbnail()),
    "something after its end": saved() + b"\xff\xd8more",
    "a view": memoryview(saved()),
}
INTERVALS = {
    "4:2:0": saved(restart_marker_blocks=4, exif=thumbnail()),
    "4:2:2": saved(restart_marker_blocks=5, subsampling=1),
    "4:4:4": saved(restart_marker_blocks=13, subsampling=0),
    "grey": saved("L", restart_marker_blocks=3),
    "cmyk": saved("CMYK", restart_marker_blocks=3),
    "each unit": saved(restart_marker_blocks=1, optimize=True),
    "each row": saved(restart_marker_rows=1),
}
UNCUT = {
    "progressive": saved(progressive=True),
    "intervals over the end of a row": saved(restart_marker_blocks=3),
    "intervals of two rows": saved(restart_marker_rows=2),
    "png": saved(form="PNG"),
    "pixels": COFFEE,
}
SAVED = [*UPPER_ROWS.values(), *INTERVALS.values(), *UNCUT.values()]
NAMES = [*UPPER_ROWS, *(f"intervals, {name}" for name in INTERVALS), *UNCUT]


@pytest.mark.parametrize("sampling", ["tensorflow", "timm"])
@pytest.mark.parametrize("picture", SAVED, ids=NAMES)
def test_a_crop_does_not_depend_on_other_pixels(picture, sampling, capfd):
    image, cut = decode.pixels(picture), dataclasses.replace(CROP, sampling=sampling)
    for number in range(60):
        first, second = (np.random.Generator(np.random.Philox(key=[7, number])) for _ in range(2))
        np.testing.assert_array_equal(cut(picture, first), cut(image, second))
        assert first.random() == second.random()
    assert capfd.readouterr().err == ""  # the decoder complains of what it takes for corrupt


@pytest.mark.parametrize("name", INTERVALS)
def test_every_rectangle_of_intervals_has_the_pixels_of_the_picture(name, capfd):
    encoded, image = INTERVALS[name], decode.pixels(INTERVALS[name])
    for top, height in ((0, 1), (0, H), (15, 1), (16, 1), (17, 30), (32, 16), (H - 1, 1)):
        for left, width in ((0, 1), (0, W), (63, 1), (64, 1), (65, 127), (128, 64), (W - 1, 1)):
            cut = decode.cut(encoded, lambda *_, at=(top, left, height, width): at)
            np.testing.assert_array_equal(
                cut, image[top : top + height, left : left + width], f"{top} {left}"
            )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", UPPER_ROWS)
def test_rows_below_are_not_decoded(name):
    coded = jpeg.opened(UPPER_ROWS[name])
    assert coded.sides == (H, W)
    for bottom in (1, 50, 100):
        encoded, down, right = coded.around(0, 0, bottom, W)
        assert (down, right) == (0, 0)
        assert bottom <= len(decode.pixels(encoded)) < bottom + 20


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_around_are_not_decoded(name):
    coded = jpeg.opened(INTERVALS[name])
    height, width = coded.unit[0], coded.unit[1] * coded.interval
    for top, left, bottom, right in ((0, 0, 5, 5), (66, 130, 79, 200), (180, 250, H, W)):
        encoded, down, along = coded.around(top, left, bottom, right)
        assert top - height <= down <= top
        assert left - width <= along <= left
        decoded = decode.pixels(encoded)
        assert bottom <= down + decoded.shape[0] <= bottom + height
        assert right <= along + decoded.shape[1] <= right + width


@pytest.mark.parametrize("encoded", [*UNCUT.values(), without_height(), b"", b"\xff\xd8\xff"])
def test_other_codings_are_left_to_the_decoder(encoded):
    coded = jpeg.opened(encoded)
    assert coded is None or not coded.can_be_cut


def test_a_jpeg_that_lacks_a_marker_is_left_to_the_decoder():
    encoded = without_a_marker()
    assert jpeg.opened(encoded).around(20, 20, 40, 40) == (encoded, 0, 0)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("encoded", [UPPER_ROWS["a picture in its header"], INTERVALS["4:2:0"]])
def test_a_jpeg_cut_short_is_refused_even_if_the_crop_lies_above(encoded, share):
    start = jpeg.opened(encoded).scan
    short = encoded[: start + int(share * (len(encoded) - start))]
    with pytest.raises(decode.Undecodable, match="cut short"):
        decode.cut(short, lambda H, W: (0, 0, 8, 8))


@pytest.mark.parametrize("encoded", [UPPER_ROWS["4:2:0"], INTERVALS["each row"]])
def test_an_altered_jpeg_is_a_picture_or_undecodable(encoded):
    rng = np.random.default_rng(0)
    outcomes = set()
    for offset in range(jpeg.opened(encoded).scan + 20):
        altered = bytearray(encoded)
        altered[offset] = rng.choice([0, altered[offset] ^ 1 << rng.integers(8)])
        try:
            outcomes.add(CROP(altered, rng).shape)
        except decode.Undecodable:
            outcomes.add("undecodable")
    assert outcomes == {(48, 48, 3), "undecodable"}
