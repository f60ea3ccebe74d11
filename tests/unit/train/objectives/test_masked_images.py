"""Masked images: the loss of PyTorch around timm's NesT, masks, and what does not fit."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import drawn
from support.refusals import refusal

from nest_dist import NesT
from nest_dist.base import failures, tree_paths
from nest_dist.pretrained import weights
from nest_dist.pretrained.formats import native
from nest_dist.train import inputs
from nest_dist.train.objectives import masked_images, pretext

GOLDEN = pathlib.Path(__file__).parents[3] / "golden"
# Both are float32 with sums in another order.
TOLERANCE = 1e-5
PIXELS = (48 // 3) ** 2 * 3
OWN = {"mask_token": (12,), "decoder/kernel": (48, PIXELS), "decoder/bias": (PIXELS,)}


def small(**fields):
    return NesT(
        **{
            "image_size": 16,
            "patch_size": 2,
            "dim": 4,
            "heads": 1,
            "num_hierarchies": 2,
            "block_repeats": (1, 1),
            "num_classes": 0,
            **fields,
        }
    )


@pytest.mark.medium
def test_loss_and_gradients_are_those_of_pytorch_around_timm():
    expected = json.loads((GOLDEN / "masked_images.json").read_text())
    model = NesT(48, 4, 12, 3, 3, (1, 1, 2), 0, gelu="exact")
    params = {n: np.broadcast_to(np.float32(0), s) for n, s in native.shapes_of(model).items()}
    of_timm = {
        name: drawn.timm_weight(name, leaf.shape)
        for name, leaf in weights.to_format("timm", params, model).items()
    }
    params = dict(weights.from_format("timm", of_timm, model))
    params |= {f"objective/{name}": 0.3 * drawn.array(name, shape) for name, shape in OWN.items()}
    images = jnp.asarray(drawn.images("masked", (2, 48, 48, 3)))
    objective = masked_images.MaskedImages(unit=8)
    hidden = objective.hidden(model, jax.random.key(0), jnp.arange(2))
    assert expected["masks"] == ["".join(map(str, one.reshape(-1))) for one in np.int32(hidden)]

    def loss(params):
        network = pretext.Network(model, tree_paths.unflatten(params))
        return objective.evaluate(network, images, {})["loss"].mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, expected["loss"], rtol=TOLERANCE)
    own = {name: grads.pop(f"objective/{name}") for name in OWN}
    of_model = weights.to_format("timm", jax.device_get(grads), model)
    compared = {**{f"timm/{name}": leaf for name, leaf in of_model.items()}, **own}
    assert compared.keys() == expected["gradients"].keys()
    for name, gradient in compared.items():
        norm, product = expected["gradients"][name]
        leaf = np.asarray(gradient, np.float64)
        drawn_array = drawn.array(f"product {name}", leaf.shape)
        # Keys move all scores of a token alike, so by their bias the gradient is but rounding.
        np.testing.assert_allclose(np.linalg.norm(leaf), norm, rtol=TOLERANCE, atol=1e-6)
        # The product sums what rounds in all directions: relative to the norms.
        size = norm * np.linalg.norm(drawn_array)
        assert abs((leaf * drawn_array).sum() - product) < TOLERANCE * size + 1e-6, name


@pytest.mark.parametrize(("unit", "share", "count"), [(4, 0.6, 10), (8, 0.5, 2), (2, 0.1, 7)])
def test_a_mask_hides_the_share_in_whole_squares(unit, share, count):
    objective, model = masked_images.MaskedImages(unit, share), small()
    objective.require_fitting(model)
    hidden = objective.hidden(model, jax.random.key(1), jnp.arange(5))
    assert hidden.shape == (5, 8, 8)
    side = unit // 2
    squares = np.asarray(hidden).reshape(5, 8 // side, side, 8 // side, side).swapaxes(2, 3)
    assert (squares.all((3, 4)) == squares.any((3, 4))).all()
    np.testing.assert_array_equal(squares.any((3, 4)).sum((1, 2)), count)


def test_a_mask_depends_on_key_and_row_alone():
    objective, model = masked_images.MaskedImages(4), small()
    whole = objective.hidden(model, jax.random.key(1), jnp.arange(8))
    part = objective.hidden(model, jax.random.key(1), jnp.array([6, 1]))
    np.testing.assert_array_equal(part, whole[jnp.array([6, 1])])
    assert len({row.tobytes() for row in np.asarray(whole)}) == 8
    other = objective.hidden(model, jax.random.key(2), jnp.arange(8))
    assert not np.array_equal(other, whole)


@pytest.mark.medium
def test_the_model_does_not_see_what_is_hidden_and_visible_pixels_do_not_count():
    model, objective = small(), masked_images.MaskedImages(4)
    images = jnp.asarray(drawn.images("seen", (2, 16, 16, 3)))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    own = objective.init(model, jax.random.key(1))
    network = pretext.Network(model, {**params, "objective": own})
    hidden = objective.hidden(model, jax.random.key(0), jnp.arange(2))
    pixels = jnp.repeat(jnp.repeat(hidden, 2, 1), 2, 2)[..., None]
    pictures = jax.jit(lambda images: objective.pictures(network, images))
    original, seen, completed = jnp.split(pictures(images), 3, axis=2)
    np.testing.assert_array_equal(original, images)
    np.testing.assert_array_equal(seen, jnp.where(pixels, 0, images))
    np.testing.assert_array_equal(jnp.where(pixels, 0, completed), seen)
    others = jnp.where(pixels, images + 1, images)
    _, _, of_others = jnp.split(pictures(others), 3, axis=2)
    np.testing.assert_array_equal(completed, of_others)
    loss = jax.jit(lambda images: objective.evaluate(network, images, {})["loss"])(images)
    error = jnp.abs(completed - images).sum((1, 2, 3)) / (3 * pixels.sum((1, 2, 3)))
    np.testing.assert_allclose(loss, error, rtol=1e-6)


@pytest.mark.slow
def test_in_training_the_mask_is_that_of_key_and_row_and_augmented_pixels_are_painted():
    model, objective = small(), masked_images.MaskedImages(4)
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    params = {**params, "objective": objective.init(model, jax.random.key(1))}
    augment = inputs.Inputs(inputs.Normalize((0.5,) * 3, (0.25,) * 3))
    network = pretext.Network(model, params, jax.random.key(2))

    @jax.jit
    def losses(images, rows):
        batch = {"image": images, "row": rows}
        return objective.losses(network, augment, batch, jax.random.key(3))[0]

    whole, part = losses(images, jnp.arange(4)), jnp.array([3, 1])
    # A batch of another shape may round otherwise.
    np.testing.assert_allclose(losses(images[part], part), whole[part], rtol=1e-5)


@pytest.mark.parametrize(
    ("objective", "fields", "text"),
    [
        (
            {"unit": 32},
            {"image_size": 48, "patch_size": 4},
            (
                "MaskedImages.unit is 32; squares of patches of 4 pixels that tile images of 48 x "
                "48 have sides of 4, 8, 12, 16, 24: set it to one of them."
            ),
        ),
        (
            {"unit": 3},
            {},
            (
                "MaskedImages.unit is 3; squares of patches of 2 pixels that tile images of 16 x "
                "16 have sides of 2, 4, 8: set it to one of them."
            ),
        ),
        (
            {"unit": 8, "share": 0.9},
            {},
            (
                "MaskedImages.share is 0.9, which hides all 4 squares of an image; set it to at "
                "most 0.75."
            ),
        ),
    ],
)
def test_squares_that_do_not_fit_are_refused(objective, fields, text):
    with refusal(text):
        masked_images.MaskedImages(**objective).require_fitting(small(**fields))


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_share_of_none_or_all_is_refused(share):
    with pytest.raises(failures.BadInput, match=r"share is .*; it must be in \(0, 1\)"):
        masked_images.MaskedImages(share=share)
