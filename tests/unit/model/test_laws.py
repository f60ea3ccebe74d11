"""What must hold of every member of the family, however it is computed."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import family

from nest_dist.base import rng, tree_paths
from nest_dist.model import aggregation, attention, encoder, patching


def level_outputs(member, images):
    _, captured = member.capture(member.variables, images)
    return [values[0] for _, values in sorted(captured["intermediates"].items())]


def test_at_the_first_level_a_block_depends_on_its_own_pixels_only(member):
    geometry = member.model.geometry()
    rows, columns = geometry.grids[0]
    side = geometry.image_sides[0] // rows
    row, column = rows - 1, 1
    window = np.s_[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    changed = member.images.at[window].add(1.0)
    before, after = (level_outputs(member, images)[0] for images in (member.images, changed))
    block = row * columns + column
    others = np.arange(rows * columns) != block
    np.testing.assert_array_equal(before[:, others], after[:, others])
    assert not np.allclose(before[:, block], after[:, block])


def test_an_image_does_not_see_the_other_images_of_its_batch(member):
    changed = member.images.at[1:].add(1.0)
    (before, _), (after, _) = (
        member.capture(member.variables, images) for images in (member.images, changed)
    )
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.allclose(before[1:], after[1:])


@functools.cache
def reach_of_an_aggregation(grid, block_side):
    """Which tokens a change at each token changes: bool [H, W, H / 2, W / 2]."""
    H, W = (blocks * block_side for blocks in grid)
    after = tuple(blocks // 2 for blocks in grid)
    layer = aggregation.Aggregation(grid, width=32, compute_dtype="float32")
    image = jax.random.normal(jax.random.key(0), (1, H, W, 6))
    variables = layer.init(jax.random.key(1), patching.to_blocks(image, block_side))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    def changed_at(row, column):
        blocks = patching.to_blocks(image.at[0, row, column].add(100.0), block_side)
        return patching.to_image(layer.apply(variables, blocks), after)[0]

    row, column = (indices.ravel() for indices in jnp.indices((H, W)))
    unchanged = layer.apply(variables, patching.to_blocks(image, block_side))
    difference = np.abs(changed_at(row, column) - patching.to_image(unchanged, after)[0])
    seen = np.any(difference > 1e-6, axis=-1)  # [H * W, H / 2, W / 2]
    return seen.reshape(H, W, H // 2, W // 2)


@pytest.mark.medium
def test_an_aggregated_token_sees_the_five_by_five_tokens_around_its_window(member):
    # A window of the pool covers rows 2i to 2i + 2, the convolution one more on either side.
    def within(side):
        return np.abs(np.arange(side)[:, None] - (2 * np.arange(side // 2) + 1)) <= 2

    geometry = member.model.geometry()
    for grid in geometry.grids[:-1]:
        seen = reach_of_an_aggregation(grid, geometry.block_side)
        rows, columns = (within(length) for length in seen.shape[:2])
        np.testing.assert_array_equal(seen, rows[:, None, :, None] & columns[None, :, None, :])


def test_one_shared_key_and_value_head_equals_many_heads_that_are_copies_of_it():
    blocks = jax.random.normal(jax.random.key(0), (2, 3, 4, 12))
    one, many = (
        attention.BlockAttention(3, multi_query, dropout=0.0, compute_dtype="float32")
        for multi_query in (True, False)
    )
    shared = jax.jit(one.init)(jax.random.key(1), blocks, None)["params"]
    copied = {
        name: jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=-2), params)
        if name in ("key", "value")
        else params
        for name, params in shared.items()
    }
    np.testing.assert_allclose(
        jax.jit(one.apply)({"params": shared}, blocks, None),
        jax.jit(many.apply)({"params": copied}, blocks, None),
        atol=1e-7,  # values near 1e-3, in float32
    )


def test_every_parameter_has_a_finite_gradient_that_is_not_zero(member):
    def loss(variables):
        return jnp.sum(jnp.square(member.model.apply(variables, member.images)))

    for name, gradient in tree_paths.flatten(
        jax.jit(jax.grad(loss))(member.variables)["params"]
    ).items():
        assert np.all(np.isfinite(gradient)), name
        if name.endswith("attention/key/bias"):
            # Adds the same to all scores of a query, which softmax ignores: zero but for rounding.
            assert np.max(np.abs(gradient)) < 1e-3, name
        else:
            assert np.max(np.abs(gradient)) > 1e-3, name


def test_bfloat16_compute_gives_float32_logits_close_to_those_of_float32(member):
    exact, _ = member.capture(member.variables, member.images)
    low = member.model.clone(compute_dtype="bfloat16")
    logits, captured = jax.jit(lambda v, x: low.apply(v, x, mutable="intermediates"))(
        member.variables, member.images
    )
    assert logits.dtype == jnp.float32
    assert captured["intermediates"]["level_0"][0].dtype == jnp.bfloat16
    # 8 significant bits, 2^-8 each rounding, some ten roundings one after the other that
    # partly cancel: a few hundredths of the logits' size.
    assert np.max(np.abs(logits - exact)) < 0.05 * np.max(np.abs(exact))


def test_parameters_are_float32_in_bfloat16_models_too():
    shapes = family.shapes(family.small("multi_query", compute_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_a_second_call_with_an_equal_model_does_not_trace_again(member):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def forward(model, variables, images):
        traces.append(model)
        return model.apply(variables, images)

    for again in range(2):
        forward.trace(member.model.clone(), member.variables, member.images + again)
    assert len(traces) == 1


def test_nothing_is_dropped_unless_training_and_the_key_alone_decides_what_is(member):
    model = member.model.clone(stochastic_depth=0.5, attention_dropout=0.3, projection_dropout=0.3)
    # The very same program, so there is no need to run it.
    programs = [
        jax.make_jaxpr(m.apply)(member.variables, member.images) for m in (model, member.model)
    ]
    assert str(programs[0]) == str(programs[1])
    train = jax.jit(
        lambda key: model.apply(member.variables, member.images, train=True, rngs={"dropout": key})
    )
    once, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, other)


def test_each_drop_rate_has_its_own_effect():
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    small = {"image_size": 4, "num_hierarchies": 1, "block_repeats": (2,)}
    variables = {"params": family.random_params(family.small("multi_query", **small))}

    def train(**rates):
        model = family.small("multi_query", **small, **rates)
        rngs = {"dropout": jax.random.key(2)}
        return model.apply(variables, images, train=True, rngs=rngs)

    plain, *dropped = jax.jit(
        lambda: [
            train(),
            train(stochastic_depth=0.5),
            train(attention_dropout=0.5),
            train(projection_dropout=0.5),
        ]
    )()
    assert all(not np.allclose(plain, logits) for logits in dropped)


@pytest.mark.parametrize("name", family.PUBLISHED)
def test_stochastic_depth_drops_whole_examples_and_is_unbiased_at_every_rate(name):
    model, B = family.published(name), 20_000
    branch = 1 + jnp.arange(4.0)  # [C]
    drop = jax.jit(rng.drop_path)
    rates = itertools.chain(*encoder.drop_rates(model.stochastic_depth, model.block_repeats))
    for layer, rate in enumerate(rates):
        keys = jax.random.split(jax.random.key(layer), B)
        dropped = np.asarray(drop(jnp.tile(branch, (B, 1)), rate, keys))
        stays = dropped[:, 0] != 0
        np.testing.assert_array_equal(dropped[~stays], 0)
        scaled = np.broadcast_to(branch / (1 - rate), (stays.sum(), 4))
        np.testing.assert_allclose(dropped[stays], scaled, rtol=1e-6)
        # Five standard deviations of the mean of B draws of 0 or 1 / (1 - rate).
        limit = 5 * math.sqrt(rate / (1 - rate) / B) + 1e-6
        np.testing.assert_allclose(dropped.mean(axis=0) / branch, 1, atol=limit)


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_a_branch_of_a_layer_adds_in_expectation_what_it_adds_without_drops(branch, member):
    rate, B = 0.3, 2_000
    model = member.model
    options = encoder.Options(
        model.multi_query, model.mlp_ratio, 0.0, 0.0, model.gelu, "float32", "none"
    )
    layer = encoder.EncoderLayer(model.heads, rate, options)
    params = dict(member.variables["params"]["levels_0"]["layers_0"])
    other = {"attention": "mlp", "mlp": "attention"}[branch]
    silent = jax.tree.map(jnp.zeros_like, params[other]["output"])
    params[other] = {**params[other], "output": silent}
    blocks = jax.random.normal(jax.random.key(0), (1, 1, 4, model.dim))
    apply = jax.jit(lambda blocks, keys: layer.apply({"params": params}, blocks, keys) - blocks)
    added = apply(jnp.tile(blocks, (B, 1, 1, 1)), jax.random.split(jax.random.key(1), B))
    # Five standard deviations of the mean of B draws of 0 or 1 / (1 - rate).
    limit = 5 * math.sqrt(rate / (1 - rate) / B)
    undropped = np.asarray(apply(blocks, None)[0])
    assert np.max(np.abs(added.mean(axis=0) - undropped)) < limit * np.max(np.abs(undropped))


def test_a_layer_whose_branches_are_dropped_passes_its_input_on():
    options = encoder.Options(False, 4, 0.0, 0.0, "tanh", "float32", "none")
    layer = encoder.EncoderLayer(heads=2, drop_rate=0.5, options=options)
    blocks = jax.random.normal(jax.random.key(0), (64, 1, 4, 8))
    variables = jax.jit(layer.init)(jax.random.key(1), blocks, None)
    out = jax.jit(layer.apply)(variables, blocks, jax.random.split(jax.random.key(2), 64))
    untouched = np.all(np.asarray(out == blocks), axis=(1, 2, 3))
    # Both branches are dropped for a quarter of 64 examples: 16, standard deviation 3.5.
    assert 4 <= untouched.sum() <= 30


def test_remat_keeps_less_for_the_backward_pass(member):
    def loss(model, variables):
        return jnp.sum(model.apply(variables, member.images) ** 2)

    residuals = {}
    for remat in ("none", "dots", "layer"):
        model = member.model.clone(remat=remat)
        backward = jax.eval_shape(
            lambda variables, model=model: jax.vjp(functools.partial(loss, model), variables)[1],
            member.variables,
        )
        residuals[remat] = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert residuals["layer"] < residuals["dots"] < residuals["none"]


def test_remat_drops_the_same_and_gives_the_same_gradients():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    small = {"image_size": 16, "num_hierarchies": 1, "block_repeats": (2,)}
    params = family.random_params(family.small("multi_head", **small))

    def loss(params, remat):
        model = family.small(
            "multi_head", **small, remat=remat, stochastic_depth=0.3, attention_dropout=0.1
        )
        rngs = {"dropout": jax.random.key(0)}
        return jnp.sum(model.apply({"params": params}, images, train=True, rngs=rngs) ** 2)

    reference, *others = jax.jit(
        lambda params: [jax.grad(loss)(params, remat) for remat in ("none", "dots", "layer")]
    )(params)
    for gradients in others:
        for name, gradient in tree_paths.flatten(gradients).items():
            expected = tree_paths.flatten(reference)[name]
            # The same operations, fused otherwise: float32 rounding of sums.
            tolerance = 1e-5 * np.max(np.abs(expected)) + 1e-3
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_scanned_layers_have_the_names_of_unrolled_ones_drop_the_same_and_give_the_same():
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    small = {"image_size": 8, "num_hierarchies": 1, "block_repeats": (3,)}
    rates = {"stochastic_depth": 0.3, "attention_dropout": 0.1, "projection_dropout": 0.1}
    models = [
        family.small("multi_head", **small, **rates, layers=layers, remat=remat)
        for layers, remat in (("unrolled", "none"), ("scanned", "none"), ("scanned", "dots"))
    ]
    shapes = [tree_paths.flatten(family.shapes(model)) for model in models]
    assert shapes[0] == shapes[1] == shapes[2]

    def loss(params, model):
        rngs = {"dropout": jax.random.key(0)}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        return jnp.sum(logits**2), (logits, model.apply({"params": params}, images))

    params = family.random_params(models[0])
    reference, *others = jax.jit(
        lambda params: [jax.grad(loss, has_aux=True)(params, model) for model in models]
    )(params)
    for scanned in others:
        for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(reference), strict=True):
            # The same operations, fused otherwise: float32 rounding of sums.
            tolerance = 1e-5 * np.max(np.abs(other)) + 1e-3
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=tolerance)


def test_statistics_softmax_and_logits_of_a_bfloat16_model_are_float32():
    model = family.small("multi_head", compute_dtype="bfloat16", layers="scanned")
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True))(
        {"params": family.random_params(model)}, jnp.zeros((1, 32, 32, 3))
    )
    low = {name for name, dtype in operations(program.jaxpr) if dtype == jnp.bfloat16}
    assert {"dot_general", "conv_general_dilated"} <= low
    assert not low & {"exp", "log", "rsqrt", "sqrt", "reduce_sum", "reduce_max", "square", "div"}


def operations(jaxpr):
    """Every operation in a program and in those that it calls, with the types of its inputs."""
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from operations(getattr(inner, "jaxpr", inner))
        for variable in equation.invars:
            yield equation.primitive.name, variable.aval.dtype
