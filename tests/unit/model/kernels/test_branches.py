"""The kernels of both branches, interpreted on a CPU with NaN in unwritten memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import branches

from nest_dist.model.kernels import call, pool

# Images, blocks, tokens, channels, heads. Small blocks are computed as one: two here, three there.
SMALL = (3, 2, 16, 32, 2)
ODD = (2, 3, 12, 48, 1)
PUBLISHED = {
    "T level 0": (2, 2, 196, 96, 3),
    "T level 1": (1, 2, 196, 192, 6),
    "T level 2": (2, 1, 196, 384, 12),
    "B level 0": (1, 2, 196, 128, 4),
    "B level 1": (1, 2, 196, 256, 8),
    "B level 2": (1, 1, 196, 512, 16),
    "CIFAR": (2, 16, 16, 192, 3),
    "larger CIFAR": (2, 4, 64, 192, 3),
}
SHAPES = [
    pytest.param(SMALL, id="small"),
    pytest.param(ODD, id="odd", marks=pytest.mark.slow),
    *(pytest.param(shape, id=name, marks=pytest.mark.slow) for name, shape in PUBLISHED.items()),
]


@pytest.mark.medium
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("branch", branches.BRANCHES)
def test_a_kernel_and_its_gradients_are_exact(branch, shape):
    arguments = branches.drawn(branch, *shape)
    errors = branches.errors(branch, "branch", "float32", arguments)
    # Of 24 bits, over sums of a few hundred products.
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.medium
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("branch", branches.BRANCHES)
def test_with_products_in_bfloat16_a_kernel_is_as_exact_as_jax(branch, shape):
    arguments = branches.drawn(branch, *shape)
    errors = branches.errors(branch, "branch", "bfloat16", arguments)
    of_jax = branches.errors(branch, "plain", "bfloat16", arguments)
    # Roundings are random, so single arrays differ by more than a tenth.
    assert rms(errors) < 1.1 * rms(of_jax), (errors, of_jax)


def rms(errors):
    return np.sqrt(np.mean(np.square(list(errors.values()))))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("H", "C"),
    [(8, 40), *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((56, 192), (28, 384)))],
)
def test_a_norm_and_pool_and_its_gradients_are_exact(H, C):
    rng = np.random.default_rng(0)
    of_norm = {"scale": 1 + 0.1 * rng.standard_normal(C), "bias": 0.1 * rng.standard_normal(C)}
    arguments = rng.standard_normal((2, H, H, C)), 0.1 * rng.standard_normal(C), of_norm
    weights = rng.standard_normal((2, H // 2, H // 2, C))

    def computed(function, arguments):
        def both(*arguments):
            y, pull = jax.vjp(function, *arguments)
            return y, *pull(weights.astype(y.dtype))

        return jax.device_get(jax.jit(both)(*arguments))

    with jax.enable_x64(True):
        exact = computed(pool.plain, arguments)
    low = jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), arguments)
    with call.interpreted():
        found = computed(pool.pooled, low)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        # Of 24 bits, over sums of a few hundred products.
        assert np.linalg.norm(one - other) < 1e-6 * np.linalg.norm(other)
