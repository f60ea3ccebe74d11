import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist.base import chance

KEY = jax.random.key(7)
ROWS = jnp.arange(16)


def draws(rows):
    keys = chance.keys(KEY, rows)
    x = jnp.ones((len(rows), 8, 3))
    return {
        "uniform": chance.uniform(keys, (8, 3)),
        "normal": chance.normal(chance.fold(keys, 1), (8, 3)),
        "dropout": chance.drop(x, 0.4, chance.fold(keys, 2)),
        "depth": chance.drop(x, 0.4, chance.fold(keys, 3), whole=True),
    }


@pytest.fixture(scope="module")
def alone():
    return jax.jit(draws)(ROWS)


def test_the_partitionable_generator_is_in_use():
    # The other one gives numbers that are equal too, by sending them between devices.
    assert jax.config.jax_threefry_partitionable
    assert jax.random.key_impl(KEY) == "threefry2x32"


@pytest.mark.parametrize("shape", [{"data": 8}, {"fsdp": 2, "rows": 4}, {"rows": 8}])
def test_draws_have_the_same_bits_on_every_mesh_and_need_no_communication(alone, shape):
    lay = layouts.layout(**shape)
    shardings = jax.tree.map(lambda leaf: lay.sharding(("batch", "rows", None), leaf.shape), alone)
    rows = jax.device_put(ROWS, lay.sharding(("batch",), ROWS.shape))
    compiled = jax.jit(draws, out_shardings=shardings).lower(rows).compile()
    assert "channel_id" not in compiled.as_text()
    for name, found in compiled(rows).items():
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


def test_an_example_draws_the_same_in_every_part_of_the_batch(alone):
    part = jnp.array([9, 2, 5])
    for name, found in jax.jit(draws)(part).items():
        np.testing.assert_array_equal(found, alone[name][part], err_msg=name)


def test_examples_and_purposes_draw_differently(alone):
    assert len(np.unique(alone["uniform"])) == alone["uniform"].size
    assert 0 < np.mean(alone["dropout"] == 0) < 1
    np.testing.assert_array_equal(np.ptp(alone["depth"], axis=(1, 2)), 0)
