import io
import math

import numpy as np
import pytest
from PIL import Image
from support import photographs

from nest_dist.base import failures
from nest_dist.data.transforms import crop, decode

CHELSEA = photographs.photograph("chelsea")  # 300 x 451


def generator(number: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[7, number]))


# Of 100,000 rectangles that TensorFlow 2.21 drew of each: `tests/benchmarks/rectangles.py`.
@pytest.mark.parametrize(
    ("sides", "mean", "median", "small"),
    [
        ((375, 500), 0.3425, 0.3006, 0.3444),
        ((500, 375), 0.3277, 0.2880, 0.3585),
        ((500, 500), 0.3772, 0.3335, 0.3164),
        ((60, 500), 0.0847, 0.0813, 1.0),
    ],
)
def test_a_resized_crop_has_the_areas_of_tensorflow(sides, mean, median, small):
    cut = crop.RandomResizedCrop(side=224, area=(0.05, 1.0), aspect=(0.75, 1.33))
    (H, W), rng = sides, generator()
    drawn = np.array([cut.rectangle(H, W, rng) for _ in range(20_000)])
    top, left, height, width = drawn.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= H).all()
    assert (left + width <= W).all()
    area = height * width / (H * W)
    assert area.min() >= 0.05
    # Four standard errors of 20,000 draws and TensorFlow's own; even areas are 40 away.
    assert abs(area.mean() - mean) < 0.007
    assert abs(np.median(area) - median) < 0.009
    assert abs((area < 0.2).mean() - small) < 0.015
    # Each position is as likely, but for the last one, which TensorFlow never draws.
    free = height < H
    assert abs((top - (H - height - 1) / 2)[free].mean()) < 0.01 * H
    assert (top + height)[free].max() < H


def test_a_resized_crop_that_nothing_allowed_fits_is_the_complete_picture():
    cut = crop.RandomResizedCrop(side=224, area=(0.9, 1.0))
    assert cut.rectangle(1000, 100, generator()) == (0, 0, 1000, 100)
    assert cut.rectangle(1, 1, generator()) == (0, 0, 1, 1)


def test_timms_resized_crop_draws_area_and_aspect_evenly():
    cut = crop.RandomResizedCrop(side=224, area=(0.05, 1.0), sampling="timm")
    H, W = 1000, 1000
    drawn = np.array([cut.rectangle(H, W, generator(number)) for number in range(6000)])
    top, left, height, width = drawn.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= H).all()
    assert (left + width <= W).all()
    area, aspect = height * width / (H * W), width / height
    assert area.min() >= 0.049
    # A rectangle near the whole picture fits only if its aspect is the picture's; below 0.75 (the
    # narrowest aspect) all fit, and shares of the draws must be even.
    fitting = area[area < 0.75]
    counts, _ = np.histogram(fitting, bins=7, range=(0.05, 0.75))
    # Five standard deviations of a binomial around 1/7 of about 4,700 draws.
    assert np.abs(counts / len(fitting) - 1 / 7).max() < 0.026
    small = area < 0.5
    logarithm = np.log(aspect[small]) / math.log(4 / 3)
    assert np.abs(logarithm).max() < 1.02
    assert abs(logarithm.mean()) < 0.06
    assert abs(logarithm.std() - 1 / math.sqrt(3)) < 0.03
    # Every position is as likely: the middle of the free range on average.
    free = small & (height < H) & (width < W)
    assert abs((top[free] / (H - height[free])).mean() - 0.5) < 0.03
    assert abs((left[free] / (W - width[free])).mean() - 0.5) < 0.03


def test_timms_resized_crop_of_a_narrow_picture_falls_back_to_its_middle():
    cut = crop.RandomResizedCrop(side=32, area=(1.0, 1.0), sampling="timm")
    top, left, height, width = cut.rectangle(1000, 100, generator())
    assert (height, width) == (133, 100)
    assert (top, left) == (433, 0)


def test_a_resized_crop_looks_like_pillows_bilinear_resizing():
    cut = crop.RandomResizedCrop(side=224, area=(0.1, 0.2))
    top, left, height, width = cut.rectangle(*CHELSEA.shape[:2], generator(3))
    ours = cut(CHELSEA, generator(3))
    box = (left, top, left + width, top + height)
    cut_out = Image.fromarray(CHELSEA).crop(box)
    pillow = cut_out.resize((224, 224), Image.Resampling.BILINEAR)
    # The cut is enlarged, where both interpolate alike; OpenCV rounds weights to 11 bits.
    assert np.abs(ours.astype(int) - np.asarray(pillow).astype(int)).max() <= 3


