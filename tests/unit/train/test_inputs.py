import colorsys
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance
from support import photographs

from nest_dist.base import failures
from nest_dist.train import inputs
from nest_dist.train.augment import erasing, jitter, mixing

IMAGE = photographs.photograph("astronaut", 64)
UNIT = jnp.asarray(IMAGE)[None] / 255
PIXELS = inputs.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RECIPE = inputs.Inputs(
    PIXELS,
    jitter.ColorJitter(strength=0.3),
    erasing.RandomErasing(probability=0.25),
    mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0),
)


# Each function is compiled once, and not operation by operation.
compiled = functools.cache(jax.jit)


def amount(value: float) -> jax.Array:
    return jnp.full((1, 1, 1, 1), value)


def as_hsv(image: np.ndarray) -> np.ndarray:
    return np.array([colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)])


@pytest.mark.parametrize("change", [-0.24, 0.0, 0.24])
def test_brightness_does_what_pillow_does(change):
    ours = jnp.clip(compiled(jitter.brighten)(UNIT, amount(change)), 0, 1)[0] * 255
    pillow = np.asarray(ImageEnhance.Brightness(Image.fromarray(IMAGE)).enhance(1 + change))
    assert np.abs(np.asarray(ours) - pillow).max() < 1.01  # Pillow cuts fractions off


@pytest.mark.parametrize("change", [-0.24, 0.24])
def test_contrast_moves_each_channel_away_from_its_mean(change):
    ours = np.asarray(compiled(jitter.contrast)(UNIT, amount(change)))[0]
    np.testing.assert_allclose(ours.mean((0, 1)), np.asarray(UNIT)[0].mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(
        ours.std((0, 1)), (1 + change) * np.asarray(UNIT)[0].std((0, 1)), rtol=1e-4
    )


@pytest.mark.medium
@pytest.mark.parametrize("change", [-0.24, 0.24, 5.0])
def test_saturation_scales_only_the_saturation(change):
    ours, before = (
        as_hsv(np.asarray(compiled(jitter.saturate)(UNIT, amount(change)))[0]),
        as_hsv(UNIT[0]),
    )
    np.testing.assert_allclose(ours[:, 2], before[:, 2], atol=1e-5)
    expected = np.minimum(before[:, 1] * (1 + change), 1)
    np.testing.assert_allclose(ours[:, 1], expected, atol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("change", [-0.06, 0.06, 0.4, 1.0])
def test_a_turn_of_the_hue_keeps_saturation_and_value(change):
    ours, before = (
        as_hsv(np.asarray(compiled(jitter.turn_hue)(UNIT, amount(change)))[0]),
        as_hsv(UNIT[0]),
    )
    np.testing.assert_allclose(ours[:, 1:], before[:, 1:], atol=1e-4)
    colourful = (before[:, 1] > 0.1) & (before[:, 2] > 0.1)
    turned = (ours[:, 0] - before[:, 0] - change + 0.5) % 1 - 0.5
    assert np.abs(turned[colourful]).max() < 1e-3


def test_jitter_changes_four_pictures_of_five_and_makes_one_of_five_grey():
    images = jnp.broadcast_to(jnp.array([0.6, 0.4, 0.3]), (4000, 2, 2, 3))
    jittered = compiled(jitter.ColorJitter(strength=0.3))
    changed = np.asarray(jittered(images, jax.random.key(0), jnp.arange(4000)))[:, 0, 0]
    is_grey = np.ptp(changed, axis=-1) < 1e-6
    assert abs(is_grey.mean() - 0.2) < 0.032  # five standard deviations
    untouched = np.abs(changed - np.array([0.6, 0.4, 0.3])).max(-1) < 1e-6
    assert abs(untouched.mean() - 0.2 * 0.8) < 0.03
    coloured = changed[~is_grey & ~untouched]
    # With one colour contrast changes nothing: the brightest channel shows the brightness alone.
    factor = coloured.max(-1) / 0.6
    assert factor.min() > 0.76 - 1e-5
    assert factor.max() < 1.24 + 1e-5
    assert abs(factor.std() - 0.24 / np.sqrt(3)) < 0.01


def test_jitter_refuses_grey_pictures():
    with pytest.raises(failures.BadInput, match="got images of 1 channels, not 3; set Inputs"):
        jitter.ColorJitter(strength=0.3)(jnp.zeros((2, 4, 4, 1)), jax.random.key(0), jnp.arange(2))


def test_erasing_has_the_configured_chance_areas_and_aspects():
    side = 128
    erase = erasing.RandomErasing(probability=0.25)
    masks = np.asarray(
        erase.masks((4000, side, side, 3), jax.random.split(jax.random.key(0), 4000))
    )
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    np.testing.assert_array_equal(masks.sum((1, 2)), rows * columns)
    erased = rows * columns > 0
    assert abs(erased.mean() - 0.25) < 0.035  # five standard deviations
    # Those that touch no border show the size that was drawn.
    inner = masks[:, 1:-1, 1:-1].sum((1, 2)) == masks.sum((1, 2))
    whole = erased & inner
    area = rows[whole] * columns[whole] / side**2
    assert area.min() > 0.015
    assert area.max() < 0.36
    aspect = np.log(rows[whole] / columns[whole])
    assert np.abs(aspect).max() < np.log(1 / 0.3) + 0.15
    assert abs(aspect.mean()) < 0.2
    everywhere = erasing.RandomErasing(probability=1.0).masks(
        (4000, 64, 64, 3), jax.random.split(jax.random.key(1), 4000)
    )
    drawn = np.asarray(everywhere).mean((1, 2))
    # Half of the centres lie so that a part is cut off: the mean is below that of the areas, 0.177.
    assert 0.1 < drawn.mean() < 0.177


def test_erased_pixels_are_normal_noise_and_the_others_stay():
    erase = erasing.RandomErasing(probability=1.0, area=(0.3, 0.3))
    images = jnp.full((64, 32, 32, 3), 7.0)
    erased = np.asarray(erase(images, jax.random.key(0), jnp.arange(64)))
    noise = erased[erased != 7]
    assert 0.1 < noise.size / erased.size < 0.3
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def test_what_is_left_out_leaves_normalization_alone():
    images = jnp.asarray(IMAGE)[None]
    plain, targets = inputs.Inputs(PIXELS)(images, jnp.eye(1), jax.random.key(0), jnp.arange(1))
    np.testing.assert_array_equal(plain, PIXELS(images))
    np.testing.assert_array_equal(targets, jnp.eye(1))


@pytest.mark.slow
def test_the_recipe_does_not_depend_on_the_number_of_devices():
    images = jnp.asarray(np.stack([IMAGE[:, ::step] for step in (1, -1)] * 4))
    targets = jnp.eye(8)
    key = jax.random.key(3)
    results = []
    for count in (1, 2, 4):
        mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        made = jax.jit(RECIPE, in_shardings=(rows, rows, None, rows), out_shardings=rows)(
            jax.device_put(images, rows), jax.device_put(targets, rows), key, jnp.arange(8)
        )
        results.append(jax.device_get(made))
    for other in results[1:]:
        # The compiler orders the sums of a mean differently for other shapes.
        np.testing.assert_allclose(other[0], results[0][0], atol=1e-5)
        np.testing.assert_allclose(other[1], results[0][1], atol=1e-6)


def test_another_step_is_augmented_differently():
    images, targets, rows = jnp.asarray(IMAGE)[None].repeat(2, 0), jnp.eye(2), jnp.arange(2)
    keys = (jax.random.fold_in(jax.random.key(0), step) for step in (0, 1))
    (first, _), (second, _) = (compiled(RECIPE)(images, targets, key, rows) for key in keys)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("nan")])
