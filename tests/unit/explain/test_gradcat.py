"""The laws that decide the sign: a planted object is found, and painting over it costs most."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import family, planted

import nest_dist
from nest_dist.base import failures
from nest_dist.explain import gradcat
from nest_dist.model import inspection

PICTURES = 100


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def case(request):
    """A learnt model of so many levels, pictures it has not seen, their labels and leaves."""
    levels = request.param
    return planted.learnt(levels), *planted.pictures(np.random.default_rng(1), PICTURES, levels)


@pytest.mark.medium
def test_the_model_knows_the_classes(case):
    (model, variables), images, labels, _ = case
    logits = jax.jit(model.apply)(variables, images)
    assert np.mean(np.argmax(logits, -1) == labels) >= 0.98


@pytest.mark.slow
def test_a_planted_object_is_found_in_its_block(case):
    (model, variables), images, labels, leaves = case
    found = nest_dist.gradcat(model, variables, images, labels)
    assert np.mean(found.path[:, 0, 0] == leaves) >= 0.9
    # The likeliest class is the label nearly always, so nobody has to know it.
    likeliest = nest_dist.gradcat(model, variables, images, top=1)
    assert np.mean(likeliest.path[:, 0, 0] == leaves) >= 0.9


@pytest.mark.medium
def test_with_the_sign_that_the_paper_prints_it_is_not_found(case):
    (model, variables), images, labels, leaves = case
    found = nest_dist.gradcat(model, variables, images, labels)
    path = gradcat.walk([-scores for scores in found.scores], model.geometry().grids)
    assert np.mean(path[:, 0, 0] == leaves) <= 0.1


@pytest.mark.medium
def test_painting_over_the_leaf_costs_more_than_painting_over_another(case):
    (model, variables), images, labels, _ = case
    levels, apply = model.num_hierarchies, jax.jit(model.apply)
    leaves = nest_dist.gradcat(model, variables, images, labels).path[:, 0, 0]
    count = 4 ** (levels - 1)
    others = (leaves + np.random.default_rng(2).integers(1, count, PICTURES)) % count

    def logits(images):
        return np.asarray(apply(variables, images))[np.arange(PICTURES), labels]

    of_leaf, of_another = (logits(planted.painted(images, at, levels)) for at in (leaves, others))
    assert np.mean(of_leaf < of_another) >= 0.9


@pytest.mark.slow
def test_no_path_changes_under_another_batch_size(case):
    (model, variables), images, labels, _ = case
    together = nest_dist.gradcat(model, variables, images, labels)
    few = nest_dist.gradcat(model, variables, images[:7], labels[:7])
    np.testing.assert_array_equal(few.path, together.path[:7])


def random_case(name, count=3, **changes):
    model = family.small(name, **changes)
    H, W = model.geometry().image_sides
    images = np.random.default_rng(0).standard_normal((count, H, W, model.num_channels))
    return model, {"params": family.random_params(model)}, images.astype(np.float32)


@pytest.mark.parametrize("name", ["multi_head", "wide_image"])
def test_nothing_changes_under_another_batch_size(name):
    model, variables, images = random_case(name)
    together = nest_dist.gradcat(model, variables, images)
    for row, image in enumerate(images):
        alone = nest_dist.gradcat(model, variables, image[None])
        np.testing.assert_array_equal(alone.classes[0], together.classes[row])
        np.testing.assert_array_equal(alone.path[0], together.path[row])
        for one, other in zip(alone.scores, together.scores, strict=True):
            # Products of other sizes are summed in another order.
            np.testing.assert_allclose(one[0], other[row], rtol=1e-4, atol=1e-5)


def test_scores_of_the_last_level_are_what_its_tokens_add_to_the_logit():
    """Where the gradient takes the deviation of the norm for a constant, the head is linear."""
    model, variables, images = random_case("multi_head", 1)
    found = nest_dist.gradcat(model, variables, images, classes=2)
    head, norm = (variables["params"][name] for name in ("head", "norm"))
    apply = jax.jit(functools.partial(model.apply, mutable="intermediates"))
    _, kept = apply(variables, images)
    (tokens,) = kept["intermediates"]["level_1"]  # [1, 1, N, C]
    deviation = np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    beyond_mean = tokens - tokens.mean((1, 2), keepdims=True)
    centred = beyond_mean - beyond_mean.mean(-1, keepdims=True)
    added = (centred / deviation * norm["scale"]) @ head["kernel"][:, 2] / tokens.shape[2]
    np.testing.assert_allclose(found.scores[1][0, 0].ravel(), added[0, 0], rtol=1e-3, atol=1e-4)


def test_with_the_plain_product_all_scores_of_the_last_level_are_zero():
    """A norm undoes any scaling of a token; hence its deviation is taken for a constant."""
    model, variables, images = random_case("multi_head", 1)

    def logit(offset, params):
        offsets = [jnp.zeros(()), offset]
        inside = inspection.forward(model, params, images, offsets)
        return inside.logits[0, 2], inside.levels[1]

    shape = (1, 1, 16, 24)
    gradients = jax.jit(jax.grad(logit, has_aux=True))
    gradient, tokens = gradients(jnp.zeros(shape), variables["params"])
    products = np.asarray(gradient * tokens)
    assert np.abs(products.sum(-1)).max() < 1e-3 * np.abs(products).sum(-1).max()


def test_every_node_of_a_path_lies_in_the_node_above():
    model, variables, images = random_case("wide_image")
    found = nest_dist.gradcat(model, variables, images)
    assert found.path.shape == (3, 5, 2)
    for paths in found.path:
        for leaf, root in paths:
            inner, outer = gradcat.box(model, 0, leaf), gradcat.box(model, 1, root)
            assert outer.top <= inner.top < outer.top + outer.height
            assert outer.left <= inner.left < outer.left + outer.width
            assert 2 * inner.height == outer.height


def test_the_child_of_the_current_block_with_the_largest_mean_is_chosen():
    """Two roots side by side; the second has the evidence, its lower left child most of it."""
    top = np.array([[1.0, 0, 0, 1], [0, 0, 5, 0]])
    below = np.array([[9.0, 9, 0, 3], [9, 9, 4, 2]]).repeat(2, 0).repeat(2, 1)
    below[0, 4] = 8  # one token alone
    assert gradcat.walk([below, top], [(2, 4), (1, 2)]).tolist() == [6, 1]
    assert gradcat.walk([below * 0, top], [(2, 4), (1, 2)]).tolist() == [2, 1]


@pytest.mark.medium
def test_the_forms_in_which_a_model_is_compiled_change_nothing():
    model, variables, images = random_case("multi_query")
    plain = nest_dist.gradcat(model, variables, images)
    other = model.clone(layers="scanned", remat="layer")
    again = nest_dist.gradcat(other, variables, images)
    np.testing.assert_array_equal(plain.path, again.path)


@pytest.mark.parametrize(
    ("classes", "shape"), [(1, (3, 1)), ([1, 2, 0], (3, 1)), (np.ones((3, 2), int), (3, 2))]
)
def test_classes_are_one_for_all_one_for_each_or_several(classes, shape):
    assert gradcat.wanted_classes(classes, 3, 5).shape == shape


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (5, r"a class is 5; it must be in \[0, 4\]\."),
        ([1, 2], r"classes has the shape \(2,\) for 3 images; give one class, one for each image"),
    ],
)
def test_classes_that_do_not_exist_are_refused(classes, message):
    with pytest.raises(failures.BadInput, match=message):
        gradcat.wanted_classes(classes, 3, 5)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(failures.BadInput, match="the model has no head; fine-tune it on classes"):
        gradcat.require_explainable(family.small("multi_head", num_classes=0))


def test_blocks_of_one_token_have_a_path():
    model, variables, images = random_case("multi_head", block_side=1)
    assert nest_dist.gradcat(model, variables, images, classes=1).path.shape == (3, 1, 2)


def test_probabilities_are_those_of_the_model():
    model, variables, images = random_case("multi_head")
    found = nest_dist.gradcat(model, variables, images)
    expected, order = jax.lax.top_k(jax.jit(model.apply)(variables, images), 5)
    np.testing.assert_array_equal(found.classes, order)
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-5)
