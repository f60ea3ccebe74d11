import functools

import jax
import numpy as np
import pytest
from support import family

from nest_dist.explain import drawing, views
from nest_dist.model import inspection


def case(name, count=2):
    model = family.small(name)
    H, W = model.geometry().image_sides
    images = np.random.default_rng(0).standard_normal((count, H, W, model.num_channels))
    return model, {"params": family.random_params(model)}, images.astype(np.float32)


@pytest.mark.parametrize("name", ["multi_head", "multi_query", "wide_image"])
def test_the_mean_of_an_activation_map_is_the_logit(name):
    model, variables, images = case(name)
    seen = views.views(model, variables, images)
    np.testing.assert_allclose(
        seen.activation.mean((-1, -2)), seen.gradcat.logits, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["multi_head", "multi_query", "wide_image"])
def test_attention_is_the_one_that_the_layer_applies(name):
    """The layer's output again, from the weights and the values."""
    model, variables, images = case(name)
    inside = jax.jit(functools.partial(inspection.forward, model))(variables["params"], images)
    level = model.num_hierarchies - 1
    layer = variables["params"][f"levels_{level}"]["layers_0"]
    own = layer["attention"]
    apply = functools.partial(
        model.apply,
        capture_intermediates=lambda module, _: module.name in {"attention_norm", "attention"},
        mutable="intermediates",
    )
    _, kept = jax.jit(apply)(variables, images)
    kept = kept["intermediates"][f"levels_{level}"]["layers_0"]
    (tokens,), (expected,) = kept["attention_norm"]["__call__"], kept["attention"]["__call__"]
    value = np.einsum("btnc,ckd->btnkd", tokens, own["value"]["kernel"]) + own["value"]["bias"]
    weights = np.asarray(inside.attention[level])
    if model.multi_query:
        value = np.repeat(value, weights.shape[2], axis=-2)
    attended = np.einsum("btknm,btmkd->btnkd", weights, value)
    output = np.einsum("btnkd,kdc->btnc", attended, own["output"]["kernel"]) + own["output"]["bias"]
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_every_block_receives_as_much_attention_as_it_gives():
    model, variables, images = case("wide_image")
    seen = views.views(model, variables, images)
    for level, received in enumerate(seen.attention):
        rows, columns = model.geometry().grids[level]
        side = model.geometry().block_side
        blocks = received.reshape(2, rows, side, columns, side).mean((2, 4))
        np.testing.assert_allclose(blocks, 1, rtol=1e-5)


def test_views_of_one_image_are_those_of_its_row():
    model, variables, images = case("multi_head")
    seen = views.views(model, variables, images, classes=3)
    one = views.of_image(seen, 1)
    np.testing.assert_array_equal(one.gradcat.path[0], seen.gradcat.path[1])
    np.testing.assert_array_equal(one.attention[0][0], seen.attention[0][1])
    assert one.activation.shape == (1, 1, 4, 4)


def test_a_sheet_shows_the_leaf_as_it_is_and_dims_the_rest():
    model, variables, _ = case("multi_head", 1)
    image = np.full((32, 32, 3), 200, np.uint8)
    seen = views.views(model, variables, np.zeros((1, 32, 32, 3), np.float32))
    sheet = drawing.sheet(image, seen, model, ["cat", "dog", "eel", "fox", "gnu"], "here.png")
    side = 7 * 32
    assert sheet.shape == (4 + 3 * (side + 36), 4 + 5 * (side + 4), 3)
    traced = sheet[4 + side + 36 :][:side, 4 : 4 + side]
    assert np.any(np.all(traced == 200, axis=-1))
    assert np.any(np.all(traced == 70, axis=-1))
    assert np.any(np.all(traced == drawing.OUTLINES[0], axis=-1))


def test_a_map_is_red_where_it_speaks_for_a_class_and_blue_against():
    grey = np.full((8, 8, 3), 100, np.uint8)
    strength = np.zeros((8, 8))
    assert np.all(drawing._tinted(grey, strength, drawing.FOR) == 80)
    red = drawing._tinted(grey, strength + 1, drawing.FOR)
    assert red[0, 0, 0] > 150 > red[0, 0, 2]
