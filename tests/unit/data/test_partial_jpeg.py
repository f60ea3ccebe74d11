"""A crop of a JPEG is the same whether or not the rest of it was decoded."""

import io

import numpy as np
import pytest
from PIL import Image
from support import photographs

from nest_dist.data import crop, decode, partial_jpeg

COFFEE = photographs.photograph("coffee")[:200, :311]  # 20 units of 16 pixels in a row
H, W, _ = COFFEE.shape
CROP = crop.RandomResizedCrop(side=48, area=(0.05, 1.0))


def saved(mode="RGB", form="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(COFFEE).convert(mode).save(file, form, **options)
    return file.getvalue()


def without_height():
    """What says only at its end how many rows it has."""
    encoded = bytearray(saved())
    frame = partial_jpeg.opened(encoded).frame
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
WHOLE = {
    "progressive": saved(progressive=True),
    "intervals over the end of a row": saved(restart_marker_blocks=3),
    "intervals of two rows": saved(restart_marker_rows=2),
    "png": saved(form="PNG"),
    "pixels": COFFEE,
}
SAVED = [*UPPER_ROWS.values(), *INTERVALS.values(), *WHOLE.values()]
NAMES = [*UPPER_ROWS, *(f"intervals, {name}" for name in INTERVALS), *WHOLE]


@pytest.mark.parametrize("picture", SAVED, ids=NAMES)
def test_a_crop_does_not_depend_on_the_rest(picture, capfd):
    whole = decode.pixels(picture)
    for number in range(60):
        first, second = (np.random.Generator(np.random.Philox(key=[7, number])) for _ in range(2))
        np.testing.assert_array_equal(CROP.decoded(picture, first), CROP(whole, second))
        assert first.random() == second.random()
    assert capfd.readouterr().err == ""  # the decoder complains of what it takes for corrupt


@pytest.mark.parametrize("name", INTERVALS)
def test_every_rectangle_of_intervals_has_the_pixels_of_the_whole(name, capfd):
    jpeg, whole = partial_jpeg.opened(INTERVALS[name]), decode.pixels(INTERVALS[name])
    for top, height in ((0, 1), (0, H), (15, 1), (16, 1), (17, 30), (32, 16), (H - 1, 1)):
        for left, width in ((0, 1), (0, W), (63, 1), (64, 1), (65, 127), (128, 64), (W - 1, 1)):
            found = jpeg.pixels(top, left, height, width)
            np.testing.assert_array_equal(
                found, whole[top : top + height, left : left + width], f"{top} {left}"
            )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", UPPER_ROWS)
def test_rows_below_are_not_decoded(name):
    jpeg = partial_jpeg.opened(UPPER_ROWS[name])
    assert jpeg.sides == (H, W)
    for bottom in (1, 50, 100):
        encoded, down, right = jpeg.part(0, 0, bottom, W)
        assert (down, right) == (0, 0)
        assert bottom <= len(decode.pixels(encoded)) < bottom + 20


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_around_are_not_decoded(name):
    jpeg = partial_jpeg.opened(INTERVALS[name])
    height, width = jpeg.unit[0], jpeg.unit[1] * jpeg.interval
    for top, left, bottom, right in ((0, 0, 5, 5), (66, 130, 79, 200), (180, 250, H, W)):
        encoded, down, along = jpeg.part(top, left, bottom, right)
        assert top - height <= down <= top
        assert left - width <= along <= left
        found = decode.pixels(encoded)
        assert bottom <= down + found.shape[0] <= bottom + height
        assert right <= along + found.shape[1] <= right + width


@pytest.mark.parametrize("encoded", [*WHOLE.values(), without_height(), b"", b"\xff\xd8\xff"])
def test_what_is_coded_in_another_way_is_left_to_the_decoder(encoded):
    jpeg = partial_jpeg.opened(encoded)
    assert jpeg is None or not jpeg.in_parts


def test_a_jpeg_that_lacks_a_marker_is_left_to_the_decoder():
    encoded = without_a_marker()
    assert partial_jpeg.opened(encoded).part(20, 20, 40, 40) == (encoded, 0, 0)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
@pytest.mark.parametrize("whole", [UPPER_ROWS["a picture in its header"], INTERVALS["4:2:0"]])
def test_a_jpeg_cut_short_is_found_even_if_the_crop_lies_above(whole, share):
    start = partial_jpeg.opened(whole).scan
    short = whole[: start + int(share * (len(whole) - start))]
    with pytest.raises(decode.Undecodable, match="cut short"):
        partial_jpeg.opened(short).pixels(0, 0, 8, 8)


@pytest.mark.parametrize("whole", [UPPER_ROWS["4:2:0"], INTERVALS["each row"]])
def test_an_altered_jpeg_is_a_picture_or_undecodable(whole):
    rng = np.random.default_rng(0)
    outcomes = set()
    for place in range(partial_jpeg.opened(whole).scan + 20):
        altered = bytearray(whole)
        altered[place] = rng.choice([0, altered[place] ^ 1 << rng.integers(8)])
        try:
            outcomes.add(CROP.decoded(altered, rng).shape)
        except decode.Undecodable:
            outcomes.add("undecodable")
    assert outcomes == {(48, 48, 3), "undecodable"}
