import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest
from support import drawn, family, paper

from nest_dist.base import failures, tree_paths
from nest_dist.pretrained import averages, description, recognition, stored, weights
from nest_dist.pretrained.formats import native

OFFICIAL = pathlib.Path(__file__).parents[2] / "golden" / "official_parameters.json"


def params_of(model, seed=0):
    return tree_paths.flatten(family.random_params(model, seed))


def weightless(model):
    """Arrays of the right shapes that need no memory."""
    shapes = native.shapes_of(model)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def shapes(arrays):
    return {name: leaf.shape for name, leaf in arrays.items()}


@pytest.fixture(scope="module")
def published():
    return {name: family.published(name) for name in family.PUBLISHED}


def assert_same_bytes(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (arrays[name].shape, arrays[name].dtype) == (leaf.shape, leaf.dtype), name
        assert arrays[name].tobytes() == leaf.tobytes(), name


@pytest.mark.parametrize(
    ("name", "official_name"),
    [("nest_tiny", "nest_tiny_s196_224"), ("cifar_nest_tiny", "nest_tiny_s16_32")],
)
def test_the_official_tree_has_exactly_the_names_and_shapes_of_the_official_code(
    name, official_name, published
):
    expected = json.loads(OFFICIAL.read_text())[official_name]
    model = published[name]
    official = weights.to_format("official", weightless(model), model)
    assert {n: list(leaf.shape) for n, leaf in official.items()} == expected


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in family.SMALL for form in ("nest_dist", "official")]
    + [("multi_head", "timm")],
)
def test_there_and_back_gives_the_same_bytes(name, form):
    model = family.small(name)
    params = params_of(model)
    arrays = weights.to_format(form, params, model)
    assert weights.format_of(arrays) == form
    assert_same_bytes(weights.from_format(form, arrays, model), params)
    assert_same_bytes(
        weights.to_format(form, weights.from_format(form, arrays, model), model), arrays
    )


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in family.PUBLISHED for form in ("nest_dist", "official")]
    + [(name, "timm") for name in family.PUBLISHED if not name.startswith("cifar")],
)
def test_a_published_model_is_recognised_from_its_shapes(name, form, published):
    model = published[name].clone(stochastic_depth=0.0)
    arrays = weights.to_format(form, weightless(model), model)
    recognised = recognition.recognise(shapes(arrays), published)
    assert recognised == model.clone(gelu="exact" if form == "timm" else "tanh")
    assert recognition.name_of(recognised, published) == name


def test_what_shapes_do_not_tell_can_be_given(published):
    model = family.small("wide_image")
    hints = {"image_size": (16, 32), "gelu": "exact"}
    assert recognition.recognise(native.shapes_of(model), published, hints) == model
    model = family.small("multi_head", block_side=2, image_size=48, num_classes=0)
    assert recognition.recognise(native.shapes_of(model), published) == model


def official_weight(name, shape):
    """A value for one entry of the official tree, of the size that training reaches."""
    value = drawn.array(name, shape)
    if name.endswith("scale"):
        return 1 + 0.1 * value
    if name.endswith("bias"):
        return 0.1 * value
    if name.endswith("pos_embedding"):
        return 0.5 * value
    inputs = shape[:1] if "DenseGeneral" in name else shape[:-1]
    return value / np.float32(math.sqrt(math.prod(inputs)))


def assert_agrees_with_the_paper(official, model):
    H, W = model.geometry().image_sides
    images = drawn.images("the paper", (1, H, W, model.num_channels))
    params = tree_paths.unflatten(weights.from_format("official", official, model))
    logits = jax.jit(model.apply)({"params": params}, images)
    expected = paper.forward(official, images, model.block_repeats, model.gelu)
    assert np.max(np.abs(expected)) > 0.5
    # float32 against float64, with logits of size 1 to 3
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["nest_tiny_s196_224", "nest_tiny_s16_32"])
def test_the_official_tree_gives_the_logits_of_the_paper_in_plain_numpy(name, published):
    shapes = {key: tuple(shape) for key, shape in json.loads(OFFICIAL.read_text())[name].items()}
    official = {key: official_weight(key, shape) for key, shape in shapes.items()}
    assert_agrees_with_the_paper(official, recognition.recognise(shapes, published))


def test_the_exact_gelu_and_tokens_as_small_as_the_epsilon_of_a_norm_agree_too():
    model = family.small("multi_head", gelu="exact", block_repeats=(2, 2))
    arrays = weights.to_format("official", params_of(model), model)
    official = {key: official_weight(key, shape) for key, shape in shapes(arrays).items()}
    for key in official:
        if key.startswith(("PatchEmbedding_0", "PositionEmbedding_0")):
            official[key] = official[key] * np.float32(1e-3)
    assert_agrees_with_the_paper(official, model)


