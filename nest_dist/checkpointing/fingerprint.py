"""One number for the bits of each leaf, computed on the devices, the same on every topology.

Each element is hashed with its index in the leaf, and the hashes are added as 32-bit integers. The
order of the addition does not matter, so the sharding does not either. A change of one element
always changes the number. Any other change is missed with a chance of 1 in 2**32.

Each device adds up its shards, and hosts add the sums of their devices. This needs no collective,
so it may run beside a step, in another thread.
"""

import collections
import functools
import typing
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import tree_paths

# Shards below this many elements are joined and share one program: compiling one for each shape
# would take longer than the sums.
LARGE = 1 << 16
# Devices whose memory this process reads: it adds up small shards itself, sooner than a program for
# them is compiled.
BY_HOST = ("cpu",)


class Fingerprint:
    """Computes sums over the shards of a tree on this process, asynchronously."""

    def __init__(self, tree: tree_paths.Tree) -> None:
        """Starts the computation; the buffers of `tree` may be donated right after it."""
        leaves = tree_paths.flatten(tree)
        self._names = list(leaves)
        self._sums: list[tuple[list[int], jax.Array | np.ndarray]] = []
        small = collections.defaultdict(list)
        for row, leaf in enumerate(leaves.values()):
            for shard in leaf.addressable_shards:
                if shard.replica_id != 0:
                    continue
                starts = np.array([extent.start or 0 for extent in shard.index], np.uint32)
                # The data of an only shard has the sharding of its leaf. Each spelling of that
                # sharding would compile the program again.
                data = jax.device_put(shard.data, shard.device)
                if data.size < LARGE and shard.device.platform in BY_HOST:
                    self._sums.append(([row], _by_host(np.asarray(data), starts, leaf.shape)))
                elif data.size < LARGE:
                    index = _flat_index(starts, data.shape, leaf.shape)
                    small[shard.device].append((row, data, index.reshape(-1)))
                else:
                    self._sums.append(([row], _large(data, starts, leaf.shape)))
        for shards in small.values():
            rows, arrays, indices = zip(*shards, strict=True)
            owners = np.repeat(np.arange(len(rows), dtype=np.int32), [len(i) for i in indices])
            self._sums.append((list(rows), _joined(np.concatenate(indices), owners, *arrays)))

    def local_sums(self) -> dict[str, int]:
        """The sum for each leaf on this process, for `combine`; waits for the devices."""
        totals = np.zeros(len(self._names), np.uint32)
        for rows, sums in self._sums:
            np.add.at(totals, rows, np.asarray(sums))
        return dict(zip(self._names, totals.tolist(), strict=True))


def combine(local_sums: Iterable[Mapping[str, int]]) -> dict[str, str]:
    """Eight hexadecimal digits for each leaf, from the sums of every process."""
    totals: collections.Counter[str] = collections.Counter()
    for sums in local_sums:
        totals.update(sums)
    return {name: f"{total % 2**32:08x}" for name, total in totals.items()}


def differing(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """The leaves whose fingerprints differ, or that only one of the two has."""
    names = sorted(expected.keys() | actual.keys())
    return [name for name in names if expected.get(name) != actual.get(name)]


def _by_host(shard: np.ndarray, starts: np.ndarray, leaf_shape: tuple[int, ...]) -> np.ndarray:
    index = np.asarray(_flat_index(starts, shard.shape, leaf_shape)).reshape(-1)
    bits = shard if shard.dtype == np.bool_ else shard.view(f"u{shard.dtype.itemsize}")
    hashes = mixed(bits.reshape(-1).astype(np.uint32), index)
    return np.array([np.sum(hashes, dtype=np.uint32)])


@functools.partial(jax.jit, static_argnums=2)
def _large(shard: jax.Array, starts: jax.Array, leaf_shape: tuple[int, ...]) -> jax.Array:
    bits = words(shard)
    hashes = mixed(bits, _flat_index(starts, bits.shape, leaf_shape))
    return jnp.sum(hashes.reshape(-1), dtype=jnp.uint32, keepdims=True)


@jax.jit
def _joined(indices: jax.Array, owners: jax.Array, *shards: jax.Array) -> jax.Array:
    bits = jnp.concatenate([words(shard).reshape(-1) for shard in shards])
    return jax.ops.segment_sum(mixed(bits, indices), owners, len(shards))


def _flat_index(
    starts: jax.Array | np.ndarray, shape: tuple[int, ...], leaf_shape: tuple[int, ...]
) -> jax.Array | np.ndarray:
    """The index in the flattened leaf of each element of a shard, modulo 2**32."""
    index: jax.Array | np.ndarray = np.zeros((), np.uint32)
    for dimension, (length, leaf_length) in enumerate(zip(shape, leaf_shape, strict=True)):
        offsets = np.arange(length, dtype=np.uint32) + starts[dimension]
        index = index[..., None] * np.uint32(leaf_length % 2**32) + offsets
    return index


def words(leaf: jax.Array) -> jax.Array:
    """The bits of a leaf of at most 4 bytes an element, as uint32."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)


def mixed(words: typing.Any, indices: jax.Array | np.ndarray) -> typing.Any:
    """A hash of each word with its index."""
    # For a fixed index each operation can be undone, so different bits give different numbers.
    # The two odd factors are 2**32 over the golden ratio and the first of murmur3's finaliser.
    hashes = words + indices * np.uint32(0x9E3779B9)
    hashes = (hashes ^ (hashes >> 15)) * np.uint32(0x85EBCA6B)
    return hashes ^ (hashes >> 13)
