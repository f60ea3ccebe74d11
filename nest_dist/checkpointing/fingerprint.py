"""One number for the bits of each leaf, made on the devices, the same on every topology.

Each element is mixed with its place in the leaf; the results are added as 32-bit integers. Such
sums do not depend on their order, so neither do they on how a leaf lies on the devices. A change of
any single element changes the number for certain, any other change but one in 2**32.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import names
from nest_dist.parallel import rules

# Leaves below this many elements are joined and share one program: compiling one for each shape
# would take longer than the sums.
LARGE = 1 << 16


class Fingerprint:
    """The numbers of a tree, being computed; taking them waits for the devices."""

    def __init__(self, tree: names.Tree) -> None:
        """Starts the computation; the buffers of `tree` may be donated right after it."""
        leaves = names.flatten(tree)
        large = {name: leaf for name, leaf in leaves.items() if leaf.size >= LARGE}
        small = {name: leaf for name, leaf in leaves.items() if leaf.size < LARGE}
        self._order = list(leaves)
        self._large = {name: _large(leaf, _whole_dimension(leaf)) for name, leaf in large.items()}
        self._small = {}
        if small:
            sums = _joined(next(iter(small.values())).sharding)(*_places(small), *small.values())
            self._small = {name: (sums, row) for row, name in enumerate(small)}

    def numbers(self) -> dict[str, str]:
        """Eight hexadecimal digits for each leaf."""
        found = {name: np.asarray(value) for name, value in self._large.items()}
        fetched: np.ndarray | None = None
        for name, (sums, row) in self._small.items():
            fetched = np.asarray(sums) if fetched is None else fetched
            found[name] = fetched[row]
        return {name: f"{int(found[name]):08x}" for name in self._order}


def differing(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The leaves whose numbers differ, or that only one of the two has."""
    known = sorted(expected.keys() | found.keys())
    return [name for name in known if expected.get(name) != found.get(name)]


def _whole_dimension(leaf: jax.Array) -> int | None:
    """The first dimension, longer than 1, that each device holds whole."""
    local = leaf.sharding.shard_shape(leaf.shape)
    for dimension, (part, length) in enumerate(zip(local, leaf.shape, strict=True)):
        if part == length > 1 and leaf.ndim > 1:
            return dimension
    return None


@functools.partial(jax.jit, static_argnums=1)
def _large(leaf: jax.Array, dimension: int | None) -> jax.Array:
    words = _words(leaf)
    if dimension is None:
        return jnp.sum(_mixed(words, _flat_index(words.shape)), dtype=jnp.uint32)
    # Row by row: XLA's sum of integers is ten times as slow on a CPU as adding up rows.
    stride = np.uint32(math.prod(words.shape[dimension + 1 :]) % 2**32)
    row_shape = words.shape[:dimension] + words.shape[dimension + 1 :]
    first = jax.lax.index_in_dim(_flat_index(words.shape), 0, dimension, keepdims=False)

    def add(row: jax.Array, sums: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_index_in_dim(words, row, dimension, keepdims=False)
        return sums + _mixed(part, first + row.astype(jnp.uint32) * stride)

    sums = jax.lax.fori_loop(0, words.shape[dimension], add, jnp.zeros(row_shape, jnp.uint32))
    return jnp.sum(sums, dtype=jnp.uint32)


@functools.cache
def _joined(like: jax.sharding.Sharding) -> jax.stages.Wrapped:
    def sums(places: jax.Array, owners: jax.Array, *leaves: jax.Array) -> jax.Array:
        words = jnp.concatenate([_words(leaf).reshape(-1) for leaf in leaves])
        return jax.ops.segment_sum(_mixed(words, places), owners, len(leaves))

    return jax.jit(sums, out_shardings=rules.replicated_like(like))


def _places(leaves: Mapping[str, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """For every word of the joined leaves its place in its leaf, and the number of that leaf."""
    sizes = [leaf.size * max(1, leaf.dtype.itemsize // 4) for leaf in leaves.values()]
    places = np.concatenate([np.arange(size, dtype=np.uint32) for size in sizes])
    return places, np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of a leaf as uint32; elements of 8 bytes give a last dimension of two."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)


def _flat_index(shape: tuple[int, ...]) -> jax.Array:
    index = jnp.zeros(shape, jnp.uint32)
    for dimension, length in enumerate(shape):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, dimension)
        index = index * np.uint32(length % 2**32) + place
    return index


def _mixed(words: jax.Array, places: jax.Array) -> jax.Array:
    # For a fixed place each operation can be undone, so different bits give different numbers.
    # The two odd factors are 2**32 over the golden ratio and the first of murmur3's finaliser.
    mixed = words + places * np.uint32(0x9E3779B9)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x85EBCA6B)
    return mixed ^ (mixed >> 13)
