"""Logical axis names, and the one table from them to the axes of the mesh."""

import contextlib
import contextvars
import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nest_dist.base import failures, names

Axes = tuple[str | None, ...]

# A logical axis that is not listed is never sharded.
TABLE: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
}

_ACTIVE: contextvars.ContextVar["Layout | None"] = contextvars.ContextVar("layout", default=None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie: a mesh, and the rules that place logical axes on it."""

    mesh: Mesh
    table: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: TABLE)

    def spec(self, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
        """The mesh axes of each dimension.

        Each mesh axis serves the first dimension that asks for it; a dimension whose length its
        mesh axes do not divide stays whole.
        """
        used: set[str] = set()
        places: list[tuple[str, ...] | None] = []
        for axis, length in zip(axes, shape, strict=True):
            wanted = self.table.get(axis, ()) if axis else ()
            place = tuple(name for name in wanted if name not in used)
            if not place or length % math.prod(self.mesh.shape[name] for name in place):
                places.append(None)
                continue
            used.update(place)
            places.append(place)
        return PartitionSpec(*places)

    def sharding(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch_shards(self) -> int:
        """Into how many parts a batch is cut."""
        return math.prod(self.mesh.shape[name] for name in self.table["batch"])

    def batch_sharding(self) -> NamedSharding:
        """Rows of a batch over the mesh; the other dimensions whole."""
        return NamedSharding(self.mesh, PartitionSpec(self.table["batch"]))

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, `constrain` places activations on this layout."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def replicated_like(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Whole on every device of the mesh of `sharding`; without a mesh, just `sharding`."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by its logical axes; without an active layout, just `x`."""
    layout = _ACTIVE.get()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(axes, x.shape))


def tree_shardings(
    layout: Layout, tree: typing.Any, parameter_axes: Mapping[str, Axes]
) -> typing.Any:
    """The sharding of every leaf of a training state or parameter tree, by its name.

    A leaf takes the axes of the one pattern that fits the end of its name, so the moments of an
    optimizer lie where their parameter lies; scalars are replicated.

    Args:
        layout: mesh and rules.
        tree: arrays or shapes.
        parameter_axes: name pattern -> logical axes, e.g. {"*/query/kernel": ("embed", ...)}.
    Raises:
        BadInput: for a leaf that no pattern or more than one fits.
    """

    def place(name: str, leaf: typing.Any) -> NamedSharding:
        if leaf.ndim == 0:
            return layout.replicated()
        fitting = [pattern for pattern in parameter_axes if names.matches("/" + name, [pattern])]
        if len(fitting) != 1:
            raise failures.BadInput(
                f"parameter {name} of shape {leaf.shape} fits {len(fitting)} sharding rules "
                f"({', '.join(fitting) or 'none'}); it must fit exactly one."
            )
        return layout.sharding(parameter_axes[fitting[0]], leaf.shape)

    return names.map_named(place, tree)
