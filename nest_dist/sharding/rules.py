"""Logical axis names, and the one table from them to mesh axes."""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nest_dist.base import checks, failures, settings, tree_paths
from nest_dist.sharding import mesh as meshes

Axes = tuple[str | None, ...]

_ACTIVE: contextvars.ContextVar["ShardingContext | None"] = contextvars.ContextVar(
    "sharding_context", default=None
)


@settings.register
class Rules:
    """The mesh axes that shard each logical axis of an array; () for none.

    Attributes:
        batch: examples.
        rows: of an image, and so of the grid of blocks.
        embed: channels of tokens, in stored parameters and their moments; gathered for use.
        heads: of attention.
        head_dim: channels of a head.
        mlp: hidden channels of an MLP.
        classes: logits.
    """

    batch: tuple[str, ...]
    rows: tuple[str, ...]
    embed: tuple[str, ...]
    heads: tuple[str, ...]
    head_dim: tuple[str, ...]
    mlp: tuple[str, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, mesh_axes in vars(self).items():
            for mesh_axis in mesh_axes:
                checks.one_of(f"a mesh axis in Rules.{name}", mesh_axis, meshes.AXES)


@dataclasses.dataclass(frozen=True)
class ShardingContext:
    """A mesh, and the rules that shard logical axes along its axes."""

    mesh: Mesh
    rules: Rules

    def shards(self, axis: str) -> int:
        """The number of shards of a logical axis whose length they divide."""
        return math.prod(self.mesh.shape[name] for name in getattr(self.rules, axis))

    def mesh_axes(self, axes: Axes, shape: tuple[int, ...]) -> list[tuple[str, ...]]:
        """The mesh axes that shard each dimension of an array.

        Each mesh axis serves the first dimension that asks for it. A dimension is not sharded if
        its mesh axes do not divide its length. Mesh axes of one device are left out.
        """
        used: set[str] = set()
        chosen = []
        for axis, length in zip(axes, shape, strict=True):
            wanted = getattr(self.rules, axis) if axis else ()
            names = tuple(n for n in wanted if n not in used and self.mesh.shape[n] > 1)
            if length % math.prod(self.mesh.shape[name] for name in names):
                names = ()
            used.update(names)
            chosen.append(names)
        return chosen

    def sharding(self, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        """`mesh_axes` of an array as its sharding."""
        spec = PartitionSpec(*(names or None for names in self.mesh_axes(axes, shape)))
        return NamedSharding(self.mesh, spec)

    def replicated(self) -> NamedSharding:
        """A copy of the array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While this is open, `constrain` and `gathered` shard arrays by this context."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def active() -> ShardingContext | None:
    """The context that is open, if one is."""
    return _ACTIVE.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Has the compiler shard `x` by its logical axes; without an active context, just `x`."""
    context = active()
    if context is None:
        return x
    return jax.lax.with_sharding_constraint(x, context.sharding(axes, x.shape))


def if_divided(axis: str, length: int) -> str | None:
    """`axis` if the active context shards `length` evenly along it, else None."""
    context = active()
    return axis if context is not None and length % context.shards(axis) == 0 else None


def gathered(parameter: jax.Array, axes: Axes) -> jax.Array:
    """A parameter with these logical axes, gathered along `embed` for use.

    Its gradient is summed and sharded at once.
    """
    context = active()
    if context is None:
        return parameter
    stored = context.sharding(axes, parameter.shape)
    used_axes = tuple(None if axis == "embed" else axis for axis in axes)
    used = context.sharding(used_axes, parameter.shape)
    return parameter if stored == used else _gathered(parameter, stored, used)


def on_each_device(
    function: Callable[..., jax.Array],
    parameters: tree_paths.Tree,
    arrays: Sequence[tuple[jax.Array, Axes]],
    result: tuple[tuple[int, ...], Axes],
) -> jax.Array:
    """`function(parameters, *arrays)`, each device computing its shards by itself.

    The compiler cannot divide a kernel between devices.

    Args:
        function: of the parameters and shards of the arrays.
        parameters: complete on every device; their gradients are summed over the devices.
        arrays: each with its logical axes.
        result: shape of all shards together, and logical axes.
    """
    values = [array for array, _ in arrays]
    context = active()
    if context is None:
        return function(parameters, *values)
    shape, result_axes = result
    specs = [context.sharding(axes, array.shape).spec for array, axes in arrays]
    return jax.shard_map(
        function,
        mesh=context.mesh,
        in_specs=(PartitionSpec(), *specs),
        out_specs=context.sharding(result_axes, shape).spec,
        check_vma=False,  # kernels do not say along which axes their results differ
    )(parameters, *values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(parameter: jax.Array, stored: NamedSharding, used: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(parameter, used)


def _backward(
    stored: NamedSharding, used: NamedSharding, _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    # The transpose of the constraint would first gather the gradient on every device.
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gathered.defvjp(lambda *arguments: (_gathered(*arguments), None), _backward)


def axes_of(name: str, parameter_axes: Mapping[str, Axes]) -> tuple[str, Axes]:
    """The one pattern, such as "*/query/kernel", that fits a parameter's name, and its axes.

    It also fits "optimizer/0/mu/levels_0/layers_0/attention/query/kernel", so the moments of an
    optimizer are sharded as their parameter is.

    Raises:
        BadInput: if no pattern or more than one fits.
    """
    matching = [pattern for pattern in parameter_axes if tree_paths.matches("/" + name, [pattern])]
    if len(matching) != 1:
        raise failures.BadInput(
            f"parameter {name} fits {len(matching)} sharding rules "
            f"({', '.join(matching) or 'none'}); it must fit exactly one."
        )
    return matching[0], parameter_axes[matching[0]]


def sharded_shapes(
    context: ShardingContext, tree: tree_paths.Tree, parameter_axes: Mapping[str, Axes]
) -> tree_paths.Tree:
    """Shapes with the shardings of `tree_shardings`."""
    shardings = tree_shardings(context, tree, parameter_axes)
    return jax.tree.map(lambda leaf, it: leaf.update(sharding=it), tree, shardings)


def on_devices(shapes: tree_paths.Tree, values: Mapping[str, np.ndarray]) -> tree_paths.Tree:
    """Arrays of these shapes and shardings, from unsharded values by name on every process."""

    def to_devices(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = np.asarray(values[name]).astype(leaf.dtype, copy=False)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda it: array[it])

    return tree_paths.map_named(to_devices, shapes)


def tree_shardings(
    context: ShardingContext, tree: tree_paths.Tree, parameter_axes: Mapping[str, Axes]
) -> tree_paths.Tree:
    """The sharding of every leaf of a training state or parameter tree; scalars are replicated.

    Of the optimizer's state, what has not the shape of a parameter is replicated, too, such as the
    means of rows that Adafactor keeps.
    """
    shapes = {name: leaf.shape for name, leaf in tree_paths.flatten(tree).items()}

    def is_moment(name: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
        """Whether the name ends like that of a parameter of the same shape."""
        below = name.split("/")
        ends = ("/".join(below[start:]) for start in range(1, len(below)))
        return any(shapes.get(f"params/{end}") == leaf.shape for end in ends)

    def sharding(name: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        if leaf.ndim == 0 or (name.startswith("optimizer/") and not is_moment(name, leaf)):
            return context.replicated()
        return context.sharding(axes_of(name, parameter_axes)[1], leaf.shape)

    return tree_paths.map_named(sharding, tree)
