"""Trees of arrays as checkpoints see them: described, laid out, copied out of the way."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from nest_dist.base import failures, names

State = typing.Any


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
