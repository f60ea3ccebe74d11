import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import layouts

from nest_dist.rehearsal import collectives, estimates
from nest_dist.train import microbatches

mean = microbatches.mean
B = 16
BATCH = {"x": jnp.arange(B * 3.0).reshape(B, 3), "row": jnp.arange(B)}
AXES = {"x": ("batch", None), "row": ("batch",)}


@pytest.mark.parametrize(("count", "group"), [(2, 1), (4, 2), (8, 2), (16, 1)])
def test_the_mean_over_parts_is_that_of_the_whole(count, group):
    def function(part):
        return {
            "mean": jnp.tanh(part["x"]).mean(),
            "outer": part["x"].T @ part["x"] / len(part["x"]),
        }

    whole, parts = (
        jax.jit(lambda batch, m=m: mean(function, batch, AXES, m, group))(BATCH) for m in (1, count)
    )
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-6)


def seen(count, group):
    """Which rows stand in which part."""

    def function(part):
        return jax.nn.one_hot(part["row"], B).sum(0) * 2.0 ** part["row"].min()

    total = mean(function, BATCH, AXES, count, group) * count
    return [np.flatnonzero(total == value).tolist() for value in np.unique(total)]


def test_every_part_takes_from_all_over_the_batch_and_leaves_neighbours_group():
    assert seen(2, 1) == [[0, 2, 4, 6, 8, 10, 12, 14], [1, 3, 5, 7, 9, 11, 13, 15]]
    assert seen(4, 2) == [[0, 1, 8, 9], [2, 3, 10, 11], [4, 5, 12, 13], [6, 7, 14, 15]]


def test_each_device_keeps_its_own_examples():
    lay = layouts.layout(data=4)
    batch = {
        name: jax.device_put(leaf, lay.sharding(AXES[name], leaf.shape))
        for name, leaf in BATCH.items()
    }

    def run(batch):
        with lay.active():
            function = lambda part: jnp.tanh(part["x"]).mean()  # noqa: E731
            return mean(function, batch, AXES, 2, 2)

    text = jax.jit(run).lower(batch).compile().as_text()
    found = {
        (each.kind, sum(map(collectives.elements, each.shapes)))
        for each in collectives.read(estimates.read(text), lay.mesh)
    }
    assert found == {("all-reduce", 1)}
