"""Trees of arrays as checkpoints see them: described, laid out, weighed, copied out of the way."""

import dataclasses
import math
import shutil
import typing

import jax
import jax.numpy as jnp

from nest_dist.base import failures, names
from nest_dist.parallel import hosts

State = typing.Any

# Of a checkpoint, beside the arrays.
_ROOM_BYTES = 1 << 20


def detached(state: State) -> State:
    """The state, on CPUs in arrays of its own.

    Orbax reads the memory of CPU devices while it writes; a step to which such an array is donated
    would wait for that.
    """
    return _copied(state) if jax.default_backend() == "cpu" else state


@jax.jit
def _copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


def abstract(described: State, shardings: State) -> State:
    """A tree of shapes, types and shardings, as `manager.Manager.restore` takes it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        described,
        shardings,
    )


def require_room(directory: typing.Any, like: State) -> None:
    """Checks that the disk of a folder has room for one more checkpoint.

    Args:
        directory: a path shared by all processes, also gs://.
        like: what is to be saved, or its description.
    Raises:
        BadInput: on every process, if it has not.
    """
    needed = _ROOM_BYTES + sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)
    )

    def free() -> str:
        try:
            return str(shutil.disk_usage(directory).free)
        except OSError:  # a storage without a size, such as a bucket
            return str(needed)

    if (found := int(hosts.told(free))) < needed:
        raise failures.BadInput(
            f"{directory} lies on a disk with {found / 1e6:.1f} MB free, a checkpoint "
            f"takes up to {needed / 1e6:.1f} MB; make room, or give another --workdir."
        )


def require_same_shapes(folder: typing.Any, stored: State, like: State) -> None:
    """Checks that a checkpoint holds what is wanted.

    Args:
        folder: of the checkpoint.
        stored: what it holds.
        like: what is wanted, as `abstract` describes it.
    Raises:
        BadInput: naming the first leaf that differs.
    """
    found, wanted = _shapes(stored), _shapes(like)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise failures.BadInput(
                f"checkpoint {folder} holds {name} as {found.get(name)}, this configuration has "
                f"{wanted.get(name)}; use the configuration that it was trained with, or another "
                "--workdir."
            )


@dataclasses.dataclass(frozen=True)
class _Leaf:
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def _shapes(tree: State) -> dict[str, _Leaf]:
    return {
        name: _Leaf(tuple(leaf.shape), str(leaf.dtype))
        for name, leaf in names.flatten(tree).items()
    }