def test_a_standard_deviation_that_is_not_above_zero_is_refused(deviation):
    text = f"Normalize.std is {deviation}; it must be above 0."
    with pytest.raises(failures.BadInput, match=text):
        inputs.Normalize(mean=(0.5, 0.5), std=(0.5, deviation))


@pytest.mark.slow
def test_each_picture_may_have_its_own_order_of_changes():
    """Two pictures with the same amounts differ only by the order, all of which occur."""
    jitter_each = jitter.ColorJitter(0.9, probability=1.0, grey_probability=0.0, order="picture")
    images = jnp.broadcast_to(UNIT[0, ::8, ::8], (512, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), 512)
    amounts = jnp.broadcast_to(jnp.array([0.5, 0.6, -0.5, 0.1]), (512, 4))[..., None, None, None]
    found = np.asarray(compiled(jitter._in_own_order)(images, amounts, keys))
    expected = []
    for order in itertools.permutations(range(4)):
        image = images[:1]
        for operation in order:
            image = jnp.clip(jitter._OPERATIONS[operation](image, amounts[:1]), 0, 1)
        expected.append(np.asarray(image[0]))
    distance = np.abs(found[:, None] - np.stack(expected)).max((2, 3, 4))
    assert distance.min(1).max() < 1e-5
    counts = np.bincount(distance.argmin(1), minlength=24)
    # Some orders give the same image; each group of them has its share of the 512.
    same = np.abs(np.stack(expected)[:, None] - np.stack(expected)).max((2, 3, 4)) < 1e-5
    shares = (same @ counts) / same.sum(1)
    assert np.abs(shares - 512 / 24).max() < 20  # more than four standard deviations
    # The draws of a picture do not depend on the others.
    key, rows = jax.random.key(1), jnp.arange(512)
    whole = compiled(jitter_each)(images, key, rows)
    part = compiled(jitter_each)(images[100:104], key, rows[100:104])
    np.testing.assert_allclose(whole[100:104], part, atol=1e-6)


def test_the_official_jitter_gives_whole_bytes():
    down = jitter.ColorJitter(0.3, order="picture", rounding="down")
    exact = jitter.ColorJitter(0.3, order="picture")
    images, key, rows = jnp.asarray(UNIT).repeat(16, 0), jax.random.key(2), jnp.arange(16)
    found, wanted = (np.asarray(compiled(each)(images, key, rows)) for each in (down, exact))
    np.testing.assert_allclose(255 * found, np.round(255 * found), atol=1e-4)
    lost = 255 * (wanted - found)
    assert lost.min() > -1e-3
    assert lost.max() < 1 + 1e-3
    assert 0.3 < lost[np.abs(wanted - images).max((1, 2, 3)) > 0.01].mean() < 0.6
