"""Our forms of layers compute what Flax and JAX do; parameters are gathered where they are used."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import family, gradients, layouts

from nest_dist.model import linen, parameters
from nest_dist.rehearsal import collectives, estimates
from nest_dist.sharding import rules


@pytest.mark.medium
def test_tokens_are_normalized_as_by_flax():
    scale, bias = 1 + gradients.drawn(16, seed=1), gradients.drawn(16, seed=2)
    tokens = 3 + 5 * gradients.drawn(2, 4, 9, 16)

    def norm(layer, tokens, scale, bias):
        return layer.apply({"params": {"scale": scale, "bias": bias}}, tokens)

    gradients.assert_same(
        functools.partial(norm, nn.LayerNorm(epsilon=1e-6)),
        functools.partial(norm, linen.LayerNorm("float32")),
        *(tokens, scale, bias),
    )


def test_patches_are_convolved_as_by_flax():
    def embed(conv_general_dilated, image, kernel, bias):
        layer = nn.Conv(
            5, (4, 4), (4, 4), "VALID", conv_general_dilated_cls=lambda: conv_general_dilated
        )
        return layer.apply({"params": {"kernel": kernel, "bias": bias}}, image)

    gradients.assert_same(
        functools.partial(embed, jax.lax.conv_general_dilated),
        functools.partial(embed, linen.convolve_patches),
        *(gradients.drawn(2, 8, 12, 3), gradients.drawn(4, 4, 3, 5), gradients.drawn(5)),
    )


def test_equal_tokens_are_no_division_by_zero():
    # Of large numbers the mean square less the squared mean may come out below zero.
    tokens = 1e4 * gradients.drawn(200, 1) + gradients.drawn(1, 7) * 0
    variance = jnp.square(tokens).mean(-1) - jnp.square(tokens.mean(-1))
    assert (variance < -1e-6).any()
    value, pull_back = jax.vjp(linen.standardized, tokens)
    assert jnp.isfinite(value).all()
    assert jnp.isfinite(*pull_back(value)).all()


@pytest.mark.parametrize("kind", ["tanh", "exact"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_that_of_jax(kind, dtype):
    gradients.assert_same(
        functools.partial(jax.nn.gelu, approximate=kind == "tanh"),
        functools.partial(linen.gelu, kind=kind),
        3 * gradients.drawn(50, 7, dtype=dtype),
    )


def test_first_values_are_float32_and_the_same_on_a_mesh():
    model = family.small("multi_head", compute_dtype="bfloat16")
    images = jnp.zeros((1, 32, 32, 3))

    def first_values():
        return jax.jit(lambda key: model.init(key, images))(jax.random.key(0))

    with layouts.layout(fsdp=2).active():
        on_a_mesh = first_values()
    for value, expected in zip(
        jax.tree.leaves(on_a_mesh), jax.tree.leaves(first_values()), strict=True
    ):
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, expected)


@pytest.mark.slow
def test_a_rematerialized_layer_gathers_its_parameters_again():
    layout = layouts.layout(fsdp=2)

    def gathered_arrays(remat):
        model = family.small("wide_image", remat=remat)
        images = jnp.zeros((2, 16, 32, 1))
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            family.shapes(model),
            rules.tree_shardings(layout, family.shapes(model), parameters.PARAMETER_AXES),
        )
        with layout.active():
            loss = jax.jit(jax.grad(lambda params: model.apply({"params": params}, images).sum()))
            text = loss.lower(params).compile().as_text()
        return sum(
            len(exchange.shapes)
            for exchange in collectives.read(estimates.read(text), layout.mesh)
            if exchange.kind == "all-gather"
        )

    assert gathered_arrays("layer") > gathered_arrays("none") > 0