def test_a_model_larger_than_any_machine_is_refused():
    model = family.small(
        "multi_head", image_size=2**16, patch_size=2**13, num_channels=2**16, dim=96
    )
    with pytest.raises(failures.BadInput, match=r"patch_embedding/kernel would have the shape \["):
        native.shapes_of(model)


def test_shorter_floats_keep_their_type_and_longer_ones_are_refused():
    model = family.small("multi_head")
    params = params_of(model)
    short = {name: leaf.astype(jax.numpy.bfloat16) for name, leaf in params.items()}
    assert_same_bytes(weights.from_format("nest_dist", short, model), short)
    long = {**params, "norm/scale": params["norm/scale"].astype(np.float64)}
    with pytest.raises(failures.BadInput, match=r"norm/scale has the type float64; weights must"):
        weights.from_format("nest_dist", long, model)


def test_missing_extra_and_misshaped_weights_are_listed_in_one_line():
    model = family.small("multi_head")
    params = params_of(model)
    del params["levels_0/layers_0/mlp_norm/scale"]
    params["levels_0/layers_0/mystery"] = np.zeros(3, np.float32)
    params["norm/bias"] = np.zeros(7, np.float32)
    with pytest.raises(
        failures.BadInput,
        match=r"the nest_dist weights are not those of a NesT of 2 levels .*: "
        r"missing: levels_0/layers_0/mlp_norm/scale; extra: levels_0/layers_0/mystery; "
        r"misshaped: norm/bias \[7\] instead of \[24\]; give the whole checkpoint",
    ) as error:
        weights.from_format("nest_dist", params, model)
    assert "\n" not in str(error.value)


def test_many_faults_are_counted_instead_of_listed():
    model = family.small("multi_head")
    with pytest.raises(failures.BadInput, match=r"missing: .* and \d+ more; give"):
        weights.to_format("official", {"norm/scale": np.zeros(24, np.float32)}, model)


def test_weights_of_something_else_are_refused(published):
    foreign = {"conv1.weight": (64, 3, 7, 7), "fc.bias": (1000,)}
    with pytest.raises(
        failures.BadInput,
        match=r"not those of a NesT: none of their 2 names is patch_embedding/kernel or .*, the "
        r"first is conv1.weight; give",
    ):
        recognition.recognise(foreign, published)
    with pytest.raises(failures.BadInput, match=r"the timm weights are incomplete: 1 names"):
        recognition.recognise({"patch_embed.proj.weight": (96, 3, 4, 4)}, published)
    for name, shape in (("patch_embedding/kernel", (4, 4, 3)), ("levels_1/position_embedding", ())):
        wrong = {**native.shapes_of(family.small("multi_head")), name: shape}
        with pytest.raises(failures.BadInput, match=r"the nest_dist weights are incomplete: "):
            recognition.recognise(wrong, published)


def test_heads_and_depths_that_nothing_tells_must_be_given(published):
    model = family.small("multi_head")
    timm = shapes(weights.to_format("timm", params_of(model), model))
    with pytest.raises(
        failures.BadInput,
        match=r"the weights do not tell NesT.heads, .* none of the known models \(nest_tiny, ",
    ):
        recognition.recognise(timm, published)
    assert recognition.recognise(timm, published, {"heads": 3}) == model.clone(gelu="exact")
    model = family.small("multi_query")
    official = shapes(weights.to_format("official", params_of(model), model))
    with pytest.raises(failures.BadInput, match=r"do not tell NesT.block_repeats.*\(3, 3\)"):
        recognition.recognise(official, published)
    assert recognition.recognise(official, published, {"block_repeats": (1, 1, 1)}) == model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "multi_query",
            r"multi-query attention, which timm's NesT has not; convert it to",
        ),
        ("wide_image", r"ends with \(2, 4\) blocks, timm's NesT always with one; convert it to"),
    ],
)
def test_what_timm_cannot_hold_is_refused(name, message):
    model = family.small(name)
    with pytest.raises(failures.BadInput, match=message):
        weights.to_format("timm", params_of(model), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": family.small("multi_head", mlp_ratio=2)}, "weights of one model"),
        ({"class_names": ("b", "a")}, "in another order; average only weights of the same classes"),
    ],
)
def test_the_mean_of_weights_that_do_not_belong_together_is_refused(changes, message):
    first = stored.StoredWeights(family.small("multi_head"), {}, "nest_dist", None, ("a", "b"))
    with pytest.raises(failures.BadInput, match=message):
        averages.mean({"one": first, "other": dataclasses.replace(first, **changes)})


def test_a_file_of_the_first_version_says_how_its_weights_are_kept():
    with pytest.raises(failures.BadInput, match=r"^old.safetensors was written by nest_dist 0.1, "):
        description.read(pathlib.Path("old.safetensors"), {"nest_dist.configuration": "{}"})
