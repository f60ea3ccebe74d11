"""A mean over the batch whose bits do not depend on how many devices share the work.

Sums of floating-point numbers depend on their order. So the batch is cut into a fixed number of
shards, each is computed by itself, and their outcomes are added along one balanced binary tree: the
lower levels on each device, the upper ones by exchange with the device at distance 1, 2, 4, ...
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from nest_dist.base import checks, failures
from nest_dist.parallel import rules

Tree = typing.Any


@dataclasses.dataclass(frozen=True)
class Reduction:
    """The tree over some shards on the devices of a layout; both are powers of two.

    Attributes:
        layout: a mesh along `data` alone.
        shards: of the batch, the same on every mesh.
    """

    layout: rules.Layout
    shards: int

    def __post_init__(self) -> None:
        mesh, name = self.layout.mesh, "Run.reproducible_reduction"
        others = [f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1]
        others = [other for other in others if not other.startswith("data=")]
        if others:
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
                f"Run.reduction_shards is {self.shards}; it must be a power of two: set it to "
                f"{1 << (self.shards.bit_length() - 1)} or {1 << self.shards.bit_length()}."
            )
        checks.divides(
            "Run.reduction_shards",
            self.shards,
            mesh.size,
            "the number of devices",
            "set it to one of them, or use fewer devices",
        )

    def mean(
        self,
        function: Callable[..., Tree],
        whole: tuple[Tree, ...],
        batch: Mapping[str, jax.Array],
    ) -> Tree:
        """The mean over shards of `function(*whole, shard)`, the same on every device.

        Args:
            function: of what is whole and of a part of the batch; no layout is active in it.
            whole: what it takes besides, the same for all shards.
            batch: arrays [B, ...]; `shards` divides B.
        """
        mesh = self.layout.mesh
        own, devices = self.shards // mesh.size, mesh.size

        def local(whole: tuple[Tree, ...], batch: Mapping[str, jax.Array]) -> Tree:
            def of_shard(shard: Mapping[str, jax.Array]) -> Tree:
                return _apart(function(*whole, _apart(shard)))

            cut = {name: x.reshape(own, len(x) // own, *x.shape[1:]) for name, x in batch.items()}
            found = jax.lax.map(of_shard, cut)
            sums = [jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in range(own)]
            while len(sums) > 1:
                pairs = zip(sums[::2], sums[1::2], strict=True)
                sums = [_added(left, right) for left, right in pairs]
            (total,) = sums
            distance = 1
            while distance < devices:
                partners = [(index, index ^ distance) for index in range(devices)]
                total = _added(total, jax.lax.ppermute(total, "data", partners))
                distance *= 2
            return _apart(jax.tree.map(lambda leaf: leaf / self.shards, total))

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("data")),
            out_specs=PartitionSpec(),
            check_vma=False,  # which cannot see that all devices come to the same sum
        )(whole, dict(batch))


def _added(left: Tree, right: Tree) -> Tree:
    return _apart(jax.tree.map(jnp.add, left, right))


def _apart(tree: Tree) -> Tree:
    """Keeps the compiler from joining what comes before with what comes after.

    How it joins depends on the program around, and so on the number of devices; what is joined is
    rounded elsewhere.
    """
    return jax.lax.optimization_barrier(tree)


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
