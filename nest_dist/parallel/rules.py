"""Logical axis names, and the one table from them to the axes of the mesh."""

import contextlib
import contextvars
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Mapping

import gin
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nest_dist.base import checks, failures, names
from nest_dist.parallel import mesh as meshes

Axes = tuple[str | None, ...]

_ACTIVE: contextvars.ContextVar["Layout | None"] = contextvars.ContextVar("layout", default=None)


@gin.register
@dataclasses.dataclass(frozen=True)
class Rules:
    """Which axes of the mesh share out each logical axis of an array; () for none of them.

    Attributes:
        batch: examples.
        rows: of an image, and so of the grid of blocks.
        embed: channels of tokens, as parameters and their moments are stored; whole in use.
        heads: of attention.
        head_dim: channels of a head.
        mlp: hidden channels of an MLP.
        classes: logits.
        layers: of a level, where they are stacked.
    """

    batch: tuple[str, ...]
    rows: tuple[str, ...]
    embed: tuple[str, ...]
    heads: tuple[str, ...]
    head_dim: tuple[str, ...]
    mlp: tuple[str, ...]
    classes: tuple[str, ...]
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.types(self)
        for name, places in vars(self).items():
            for place in places:
                checks.one_of(f"a mesh axis in Rules.{name}", place, meshes.AXES)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays lie: a mesh, and the rules that place logical axes on it."""

    mesh: Mesh
    rules: Rules

    def shards(self, axis: str) -> int:
        """Into how many parts a logical axis is cut where its length allows."""
        return math.prod(self.mesh.shape[name] for name in getattr(self.rules, axis))

    def places(self, axes: Axes, shape: tuple[int, ...]) -> list[tuple[str, ...]]:
        """The mesh axes of each dimension.

        Each mesh axis serves the first dimension that asks for it; a dimension whose length its
        mesh axes do not divide stays whole. Mesh axes of one device are left out.
        """
        used: set[str] = set()
        places = []
        for axis, length in zip(axes, shape, strict=True):
            wanted = getattr(self.rules, axis) if axis else ()
            place = tuple(n for n in wanted if n not in used and self.mesh.shape[n] > 1)
            if length % math.prod(self.mesh.shape[name] for name in place):
                place = ()
            used.update(place)
            places.append(place)
        return places

    def spec(self, axes: Axes, shape: tuple[int, ...]) -> PartitionSpec:
        """`places` as JAX takes them."""
        return PartitionSpec(*(place or None for place in self.places(axes, shape)))

    def sharding(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """`spec` on this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, arrays in a traced model are placed on this layout."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def active() -> Layout | None:
    """The layout that is open, if one is."""
    return _ACTIVE.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to lay `x` out by its logical axes; without an active layout, just `x`."""
    layout = active()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.sharding(axes, x.shape))


def if_divided(axis: str, length: int) -> str | None:
    """`axis`, if the active layout cuts `length` things along it evenly; else None, for whole."""
    layout = active()
    return axis if layout is not None and length % layout.shards(axis) == 0 else None


def gathered(parameter: jax.Array, axes: Axes) -> jax.Array:
    """A parameter for use, whole along `embed`; its gradient is summed and shared out at once.

    Args:
        parameter: stored as its axes say.
        axes: its logical axes.
    """
    layout = active()
    if layout is None:
        return parameter
    stored = layout.sharding(axes, parameter.shape)
    used = tuple(None if axis == "embed" else axis for axis in axes)
    whole = layout.sharding(used, parameter.shape)
    return parameter if stored == whole else _gathered(parameter, stored, whole)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(parameter: jax.Array, stored: NamedSharding, whole: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(parameter, whole)


def _forward(
    parameter: jax.Array, stored: NamedSharding, whole: NamedSharding
) -> tuple[jax.Array, None]:
    return _gathered(parameter, stored, whole), None


def _backward(
    stored: NamedSharding, whole: NamedSharding, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    # The transpose of a constraint would ask for the whole gradient on every device first.
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gathered.defvjp(_forward, _backward)


def axes_of(name: str, parameter_axes: Mapping[str, Axes]) -> tuple[str, Axes]:
    """The one pattern that fits the end of a parameter's name, and its logical axes.

    So the moments of an optimizer lie where their parameter lies.

    Args:
        name: e.g. "optimizer/0/mu/levels_0/layers_0/attention/query/kernel".
        parameter_axes: name pattern -> logical axes, e.g. {"*/query/kernel": ("embed", ...)}.
    Raises:
        BadInput: if no pattern or more than one fits.
    """
    fitting = [pattern for pattern in parameter_axes if names.matches("/" + name, [pattern])]
    if len(fitting) != 1:
        raise failures.BadInput(
            f"parameter {name} fits {len(fitting)} sharding rules "
            f"({', '.join(fitting) or 'none'}); it must fit exactly one."
        )
    return fitting[0], parameter_axes[fitting[0]]


def tree_shardings(
    layout: Layout, tree: typing.Any, parameter_axes: Mapping[str, Axes]
) -> typing.Any:
    """The sharding of every leaf of a training state or parameter tree; scalars are replicated.

    Args:
        layout: mesh and rules.
        tree: arrays or shapes.
        parameter_axes: as of `axes_of`.
    Raises:
        BadInput: for a leaf that no pattern or more than one fits.
    """

    def place(name: str, leaf: typing.Any) -> NamedSharding:
        if leaf.ndim == 0:
            return layout.replicated()
        return layout.sharding(axes_of(name, parameter_axes)[1], leaf.shape)

    return names.map_named(place, tree)
