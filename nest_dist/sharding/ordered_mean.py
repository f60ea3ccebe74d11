"""A mean over the batch whose bits do not depend on the number of devices.

Sums of floating-point numbers depend on their order. So the batch is cut into a fixed number of
shards, and each shard is computed by itself. The results are added along one balanced binary tree.
Its lower levels lie on each device; the upper levels exchange sums with the device at distance
1, 2, 4, ...
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nest_dist.base import checks, failures, tree_paths
from nest_dist.sharding import rules

Tree = tree_paths.Tree


@dataclasses.dataclass(frozen=True)
class OrderedMean:
    """The mean over `shards` on the devices of a mesh; both numbers are powers of two."""

    context: rules.ShardingContext  # with a mesh along `data` alone
    shards: int  # of the batch, the same on every mesh

    def __post_init__(self) -> None:
        mesh, name = self.context.mesh, "Step.reproducible_reduction"
        axes = mesh.shape.items()
        if others := [f"{axis}={size}" for axis, size in axes if size > 1 and axis != "data"]:
            raise failures.BadInput(
                f"{name} is True on a mesh with {', '.join(others)}; it works along data alone: "
                "set MeshShape.data to -1 and the others to 1, or leave it off."
            )
        if mesh.size == 1 or not _power_of_two(mesh.size):
            raise failures.BadInput(
                f"{name} is True on {mesh.size} devices; it needs a power of two, at least 2: use "
                "as many, or leave it off."
            )
        if not _power_of_two(self.shards):
            raise failures.BadInput(
                f"Step.reduction_shards is {self.shards}; it must be a power of two: set it to "
                f"{1 << (self.shards.bit_length() - 1)} or {1 << self.shards.bit_length()}."
            )
        checks.divides(
            "Step.reduction_shards",
            self.shards,
            mesh.size,
            "the number of devices",
            "set it to one of them, or use fewer devices",
        )

    def mean(
        self,
        function: Callable[..., Tree],
        operands: tuple[Tree, ...],
        batch: Mapping[str, jax.Array],
    ) -> Tree:
        """The mean over shards of `function(*operands, shard)`, the same on every device.

        Args:
            function: of the operands and one shard of the batch; no context is active in it.
            operands: the same for all shards.
            batch: arrays [B, ...]; `shards` divides B.
        """
        return jax.shard_map(
            functools.partial(self._on_device, function),
            mesh=self.context.mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
            check_vma=False,  # which cannot see that all devices have the same sum
        )(operands, dict(batch))

    def _on_device(
        self,
        function: Callable[..., Tree],
        operands: tuple[Tree, ...],
        batch: Mapping[str, jax.Array],
    ) -> Tree:
        devices = self.context.mesh.size
        own = self.shards // devices
        shards = {n: x.reshape(own, len(x) // own, *x.shape[1:]) for n, x in batch.items()}
        results = jax.lax.map(
            lambda shard: _isolated(function(*operands, _isolated(shard))), shards
        )
        sums = [jax.tree.map(operator.itemgetter(shard), results) for shard in range(own)]
        while len(sums) > 1:
            sums = [_added(left, right) for left, right in zip(sums[::2], sums[1::2], strict=True)]
        (total,) = sums
        distance = 1
        while distance < devices:
            partners = [(index, index ^ distance) for index in range(devices)]
            total = _added(total, jax.lax.ppermute(total, "data", partners))
            distance *= 2
        return _isolated(jax.tree.map(lambda leaf: leaf / self.shards, total))


def _added(left: Tree, right: Tree) -> Tree:
    return _isolated(jax.tree.map(jnp.add, left, right))


def _isolated(tree: Tree) -> Tree:
    """Keeps the compiler from fusing operations before this with operations after it.

    Fusion depends on the surrounding program, and so on the number of devices; fused operations
    round otherwise.
    """
    return jax.lax.optimization_barrier(tree)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
