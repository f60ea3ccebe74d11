"""Whether the replicas of parameters are still equal: a bit that flips on one device spreads.

Each device adds up hashes of all that it holds of a tree, as `fingerprint` does. Devices that hold
the same part must have the same sum. The sums are exchanged without a collective.
"""

import collections
import hashlib
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures, tree_paths
from nest_dist.checkpointing import fingerprint
from nest_dist.cluster import processes

# Device, the part that it holds, and the sum.
Sum = tuple[str, str, int]


class Differ(failures.Failure):
    """Replicas, or two results of a step, differ; a restart goes on from the last checkpoint."""

    exit_code = failures.PEER_LOST


def require_equal(tree: tree_paths.Tree, step: int) -> None:
    """Compares the replicas of a tree; all processes call it at the same steps.

    Raises:
        Differ: on every process, naming the devices and the step.
    """
    if odd := processes.decide("replicas", local_sums(tree), differing):
        raise Differ(
            f"the parameters on {', '.join(odd)} differ from those of other devices after step "
            f"{step}: memory or a computation is at fault; the run goes on from the checkpoint "
            "before. Where it comes again, leave that device out."
        )


def require_same(first: Sequence[Sum], second: Sequence[Sum], step: int) -> None:
    """Compares `local_sums` of a step that was done twice; all processes call it at the same steps.

    Raises:
        Differ: on every process, naming the devices and the step. Gradients are exchanged inside a
            step, so these may be more devices than the one at fault.
    """
    pairs = zip(first, second, strict=True)
    own = [device for (device, _, one), (_, _, other) in pairs if one != other]
    if odd := processes.decide("done twice", own, lambda each: list(itertools.chain(*each))):
        raise Differ(
            f"step {step}, done twice, gave two results on {', '.join(odd)}: memory or a "
            "computation is at fault; the run goes on from the checkpoint before. Where it comes "
            "again, leave that device out."
        )


def local_sums(tree: tree_paths.Tree) -> list[Sum]:
    """One sum for each device of this process; waits for the devices."""
    parts = collections.defaultdict(list)
    for name, leaf in tree_paths.flatten(tree).items():
        for shard in leaf.addressable_shards:
            parts[shard.device].append((f"{name}{shard.index}", shard.data))
    sums = []
    for device, part in parts.items():
        names, shards = zip(*part, strict=True)
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        sums.append((_name(device), digest, _sum(*shards)))
    return [(device, digest, int(found)) for device, digest, found in sums]


def differing(by_process: Sequence[Sequence[Sum]]) -> list[str]:
    """The devices whose sum is not that of most others with the same part.

    Where two alone have a part, nobody knows which of them is right: both are named.
    """
    held: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for sums in by_process:
        for device, part, found in sums:
            held[part].append((device, found))
    odd: list[str] = []
    for devices in held.values():
        (usual, most), *others = collections.Counter(found for _, found in devices).most_common(2)
        tied = bool(others) and others[0][1] == most
        odd += [device for device, found in devices if tied or found != usual]
    return odd


def _name(device: jax.Device) -> str:
    return f"device {device.id} of process {device.process_index}"


@jax.jit
def _sum(*shards: jax.Array) -> jax.Array:
    total = jnp.zeros((), jnp.uint32)
    for number, shard in enumerate(shards):
        words = fingerprint.words(shard).reshape(-1)
        # Another leaf has other indices, as if they were one after the other.
        first = np.uint32(number * 0x9E3779B1 % 2**32)
        indices = jnp.arange(words.size, dtype=jnp.uint32) + first
        total += jnp.sum(fingerprint.mixed(words, indices), dtype=jnp.uint32)
    return total
