"""Mixing in groups against the official formulas, which are written out here once more in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nest_dist.base import failures
from nest_dist.rehearsal import collectives, estimates
from nest_dist.train.augment import group_mixing

ROWS, SIDE = 64, 32
OFFICIAL = group_mixing.GroupMixing(mixup_alpha=0.8, cutmix_alpha=1.0, rows=ROWS)
MIX = jax.jit(OFFICIAL.__call__)


def told_apart(B: int) -> tuple[jax.Array, jax.Array]:
    """Images whose every pixel says whose it is, one channel for each row of a group."""
    own = jnp.eye(ROWS)[jnp.arange(B) % ROWS]
    return jnp.broadcast_to(own[:, None, None], (B, SIDE, SIDE, ROWS)), own


def drawn(steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and targets of groups, all of one batch mixed in some steps."""
    images, targets = told_apart(4 * ROWS)
    found = []
    for step in range(steps):
        mixed = MIX(images, targets, jax.random.key(step), jnp.arange(4 * ROWS))
        mixed_images, mixed_targets = map(np.asarray, mixed)
        found += zip(np.split(mixed_images, 4), np.split(mixed_targets, 4), strict=True)
    return found


def is_cutmix(images: np.ndarray) -> bool:
    return set(np.unique(images)) <= {0.0, 1.0}


@pytest.mark.medium
def test_each_group_is_mixed_by_one_of_the_two_as_the_formulas_say():
    groups = drawn(15)
    cut = [group for group in groups if is_cutmix(group[0])]
    blended = [group for group in groups if not is_cutmix(group[0])]
    assert 15 <= len(cut) <= 45  # of 60: four standard deviations
    # A step has groups of both kinds.
    kinds = [is_cutmix(images) for images, _ in groups]
    assert any(len(set(kinds[start : start + 4])) == 2 for start in range(0, 60, 4))
    rng, own = np.random.default_rng(0), np.arange(ROWS)

    # Mixup: 1 - u^(1 / 0.8) / 2 of the picture itself, the rest of one drawn from the group.
    kept = np.concatenate([targets[own, own] for _, targets in blended])
    official = 1 - rng.random(200_000) ** (1 / 0.8) / 2
    alone = np.concatenate([targets.max(1) == 1 for _, targets in blended])
    assert abs(alone.mean() - 1 / ROWS) < 0.02  # a picture may be its own partner
    kept = kept[~alone]
    assert abs(kept.mean() - official.mean()) < 4 * official.std() / len(kept) ** 0.5
    assert abs(kept.std() - official.std()) < 0.015
    for images, targets in blended:
        np.testing.assert_allclose(images.mean((1, 2)), targets, atol=1e-4)  # means of float32
        partner = (targets - np.eye(ROWS) * targets[own, own, None]).argmax(1)
        assert len(np.unique(partner[targets.max(1) < 1])) > ROWS / 2  # all are drawn

    # CutMix: a rectangle of the picture itself, of area u / 2; the rest of the one from the end.
    down, right, sizes = [], [], []
    for images, targets in cut:
        masks = images[own, :, :, own]
        np.testing.assert_array_equal(images[own, :, :, own[::-1]], 1 - masks)
        np.testing.assert_allclose(targets[own, own] + targets[own, own[::-1]], 1, atol=1e-6)
        rows, columns = masks.any(2), masks.any(1)
        np.testing.assert_array_equal(masks, rows[:, :, None] & columns[:, None, :])
        side = np.floor(np.sqrt(targets[own, own]) * SIDE)
        np.testing.assert_array_equal(rows.sum(1), side)
        np.testing.assert_array_equal(columns.sum(1), side)
        seen = side > 0
        down += rows.argmax(1)[seen].tolist()
        right += columns.argmax(1)[seen].tolist()
        sizes += targets[own, own].tolist()
    areas = rng.random(200_000) / 2
    size = np.floor(np.sqrt(areas) * SIDE).astype(int)
    position = (rng.integers(0, SIDE, 200_000) % (SIDE - size))[size > 0]
    assert abs(np.mean(sizes) - 0.25) < 4 * areas.std() / len(sizes) ** 0.5
    assert max(sizes) <= 0.5
    for found in (down, right):
        assert abs(np.mean(found) - position.mean()) < 4 * position.std() / len(found) ** 0.5
        assert abs(np.std(found) - position.std()) < 0.5


def test_a_group_never_sees_another_whatever_batch_it_lies_in():
    images = jax.random.normal(jax.random.key(1), (2 * ROWS, 8, 8, 3))
    targets = jax.nn.one_hot(jnp.arange(2 * ROWS), 2 * ROWS)
    key, rows = jax.random.key(0), jnp.arange(2 * ROWS)
    whole, _ = MIX(images, targets, key, rows)
    second, _ = MIX(images[ROWS:], targets[ROWS:], key, rows[ROWS:])  # as in a microbatch
    np.testing.assert_array_equal(whole[ROWS:], second)


def test_groups_on_several_devices_exchange_nothing():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    mix = group_mixing.GroupMixing(0.8, 1.0, rows=4)
    images, targets = jnp.zeros((32, 8, 8, 3)), jnp.zeros((32, 2))
    compiled = jax.jit(
        mix.__call__, in_shardings=(sharding, sharding, None, sharding), out_shardings=sharding
    ).lower(images, targets, jax.random.key(0), jnp.arange(32))
    text = compiled.compile().as_text()
    assert collectives.read(estimates.read(text), mesh) == []


def test_a_group_of_one_row_is_refused():
    with pytest.raises(failures.BadInput, match=r"GroupMixing.rows is 1; it must be at least 2"):
        group_mixing.GroupMixing(0.8, 1.0, rows=1)
