"""A crop of a JPEG is the same whether or not the rows below it were decoded."""

import io

import numpy as np
import pytest
from PIL import Image
from support import photographs

from nest_dist.data import crop, decode, upper_rows

COFFEE = photographs.photograph("coffee")[:200, :301]
CROP = crop.RandomResizedCrop(side=48, area=(0.05, 1.0))


def saved(mode="RGB", form="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(COFFEE).convert(mode).save(file, form, **options)
    return file.getvalue()


def without_height():
    """What says only at its end how many rows it has."""
    encoded = bytearray(saved())
    frame = upper_rows.opened(encoded).frame
    encoded[frame + 5 : frame + 7] = bytes(2)
    return bytes(encoded)


def thumbnail():
    exif = Image.Exif()
    exif[0x010E] = "a description" + photographs.jpeg().decode("latin-1")
    return exif


IN_PART = {
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
AS_A_WHOLE = {
    "progressive": saved(progressive=True),
    "with restarts": saved(restart_marker_blocks=4),
    "png": saved(form="PNG"),
    "pixels": COFFEE,
}


@pytest.mark.parametrize("name", [*IN_PART, *AS_A_WHOLE])
def test_a_crop_does_not_depend_on_the_rows_below_it(name, capfd):
    picture = (IN_PART | AS_A_WHOLE)[name]
    whole = decode.pixels(picture)
    for number in range(40):
        first, second = (np.random.Generator(np.random.Philox(key=[7, number])) for _ in range(2))
        np.testing.assert_array_equal(CROP.decoded(picture, first), CROP(whole, second))
        assert first.random() == second.random()
    assert capfd.readouterr().err == ""  # the decoder complains of what it takes for corrupt


@pytest.mark.parametrize("name", IN_PART)
def test_rows_below_are_not_decoded(name):
    jpeg = upper_rows.opened(IN_PART[name])
    assert jpeg.sides == COFFEE.shape[:2]
    for rows in (1, 50, 100):
        assert rows <= len(jpeg.pixels(rows)) < rows + 20


@pytest.mark.parametrize("encoded", [*AS_A_WHOLE.values(), without_height(), b"", b"\xff\xd8\xff"])
def test_what_is_coded_in_another_way_is_left_to_the_decoder(encoded):
    assert upper_rows.opened(encoded) is None


@pytest.mark.parametrize("share", [0.05, 0.4, 0.95])
def test_a_jpeg_cut_short_is_found_even_if_the_crop_lies_above(share):
    encoded = IN_PART["a picture in its header"]
    start = upper_rows.opened(encoded).scan
    short = encoded[: start + int(share * (len(encoded) - start))]
    with pytest.raises(decode.Undecodable, match="cut short"):
        upper_rows.opened(short).pixels(20)
