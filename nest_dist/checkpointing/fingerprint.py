"""One number for the bits of each leaf, made on the devices, the same on every topology.

Each element is mixed with its place in the leaf; the results are added as 32-bit integers. Such
sums do not depend on their order, so neither do they on how a leaf lies on the devices. A change of
any single element changes the number for certain, any other change but one in 2**32.

Each device adds up what it holds, and hosts add what their devices give: no collective, so it may
run beside a step, in another thread.
"""

import collections
import functools
import json
import math
import typing
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import names
from nest_dist.parallel import hosts

# Shards below this many elements are joined and share one program: compiling one for each shape
# would take longer than the sums.
LARGE = 1 << 16


class Fingerprint:
    """Sums over what this process holds of a tree, being computed."""

    def __init__(self, tree: names.Tree) -> None:
        """Starts the computation; the buffers of `tree` may be donated right after it."""
        leaves = names.flatten(tree)
        self._names = list(leaves)
        self._sums: list[tuple[list[int], jax.Array]] = []
        small = collections.defaultdict(list)
        for row, leaf in enumerate(leaves.values()):
            for shard in leaf.addressable_shards:
                if shard.replica_id != 0:
                    continue
                starts, shape, whole = _of_words(leaf, shard)
                # The only shard of a leaf comes with the leaf's sharding, which would be compiled
                # for anew whenever that is written otherwise.
                data = jax.device_put(shard.data, shard.device)
                if data.size < LARGE:
                    index = _flat_index(starts, shape, whole)
                    small[shard.device].append((row, data, index.reshape(-1)))
                else:
                    self._sums.append(([row], _large(data, starts, whole)))
        for shards in small.values():
            rows, arrays, indices = zip(*shards, strict=True)
            owners = np.repeat(np.arange(len(rows), dtype=np.int32), [len(i) for i in indices])
            self._sums.append((list(rows), _joined(np.concatenate(indices), owners, *arrays)))

    def parts(self) -> dict[str, int]:
        """A number for each leaf; waits for the devices. Those of all processes make `numbers`."""
        found = np.zeros(len(self._names), np.uint32)
        for rows, sums in self._sums:
            np.add.at(found, rows, np.asarray(sums))
        return dict(zip(self._names, found.tolist(), strict=True))


def numbers(parts: Iterable[Mapping[str, int]]) -> dict[str, str]:
    """Eight hexadecimal digits for each leaf, from the parts of every process."""
    totals: collections.Counter[str] = collections.Counter()
    for part in parts:
        totals.update(part)
    return {name: f"{total % 2**32:08x}" for name, total in totals.items()}


def of_whole(tree: names.Tree) -> dict[str, str]:
    """The `numbers` of a tree, found by all processes together unless this one holds all of it."""
    parts = Fingerprint(tree).parts()
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return numbers([parts])
    every = hosts.collected("fingerprints/whole", json.dumps(parts))
    found: dict[str, str] = json.loads(
        hosts.told(lambda: json.dumps(numbers(map(json.loads, every))))
    )
    return found


def differing(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The leaves whose numbers differ, or that only one of the two has."""
    known = sorted(expected.keys() | found.keys())
    return [name for name in known if expected.get(name) != found.get(name)]


@functools.partial(jax.jit, static_argnums=2)
def _large(shard: jax.Array, starts: jax.Array, whole: tuple[int, ...]) -> jax.Array:
    words = _words(shard)
    index = _flat_index(starts, words.shape, whole)
    if words.ndim == 1:
        return jnp.sum(_mixed(words, index), dtype=jnp.uint32, keepdims=True)
    # Row by row: XLA's sum of integers is ten times as slow on a CPU as adding up rows.
    dimension = next(axis for axis, length in enumerate(words.shape) if length > 1)
    stride = np.uint32(math.prod(whole[dimension + 1 :]) % 2**32)
    first = jax.lax.index_in_dim(index, 0, dimension, keepdims=False)

    def add(row: jax.Array, sums: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_index_in_dim(words, row, dimension, keepdims=False)
        return sums + _mixed(part, first + row.astype(jnp.uint32) * stride)

    sums = jax.lax.fori_loop(0, words.shape[dimension], add, jnp.zeros_like(first))
    return jnp.sum(sums, dtype=jnp.uint32).reshape(1)


@jax.jit
def _joined(indices: jax.Array, owners: jax.Array, *shards: jax.Array) -> jax.Array:
    words = jnp.concatenate([_words(shard).reshape(-1) for shard in shards])
    return jax.ops.segment_sum(_mixed(words, indices), owners, len(shards))


def _of_words(
    leaf: jax.Array, shard: typing.Any
) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Where a shard's `_words` begin in the leaf's, their shape, and that of the whole leaf's."""
    extra = (2,) if leaf.dtype.itemsize == 8 else ()
    starts = [part.start or 0 for part in shard.index] + [0] * len(extra)
    return np.array(starts, np.uint32), (*shard.data.shape, *extra), (*leaf.shape, *extra)


def _flat_index(
    starts: jax.Array | np.ndarray, shape: tuple[int, ...], whole: tuple[int, ...]
) -> typing.Any:
    """The index in the whole array of each element of a part, modulo 2**32."""
    index: typing.Any = np.zeros((), np.uint32)
    for dimension, (length, whole_length) in enumerate(zip(shape, whole, strict=True)):
        place = np.arange(length, dtype=np.uint32) + starts[dimension]
        index = index[..., None] * np.uint32(whole_length % 2**32) + place
    return index


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of a leaf as uint32; elements of 8 bytes give a last dimension of two."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)


def _mixed(words: jax.Array, places: jax.Array) -> jax.Array:
    # For a fixed place each operation can be undone, so different bits give different numbers.
    # The two odd factors are 2**32 over the golden ratio and the first of murmur3's finaliser.
    mixed = words + places * np.uint32(0x9E3779B9)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA6B)
    return mixed ^ (mixed >> 13)