@pytest.mark.parametrize("name", ["chelsea", "astronaut"])
def test_the_evaluation_crop_is_resizing_and_then_cutting_the_middle(name):
    image = photographs.photograph(name)
    H, W, _ = image.shape
    ours = crop.ResizedCentreCrop(side=224, shorter_side=256)(image, generator())
    size = (round(W * 256 / min(H, W)), round(H * 256 / min(H, W)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    pillow = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    # Pillow smooths when it makes pictures smaller, the official pipeline does not: edges differ.
    assert np.abs(ours.astype(int) - pillow).mean() < 5
    shifted = np.abs(ours[:, 2:].astype(int) - pillow[:, :-2]).mean()
    assert shifted > 1.5 * np.abs(ours.astype(int) - pillow).mean()


def test_an_evaluation_crop_without_resizing_is_exact():
    image = photographs.photograph("coffee", 300)
    ours = crop.ResizedCentreCrop(side=200, shorter_side=300)(image, generator())
    np.testing.assert_array_equal(ours, image[50:250, 50:250])


@pytest.mark.parametrize("channels", [1, 3])
def test_an_evaluation_crop_of_a_picture_of_its_size_changes_no_pixel(channels):
    """As for CIFAR, whose pictures are stored without loss."""
    stored = np.random.default_rng(0).integers(0, 256, (32, 32, channels), np.uint8)
    whole = crop.ResizedCentreCrop(side=32, shorter_side=32)
    np.testing.assert_array_equal(whole(stored, generator()), stored)
    if channels == 3:
        encoded = decode.encode(stored, "png")
        np.testing.assert_array_equal(whole(encoded, generator()), stored)


def test_grey_pictures_keep_their_one_channel():
    grey = np.ascontiguousarray(CHELSEA[..., :1])
    assert crop.RandomResizedCrop(side=8, area=(0.5, 1.0))(grey, generator()).shape == (8, 8, 1)
    assert crop.ResizedCentreCrop(side=8, shorter_side=9)(grey, generator()).shape == (8, 8, 1)
    assert crop.Flip(probability=1.0)(grey, generator()).shape == grey.shape


def test_padded_crops_reach_every_position_equally_often():
    image = np.full((32, 32, 1), 255, np.uint8)
    cut = crop.PaddedCrop(side=32, padding=2)
    counts = np.zeros((5, 5), int)
    for number in range(5000):
        drawn = cut(image, generator(number))[..., 0]
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        down = rows[0] if rows[0] else len(rows) - 32
        right = columns[0] if columns[0] else len(columns) - 32
        counts[down + 2, right + 2] += 1
    # Five standard deviations of a binomial around 200.
    assert np.abs(counts - 200).max() < 70


def test_flips_happen_half_of_the_time_and_mirror_left_and_right():
    flip = crop.Flip()
    results = [flip(CHELSEA[:4, :6], generator(number)) for number in range(2000)]
    flipped = sum(bool((image != CHELSEA[:4, :6]).any()) for image in results)
    assert abs(flipped - 1000) < 112  # five standard deviations
    np.testing.assert_array_equal(crop.Flip(1.0)(CHELSEA, generator()), CHELSEA[:, ::-1])


@pytest.mark.parametrize("area", [(0.0, 1.0), (0.5, 0.1), (0.5, 1.5)])
def test_areas_that_are_no_shares_are_refused(area):
    with pytest.raises(
        failures.BadInput, match=r"RandomResizedCrop.area is .*; give \(smallest, largest\)"
    ):
        crop.RandomResizedCrop(side=8, area=area)


def test_a_resized_side_below_the_crop_is_refused():
    with pytest.raises(
        failures.BadInput, match=r"ResizedCentreCrop.shorter_side is 200; it must be at least 224"
    ):
        crop.ResizedCentreCrop(side=224, shorter_side=200)


def test_a_picture_larger_than_the_padded_crop_is_refused():
    with pytest.raises(failures.BadInput, match="a picture has 40 x 30 pixels, more than the crop"):
        crop.PaddedCrop(side=32, padding=2)(np.zeros((40, 30, 3), np.uint8), generator())


def test_the_official_crop_cuts_values_off_where_ours_rounds():
    rectangle = {"side": 224, "area": (0.3, 0.9)}
    nearest, down = (
        crop.RandomResizedCrop(rounding=rounding, **rectangle)(CHELSEA, generator(1)).astype(int)
        for rounding in ("nearest", "down")
    )
    # OpenCV rounds the weights of bytes to 11 bits, those of floats not.
    assert set(np.unique(nearest - down)) <= {-1, 0, 1, 2}
    assert abs((nearest - down).mean() - 0.5) < 0.1
    whole = crop.RandomResizedCrop((300, 451), area=(1, 1), aspect=(1, 1), rounding="down")
    np.testing.assert_array_equal(whole(CHELSEA, generator()), CHELSEA)


def test_oblong_crops_keep_their_aspect():
    cut = crop.RandomResizedCrop((96, 160), area=(0.05, 1.0))
    aspects = []
    for number in range(500):
        _, _, height, width = cut.rectangle(600, 1000, generator(number))
        aspects.append(width / height / (160 / 96))
    assert 0.74 < min(aspects) < 0.8
    assert 1.25 < max(aspects) < 1.35
    assert cut(CHELSEA, generator()).shape == (96, 160, 3)
    centre = crop.ResizedCentreCrop((96, 160), shorter_side=(96, 160))
    assert centre(CHELSEA, generator()).shape == (96, 160, 3)
    assert crop.PaddedCrop((310, 460), padding=4)(CHELSEA, generator()).shape == (310, 460, 3)
    with pytest.raises(failures.BadInput, match="shorter_side is 100; it must be at least 160"):
        crop.ResizedCentreCrop((96, 160), shorter_side=100)
    with pytest.raises(failures.BadInput, match=r"300 x 451 pixels, more than .* side of 96 x 160"):
        crop.CentrePad((96, 160))(CHELSEA, generator())


@pytest.mark.parametrize("name", ["chelsea", "astronaut", "coffee"])
def test_antialiasing_does_what_pillows_box_filter_does(name):
    image = photographs.photograph(name)
    whole = crop.RandomResizedCrop((64, 72), area=(1, 1), aspect=(0.1, 10), antialias=True)
    ours = crop.resized(image, (64, 72), True)
    pillow = np.asarray(Image.fromarray(image).resize((72, 64), Image.Resampling.BOX)).astype(int)
    # Pillow takes whole pixels, OpenCV also parts of them.
    assert np.abs(ours - pillow).mean() < 2.0
    plain = crop.resized(image, (64, 72), False)
    lanczos = np.asarray(Image.fromarray(image).resize((72, 64), Image.Resampling.LANCZOS))
    error = [np.abs(each.astype(int) - lanczos).mean() for each in (ours, plain)]
    assert error[0] < 0.75 * error[1]
    assert whole(image, generator()).shape == (64, 72, 3)
    # What grows is interpolated as without.
    grown = image[:20, :30]
    np.testing.assert_array_equal(
        crop.resized(grown, (64, 72), True), crop.resized(grown, (64, 72), False)
    )


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 2}, {"progressive": True}])
@pytest.mark.parametrize("number", [1, 6])
def test_a_jpeg_at_a_part_of_its_sides_shows_the_same(options, number):
    image = np.asarray(Image.fromarray(photographs.photograph("coffee")).resize((1500, 1000)))
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = number
    Image.fromarray(image).save(file, "JPEG", quality=95, exif=exif, **options)
    upright = np.rot90(image, -1) if number == 6 else image
    recipe = {"side": (48, 40), "area": (0.2, 0.9), "antialias": True, "exif_orientation": True}
    for seed in range(5):
        cut = crop.RandomResizedCrop(**recipe)
        small, whole = cut(file.getvalue(), generator(seed)), cut(upright, generator(seed))
        # The rectangle may lie up to half a pixel off; a whole pixel shows.
        difference = np.abs(small.astype(int) - whole).mean()
        assert difference < 6
        assert np.abs(small[:, 1:].astype(int) - whole[:, :-1]).mean() > 1.2 * difference
    centre = crop.ResizedCentreCrop(48, shorter_side=55, antialias=True, exif_orientation=True)
    small, whole = centre(file.getvalue(), generator()), centre(upright, generator())
    assert np.abs(small.astype(int) - whole).mean() < 6
