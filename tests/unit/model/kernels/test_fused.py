"""A model whose layers are computed by kernels, interpreted, against the same model without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import family, layouts

from nest_dist import NesT
from nest_dist.base import failures, tree_paths
from nest_dist.model import fused
from nest_dist.model.kernels import call

SMALL = {
    "image_size": 80,
    "patch_size": 4,
    "block_side": 10,
    "dim": 16,
    "heads": 1,
    "num_hierarchies": 2,
    "block_repeats": (1, 1),
    "num_classes": 5,
    "stochastic_depth": 0.5,
}


def computed(model, layout=None):
    """Logits, loss and gradients of a training step of a few images."""
    params = family.random_params(model.clone(kernels="plain"))
    images = jax.random.normal(jax.random.key(1), (4, *model.geometry().image_sides, 3))

    @jax.jit
    def both(params, images):
        def loss(params):
            rngs = {"dropout": jax.random.key(2)}
            logits = model.apply({"params": params}, images, train=True, rngs=rngs)
            return jnp.sum(logits**2), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    if layout is None:
        return both(params, images)
    with layout.active():
        return both(params, images)


# Blocks so small that kernels take several as one, and a head that serves two.
SMALLER = {"image_size": 32, "block_side": 2, "dim": 32, "heads": 2, "multi_query": True}


@functools.cache
def plain(smaller):
    return computed(NesT(**{**SMALL, **(SMALLER if smaller else {})}, kernels="plain"))


# JAX interprets no kernel that is rematerialized.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        ({}, None),
        pytest.param({}, {"data": 2, "fsdp": 2}, marks=pytest.mark.slow),
        pytest.param({}, {"data": 2, "rows": 2}, marks=pytest.mark.slow),
        pytest.param({"layers": "scanned"}, {"data": 4}, marks=pytest.mark.slow),
        pytest.param(SMALLER, {"data": 2, "rows": 2}, marks=pytest.mark.slow),
    ],
)
def test_kernels_drop_the_same_and_give_the_same(changes, mesh):
    with call.interpreted():
        found = computed(
            NesT(**{**SMALL, **changes}, kernels="fused"), mesh and layouts.layout(**mesh)
        )
    (loss, logits), gradients = found
    (plain_loss, plain_logits), plain_gradients = plain(changes == SMALLER)
    # The same sums in another order, in float32.
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
    np.testing.assert_allclose(logits, plain_logits, rtol=1e-4, atol=1e-4)
    for name, gradient in tree_paths.flatten(gradients).items():
        expected = tree_paths.flatten(plain_gradients)[name]
        tolerance = 1e-4 * np.max(np.abs(expected)) + 1e-3
        np.testing.assert_allclose(gradient, expected, atol=tolerance, err_msg=name)


@pytest.mark.medium
def test_by_kernels_too_hidden_patches_become_the_token():
    model = NesT(**{**SMALL, **SMALLER, "num_classes": 0}, kernels="plain")
    params = family.random_params(model)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    hidden = jax.random.bernoulli(jax.random.key(2), 0.5, (2, 8, 8))
    masked = hidden, jax.random.normal(jax.random.key(3), (32,))
    plainly = jax.jit(model.apply)({"params": params}, images, masked=masked)
    with call.interpreted():
        by_kernels = jax.jit(model.clone(kernels="fused").apply)(
            {"params": params}, images, masked=masked
        )
    assert plainly.shape == (2, 4, 4, 64)
    # The same sums in another order, in float32.
    np.testing.assert_allclose(by_kernels, plainly, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "mesh", "reason"),
    [
        ({"gelu": "exact"}, {}, "the GELU is exact; set NesT.gelu to 'tanh', or set it to 'auto'"),
        ({"attention_dropout": 0.1}, {}, "NesT.attention_dropout is 0.1; set it to 0, or set it"),
        ({"dim": 32, "heads": 2}, {"tensor": 2}, "heads lie on 2 devices; set MeshShape.tensor to"),
        ({"dim": 24, "heads": 2}, {}, "heads have 12 channels, not 16, 32, 64, 128; change"),
        (
            {
                "image_size": 448,
                "block_side": None,
                "num_hierarchies": 1,
                "block_repeats": (1,),
            },
            {},
            r"attention in a block of 12544 tokens of 16 channels needs [\d,.]+ MB of VMEM, a kern",
        ),
    ],
)
def test_what_the_kernels_do_not_serve_is_plain_or_refused_with_its_reason(changes, mesh, reason):
    layout = layouts.layout(**(mesh or {"data": 1}))
    with call.interpreted():
        chosen = fused.choose(NesT(**{**SMALL, **changes}), layout)
        assert chosen.form == "plain"
        with pytest.raises(failures.BadInput, match=rf"NesT.kernels is 'fused', but {reason}"):
            fused.choose(NesT(**{**SMALL, **changes, "kernels": "fused"}), layout)
        serving = fused.choose(NesT(**SMALL), layouts.layout(data=1))
    assert str(serving) == "kernels: fused, since devices, mesh and model allow it"


def test_kernels_are_for_tpus():
    layout = layouts.layout(data=1)
    assert str(fused.choose(NesT(**SMALL), layout)) == (
        "kernels: plain, since the devices are of the kind cpu, and the kernels are for TPUs"
    )
    with pytest.raises(failures.BadInput, match=r"NesT.kernels is 'fused', but the devices are of"):
        fused.choose(NesT(**SMALL, kernels="fused"), layout)
    with pytest.raises(failures.BadInput, match=r"NesT.kernels is 'fast'; give 'auto' or 'fu"):
        NesT(**SMALL, kernels="fast")
