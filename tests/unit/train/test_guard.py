"""Around the step: updates that are not finite, and batches without data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.train import guard, state

BEFORE = state.TrainState(
    jnp.int32(3), {"w": jnp.arange(3.0)}, {"m": jnp.ones(3)}, {"w": jnp.ones(3)}
)


def plain_step(before, batch):
    loss = jnp.mean(batch["image"])
    after = jax.tree.map(lambda leaf: leaf + loss.astype(leaf.dtype), before)
    norms = {"train/gradient_norm": loss, "train/update_norm": loss}
    return dataclasses.replace(after, step=before.step + 1), {"train/loss": loss, **norms}


def stepped(image, label, skip):
    batch = {"image": jnp.float32(image), "label": jnp.int32(label)}
    return jax.jit(guard.guarded(plain_step, skip))(BEFORE, batch)


def same(left, right):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right)))


@pytest.mark.parametrize("skip", [False, True])
def test_a_good_step_is_the_step_itself(skip):
    after, metrics = stepped([2.0, 4.0], [0, 1], skip)
    batch = {"image": jnp.float32([2.0, 4.0]), "label": jnp.int32([0, 1])}
    assert same(after, plain_step(BEFORE, batch)[0])
    assert metrics["train/applied"] == 1
    assert metrics.get("train/skipped", 0) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_skipped_but_its_step_is_counted(bad):
    after, metrics = stepped([bad, 4.0], [0, 1], skip=True)
    assert same(after, dataclasses.replace(BEFORE, step=jnp.int32(4)))
    assert (metrics["train/skipped"], metrics["train/applied"]) == (1, 1)
    without, _ = stepped([bad, 4.0], [0, 1], skip=False)
    assert not np.isfinite(without.params["w"]).any()


@pytest.mark.parametrize("skip", [False, True])
def test_a_batch_of_which_some_rows_have_no_data_changes_nothing(skip):
    after, metrics = stepped([2.0, 0.0], [0, guard.NO_DATA], skip)
    assert same(after, BEFORE)
    assert metrics["train/applied"] == 0


def test_an_unknown_policy_is_refused():
    with pytest.raises(failures.BadInput, match=r"NotFinite\.policy is 'ignore'.*'rewind'"):
        guard.NotFinite(policy="ignore")
    with pytest.raises(failures.BadInput, match=r"NotFinite\.limit is 0; it must be at least 1"):
        guard.NotFinite(limit=0)
