import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from support import photographs

from nest_dist.base import failures
from nest_dist.data import batch
from nest_dist.data.transforms import randaugment

IMAGE = photographs.photograph("astronaut", 224)
PICTURE = Image.fromarray(IMAGE)
FACTORS = (0.1, 0.73, 1.0, 1.72, 1.9)


def largest_difference(ours: np.ndarray, pillow: Image.Image) -> int:
    return int(np.abs(ours.astype(int) - np.asarray(pillow).astype(int)).max())


def share_of_other_pixels(ours: np.ndarray, pillow: Image.Image) -> float:
    return float((ours != np.asarray(pillow)).any(-1).mean())


def changed(name, image, level=1.0, sign=1):
    return randaugment.OPERATIONS[name](image, level, sign, 100)


# OpenCV rounds where Pillow cuts off; grey, and with it what is blended with it, may be one apart.
@pytest.mark.parametrize(
    ("ours", "pillow", "tolerance"),
    [
        (randaugment.auto_contrast, ImageOps.autocontrast, 1),
        (randaugment.equalize, ImageOps.equalize, 0),
        (lambda image: changed("Invert", image), ImageOps.invert, 0),
    ],
)
def test_an_operation_without_level_does_what_pillow_does(ours, pillow, tolerance):
    assert largest_difference(ours(IMAGE), pillow(PICTURE)) <= tolerance
    assert largest_difference(ours(IMAGE // 3 + 40), pillow(Image.fromarray(IMAGE // 3 + 40))) <= (
        tolerance
    )


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_does_what_pillow_does(bits):
    assert (
        largest_difference(randaugment.posterize(IMAGE, bits), ImageOps.posterize(PICTURE, bits))
        == 0
    )


@pytest.mark.parametrize("threshold", [0, 1, 128, 230, 255])
def test_solarize_does_what_pillow_does(threshold):
    expected = ImageOps.solarize(PICTURE, threshold)
    assert largest_difference(randaugment.solarize(IMAGE, threshold), expected) == 0


def test_solarize_add_lightens_the_darker_half_only():
    changed = randaugment.solarize_add(IMAGE, 100)
    expected = np.where(IMAGE < 128, np.minimum(IMAGE.astype(int) + 100, 255), IMAGE)
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("ours", "pillow", "tolerance"),
    [
        (randaugment.color, ImageEnhance.Color, 2),
        (randaugment.contrast, ImageEnhance.Contrast, 1),
        (randaugment.brightness, ImageEnhance.Brightness, 1),
        (randaugment.sharpness, ImageEnhance.Sharpness, 2),
    ],
)
def test_an_enhancement_does_what_pillow_does(ours, pillow, tolerance, factor):
    assert largest_difference(ours(IMAGE, factor), pillow(PICTURE).enhance(factor)) <= tolerance


# Pillow measures from the corner of the first pixel, OpenCV from its centre: half a slope. Both
# round coordinates to fractions of a pixel, so a few nearest pixels are others.
@pytest.mark.parametrize(
    ("ours", "matrix"),
    [
        (lambda image: changed("ShearX", image, 0.9), (1, 0.27, -0.135, 0, 1, 0)),
        (lambda image: changed("ShearY", image, 0.9, -1), (1, 0, 0, -0.27, 1, 0.135)),
        (lambda image: changed("TranslateX", image, 0.9), (1, 0, -90, 0, 1, 0)),
        (lambda image: changed("TranslateY", image, 0.33, -1), (1, 0, 0, 0, 1, 33)),
    ],
)
def test_a_move_does_what_pillow_does(ours, matrix):
    expected = PICTURE.transform(
        PICTURE.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(128,) * 3
    )
    assert share_of_other_pixels(ours(IMAGE), expected) < 0.02


@pytest.mark.parametrize("degrees", [-30, -7.5, 12, 27])
def test_a_rotation_does_what_pillow_does(degrees):
    expected = PICTURE.rotate(degrees, Image.Resampling.NEAREST, fillcolor=(128,) * 3)
    assert share_of_other_pixels(randaugment.rotate(IMAGE, degrees), expected) < 0.02
    wrong_way = PICTURE.rotate(-degrees, Image.Resampling.NEAREST, fillcolor=(128,) * 3)
    assert share_of_other_pixels(randaugment.rotate(IMAGE, degrees), wrong_way) > 0.5


@pytest.mark.parametrize("name", randaugment.OPERATIONS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_every_operation_keeps_shape_type_and_the_image_it_was_given(name, level):
    before = IMAGE.copy()
    for sign in (-1, 1):
        after = randaugment.OPERATIONS[name](IMAGE, level, sign, 100)
        assert after.shape == IMAGE.shape
        assert after.dtype == np.uint8
    np.testing.assert_array_equal(IMAGE, before)


def test_choices_have_the_probabilities_and_levels_that_are_configured():
    augment = randaugment.RandAugment(translation=100)
    draws = [augment.choose(np.random.default_rng(number)) for number in range(8000)]
    chosen = [operation for draw in draws for operation in draw]

    # Bounds are five standard deviations of the binomial and normal distributions.
    assert abs(len(chosen) / 16000 - 0.5) < 0.02
    both = sum(len(draw) == 2 for draw in draws) / 8000
    assert abs(both - 0.25) < 0.025
    counts = collections.Counter(name for name, _, _ in chosen)
    assert len(counts) == 16
    assert max(abs(count / len(chosen) - 1 / 16) for count in counts.values()) < 0.014
    levels = np.array([level for _, level, _ in chosen])
    assert levels.min() >= 0
    assert levels.max() <= 1
    # A normal distribution cut off two deviations above its mean: 2.3% of draws are at the limit.
    assert abs(np.median(levels) - 0.9) < 0.004
    assert abs((levels == 1).mean() - 0.0228) < 0.009
    assert abs(np.std(levels[levels < 1]) - 0.046) < 0.004
    signs = np.array([sign for _, _, sign in chosen])
    assert abs((signs == 1).mean() - 0.5) < 0.03


def test_pictures_of_one_channel_are_refused():
    augment = randaugment.RandAugment(translation=10)
    with pytest.raises(
        failures.BadInput, match=r"given uint8 \[8, 8, 1\], it needs 3 channels; leav"
    ):
        augment.output(batch.ImageSpec(8, 8, 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [("magnitude", 11.0), ("probability", 1.5), ("operations", -1), ("translation", -1)],
)
def test_a_field_out_of_range_is_refused(field, value):
    with pytest.raises(failures.BadInput, match=f"RandAugment.{field} is {value}; it must be"):
        randaugment.RandAugment(**{"translation": 100, field: value})


@pytest.mark.parametrize("name", ["Color", "Sharpness"])
@pytest.mark.parametrize("level", [0.2, 0.95])
def test_values_between_two_bytes_are_cut_off_as_by_the_official_code(name, level):
    down = randaugment.ROUNDING_DOWN[name](IMAGE, level, 1, 100).astype(int)
    nearest = changed(name, IMAGE, level).astype(int)
    assert set(np.unique(nearest - down)) == {0, 1}
    # Half of the fractions are rounded up; whole bytes, as the brightest, are not.
    assert 0.3 < (nearest - down).mean() < 0.55
    recipe = randaugment.RandAugment(translation=100, rounding="down")
    assert recipe(IMAGE, np.random.default_rng(0)).dtype == np.uint8
