"""Fingerprints of arrays: sensitive to every bit, blind to the topology."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.checkpointing import fingerprint

RNG = np.random.default_rng(0)
LEAVES = {
    "vector": RNG.standard_normal(7).astype(np.float32),
    "scalar": np.int32(3),
    "halves": jnp.asarray(RNG.standard_normal((4, 6)), jnp.bfloat16),
    "truths": np.array([True, False, True]),
    "matrix": RNG.standard_normal((512, 160)).astype(np.float32),
    "kernel": RNG.standard_normal((3, 3, 128, 80)).astype(np.float32),
    "long": RNG.standard_normal(fingerprint.LARGE).astype(np.float32),
}


def fingerprints(leaves):
    tree = jax.tree.map(jnp.asarray, leaves)
    return fingerprint.combine([fingerprint.Fingerprint(tree).local_sums()])


@pytest.mark.parametrize("name", LEAVES)
def test_any_flipped_bit_changes_the_number_of_its_leaf_alone(name):
    before = fingerprints(LEAVES)
    leaf = np.array(LEAVES[name])
    words = leaf.reshape(-1).view(np.uint8)
    for index in (0, words.size // 2, words.size - 1):
        words[index] ^= 1
        assert fingerprint.differing(before, fingerprints({**LEAVES, name: leaf})) == [name]
        words[index] ^= 1
    assert fingerprints({**LEAVES, name: leaf}) == before


@pytest.mark.parametrize("name", ["vector", "matrix", "long"])
def test_exchanged_elements_change_the_number(name):
    leaf = np.array(LEAVES[name])
    flat = leaf.reshape(-1)
    flat[0], flat[-1] = flat[-1], flat[0]
    assert fingerprint.differing(fingerprints(LEAVES), fingerprints({**LEAVES, name: leaf})) == [
        name
    ]


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("matrix", ()),
        ("matrix", ("one",)),
        ("matrix", (None, "one")),
        ("matrix", (("one", "two"),)),
        ("matrix", ("two", "one")),
        ("kernel", (None, None, "two", "one")),
        ("long", (("two", "one"),)),
        ("halves", ()),
        ("halves", ("one",)),
        ("halves", ("two", "one")),
    ],
)
def test_the_numbers_do_not_depend_on_the_sharding(name, spec):
    mesh = jax.make_mesh((2, 4), ("one", "two"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    leaf = jax.device_put(LEAVES[name], sharding)
    assert leaf.is_fully_replicated == (spec == ())
    assert fingerprints({**LEAVES, name: leaf}) == fingerprints(LEAVES)


@pytest.mark.parametrize("spec", [(), ("two",)])
def test_a_cpu_finds_the_numbers_that_other_devices_compute(spec, monkeypatch):
    mesh = jax.make_mesh((2, 2), ("one", "two"), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    leaves = {**LEAVES, "halves": jax.device_put(LEAVES["halves"], sharding)}
    by_host = fingerprints(leaves)
    monkeypatch.setattr(fingerprint, "BY_HOST", ())
    assert fingerprints(leaves) == by_host


def test_the_sums_of_several_processes_are_added_modulo_their_bits():
    sums = [{"a": 2**32 - 1, "b": 0}, {"a": 2, "b": 0}]
    assert fingerprint.combine(sums) == {"a": "00000001", "b": "00000000"}


def test_a_leaf_that_is_missing_or_new_differs():
    one, two = {"a": "0", "b": "1"}, {"a": "0", "c": "1"}
    assert fingerprint.differing(one, two) == ["b", "c"]
