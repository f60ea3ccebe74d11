import flax.linen as nn
import gin
import jax
import numpy as np
import pytest
from support import family
from support.refusals import refusal

from nest_dist import NesT
from nest_dist.base import failures, tree_paths
from nest_dist.model import encoder
from nest_dist.model import parameters as parameter_axes


@pytest.mark.parametrize("name", family.PUBLISHED)
def test_a_published_model_has_exactly_the_parameters_of_the_paper(name):
    shapes = family.shapes(family.published(name))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == family.PUBLISHED[name]


@pytest.mark.parametrize("name", family.PUBLISHED)
def test_each_parameter_has_one_rule_for_its_axes_and_no_rule_is_idle(name):
    uses = dict.fromkeys(parameter_axes.PARAMETER_AXES, 0)
    for parameter, leaf in tree_paths.flatten(family.shapes(family.published(name))).items():
        patterns = [
            p for p in parameter_axes.PARAMETER_AXES if tree_paths.matches("/" + parameter, [p])
        ]
        assert len(patterns) == 1, parameter
        assert len(parameter_axes.PARAMETER_AXES[patterns[0]]) == leaf.ndim, parameter
        uses[patterns[0]] += 1
    assert all(uses.values())


def test_position_embeddings_alone_have_no_weight_decay():
    parameters = tree_paths.flatten(family.shapes(family.published("nest_tiny")))
    without = {
        name for name in parameters if tree_paths.matches(name, parameter_axes.NO_WEIGHT_DECAY)
    }
    assert without == {f"levels_{level}/position_embedding" for level in range(3)}


def test_the_interface_of_the_seed_works_as_it_was():
    model = NesT(
        image_size=32,
        patch_size=4,
        dim=12,
        heads=3,
        num_hierarchies=2,
        block_repeats=(1, 1),
        num_classes=7,
    )
    keys = {name: jax.random.key(index) for index, name in enumerate(["params", "dropout"])}
    images = jax.random.normal(jax.random.key(2), (2, 32, 32, 3))
    variables = jax.jit(model.init)(keys, images)
    apply = jax.jit(model.apply)
    logits = apply(variables, images, rngs=keys)
    assert logits.shape == (2, 7)
    assert set(variables) == {"params"}
    np.testing.assert_array_equal(logits, apply(variables, images))


def test_a_model_bound_by_gin_equals_the_one_made_in_python():
    with gin.config.unlock_config():
        gin.clear_config()
        for field, value in family.SMALL["multi_query"].items():
            gin.bind_parameter(f"NesT.{field}", list(value) if type(value) is tuple else value)
        model = gin.get_configurable("NesT")()
        gin.clear_config()
    assert model == family.small("multi_query")


def test_the_output_of_each_level_can_be_captured(member):
    logits, captured = member.capture(member.variables, member.images)
    model = member.model
    for level, (rows, columns) in enumerate(model.geometry().grids):
        (blocks,) = captured["intermediates"][f"level_{level}"]
        N = model.geometry().block_side ** 2
        assert blocks.shape == (3, rows * columns, N, model.widths()[level])
    assert logits.shape == (3, model.num_classes)


def test_without_a_head_the_model_gives_features_from_which_the_head_makes_logits(member):
    headless = member.model.clone(num_classes=0)
    params = dict(member.variables["params"])
    head = params.pop("head")
    assert tree_paths.flatten(family.shapes(headless)).keys() == tree_paths.flatten(params).keys()
    features = jax.jit(headless.apply)({"params": params}, member.images)
    logits, _ = member.capture(member.variables, member.images)
    # float32 sums of some ten terms in another order
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, rtol=1e-4)


@pytest.mark.parametrize("name", family.PUBLISHED)
def test_drop_rates_rise_linearly_over_all_layers_from_zero_to_the_rate_given(name):
    model = family.published(name)
    rates = []

    def record(call, arguments, keywords, context):
        if isinstance(context.module, encoder.EncoderLayer) and context.method_name == "__call__":
            rates.append(context.module.drop_rate)
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        family.shapes.__wrapped__(model)  # past its cache
    assert model.stochastic_depth > 0
    np.testing.assert_allclose(
        rates, np.linspace(0, model.stochastic_depth, sum(model.block_repeats)), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 30},
            r"NesT.image_size height is 30, not a multiple of .* \(8\); .* are 24 or 32: ",
        ),
        ({"image_size": 0}, r"NesT.image_size is 0; it must be in \[1, 65536\]\."),
        ({"image_size": (32, 32, 3)}, r"NesT.image_size is \(32, 32, 3\), of type tuple; give"),
        ({"block_side": 3}, r"image_size height is 32, not a multiple of .* \(24\)"),
        ({"block_side": 0}, r"NesT.block_side is 0; it must be in \[1, 65536\]"),
        (
            {"dim": 13},
            r"NesT.dim is 13, not a multiple of NesT.heads \(3\); .* 12 or 15: change either\.",
        ),
        (
            {"block_repeats": (1, 2, 3)},
            r"NesT.block_repeats is \(1, 2, 3\), for 3 levels, .* is 2; give one number of layers",
        ),
        ({"block_repeats": (1, 0)}, r"NesT.block_repeats is 0; it must be in \[1, 1000\]\."),
        ({"block_repeats": (1, "2")}, r"NesT.block_repeats is \(1, '2'\), of type tuple"),
        ({"num_classes": -1}, r"NesT.num_classes is -1; it must be in \[0, 16777216\]\."),
        ({"heads": 3.0}, r"NesT.heads is 3.0, of type float; give a value of type int\."),
        ({"stochastic_depth": 1.0}, r"NesT.stochastic_depth is 1.0; it must be in \[0, 1\)\."),
        ({"attention_dropout": -0.1}, r"NesT.attention_dropout is -0.1; it must be in \[0, 1\)"),
        ({"projection_dropout": 2}, r"NesT.projection_dropout is 2; it must be in \[0, 1\)"),
        ({"gelu": "erf"}, r"NesT.gelu is 'erf'; give 'tanh' or 'exact'\."),
        (
            {"compute_dtype": "float16"},
            r"NesT.compute_dtype is 'float16'; give 'float32' or",
        ),
        ({"remat": "all"}, r"NesT.remat is 'all'; give 'none' or 'dots' or 'layer'"),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_one_line(changes, message):
    with pytest.raises(failures.BadInput, match=message) as error:
        family.small("multi_head", **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((32, 32, 3), np.float32),
            "images have shape (32, 32, 3); this model takes [B, 32, 32, 3]: ",
        ),
        (
            np.zeros((1, 32, 40, 3), np.float32),
            "images have shape (1, 32, 40, 3); this model takes [B, 32, 32, 3]: ",
        ),
        (np.zeros((1, 32, 32, 1), np.float32), "[B, 32, 32, 3]: resize them, or change"),
        (np.zeros((1, 32, 32, 3), np.uint8), "images are uint8; normalize them to float32 first."),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_line(images, message):
    model = family.small("multi_head")
    with refusal(message):
        jax.eval_shape(model.init, jax.random.key(0), images)


def test_a_model_whose_classes_nobody_counted_says_what_to_bind():
    model = family.small("multi_head", num_classes=None)
    with pytest.raises(failures.BadInput, match="no data is there to count classes in; bind num_"):
        model.num_logits  # noqa: B018
