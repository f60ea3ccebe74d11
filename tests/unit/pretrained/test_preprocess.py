import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from support import family, photographs
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.data.transforms import crop
from nest_dist.pretrained import preprocess


def prepared(model, picture, run=None):
    return preprocess.of_model(model, run).images([picture])[0]


def test_without_a_configuration_the_middle_is_cut_as_for_the_published_weights():
    model = family.small("multi_head", image_size=112)
    picture = np.zeros((256, 512, 3), np.uint8)
    picture[:, 256 - 112 : 256 + 112] = 200  # what 112 of 128 pixels show of 256
    image = prepared(model, picture)
    assert image.shape == (112, 112, 3)
    assert np.all(image[:, 1:-1] == 200)
    assert np.all(prepared(model, picture[:, :, ::-1].copy()) == image)
    scale = preprocess.of_model(model, None).normalize
    assert scale.mean == (0.485, 0.456, 0.406)


def test_a_small_model_sees_the_full_height_of_a_picture():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[0], picture[-1] = 100, 200
    image = prepared(family.small("multi_head"), picture)
    assert image.shape == (32, 32, 3)
    assert np.all(image[0] >= 50)
    assert np.all(image[-1] >= 100)


def test_a_wide_model_sees_the_middle_of_a_picture_in_its_own_shape():
    model = family.small("wide_image", image_size=(16, 32), num_channels=3)
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[16:48] = 90
    image = prepared(model, picture)
    assert image.shape == (16, 32, 3)
    assert np.all(image == 90)


def test_the_transforms_of_the_run_are_used_where_they_fit(trained):
    run = json.loads((pathlib.Path(trained.workdir) / "run.json").read_text())
    small = np.full((10, 10, 1), 7, np.uint8)
    image = prepared(trained.model, small, run)
    assert image.sum() == 700  # padded, not resized
    large = np.full((100, 60, 1), 7, np.uint8)
    assert np.all(prepared(trained.model, large, run) == 7)


def test_colours_become_grey_and_grey_becomes_colours(trained):
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[..., 1] = 100
    assert np.all(prepared(trained.model, colour) == 59)  # luminance of green
    grey = np.full((32, 32, 1), 9, np.uint8)
    image = prepared(family.small("multi_head"), grey)
    assert image.shape == (32, 32, 3)
    assert np.all(image == 9)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"a picture is an array float32\[4, 4, 3\]; give uint8"),
        (
            np.zeros(4, np.uint8),
            r"a picture is an array uint8\[4\]; give uint8 \[H, W\] or \[H, W, C\], or a batch",
        ),
        (np.zeros((4, 4, 4), np.uint8), r"a picture has 4 channels, the model takes 1; convert"),
        (b"hello", r"the picture is no picture that can be decoded \(unknown.*\); give JPEG, PNG"),
        ("/dev/zero", r"^/dev/zero is no file; give the path of a picture\."),
        ("/no/such", r"/no/such cannot be read \(No such file or directory\); give the path of a"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message, trained):
    with pytest.raises(failures.BadInput, match=message):
        prepared(trained.model, picture)


def turned(number: int = 6) -> tuple[bytes, Image.Image]:
    """A photograph as a telephone stores it: the bytes, and the image of Pillow."""
    exif = Image.Exif()
    exif[0x0112] = number
    file = io.BytesIO()
    Image.fromarray(photographs.photograph("chelsea")[:64, :96]).save(file, "PNG", exif=exif)
    return file.getvalue(), Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("upright", [False, True])
def test_pictures_are_turned_as_in_training(upright):
    encoded, pillow = turned()
    cut = crop.ResizedCentreCrop(32, shorter_side=32, exif_orientation=upright)
    seen = preprocess.Preprocessing((32, 32), 3, (cut,), preprocess.IMAGENET)
    wanted = cut(np.asarray(ImageOps.exif_transpose(pillow) if upright else pillow), None)
    for picture in (encoded, pillow):
        np.testing.assert_array_equal(seen.images([picture])[0], wanted)


def test_deep_pictures_need_a_range_that_training_had():
    values = np.random.default_rng(0).integers(0, 4096, (32, 32), np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    encoded = file.getvalue()
    for picture, message in (
        (encoded, "no picture that can be decoded (grey 16-bit png with values in ["),
        (Image.open(io.BytesIO(encoded)), "a picture of mode I;16 has values in ["),
    ):
        plain = preprocess.Preprocessing((32, 32), 1, (), preprocess.GREY)
        with refusal(message):
            plain.images([picture])
        padded = (crop.CentrePad(32, value_range=(0, 4095), channels=1),)
        seen = preprocess.Preprocessing((32, 32), 1, padded, preprocess.GREY)
        np.testing.assert_array_equal(
            seen.images([picture])[0, ..., 0], np.rint(values * (255 / 4095))
        )


def test_without_a_run_an_oblong_model_sees_the_middle():
    model = family.small("multi_head", image_size=(96, 160))
    picture = np.zeros((300, 400, 3), np.uint8)
    picture[45:255, 25:375] = 200  # 96 x 160 of the 110 x 183 that the picture just covers
    image = preprocess.of_model(model, None).images([picture])[0]
    assert image.shape == (96, 160, 3)
    assert np.all(image[1:-1, 1:-1] == 200)
