import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist.base import rng
from nest_dist.rehearsal import collectives, estimates

KEY = jax.random.key(7)
EXAMPLE_IDS = jnp.arange(16)


def draws(batch_rows):
    keys = rng.keys(KEY, batch_rows)
    x = jnp.ones((len(batch_rows), 8, 3))
    return {
        "uniform": rng.uniform(keys, (8, 3)),
        "normal": rng.normal(rng.fold(keys, 1), (8, 3)),
        "dropout": rng.dropout(x, 0.4, rng.fold(keys, 2)),
        "drop_path": rng.drop_path(x, 0.4, rng.fold(keys, 3)),
    }


@pytest.fixture(scope="module")
def alone():
    return jax.jit(draws)(EXAMPLE_IDS)


def test_the_partitionable_generator_is_in_use():
    # The other one gives numbers that are equal too, by sending them between devices.
    assert jax.config.jax_threefry_partitionable
    assert jax.random.key_impl(KEY) == "threefry2x32"


@pytest.mark.parametrize("shape", [{"data": 8}, {"fsdp": 2, "rows": 4}, {"rows": 8}])
def test_draws_have_the_same_bits_on_every_mesh_and_need_no_communication(alone, shape):
    lay = layouts.layout(**shape)
    shardings = jax.tree.map(lambda leaf: lay.sharding(("batch", "rows", None), leaf.shape), alone)
    batch_rows = jax.device_put(EXAMPLE_IDS, lay.sharding(("batch",), EXAMPLE_IDS.shape))
    compiled = jax.jit(draws, out_shardings=shardings).lower(batch_rows).compile()
    assert collectives.read(estimates.read(compiled.as_text()), lay.mesh) == []
    for name, drawn in compiled(batch_rows).items():
        np.testing.assert_array_equal(drawn, alone[name], err_msg=name)


def test_an_example_draws_the_same_in_any_smaller_batch(alone):
    batch_rows = jnp.array([9, 2, 5])
    for name, drawn in jax.jit(draws)(batch_rows).items():
        np.testing.assert_array_equal(drawn, alone[name][batch_rows], err_msg=name)


def test_examples_and_purposes_draw_differently(alone):
    assert len(np.unique(alone["uniform"])) == alone["uniform"].size
    assert 0 < np.mean(alone["dropout"] == 0) < 1
    np.testing.assert_array_equal(np.ptp(alone["drop_path"], axis=(1, 2)), 0)
