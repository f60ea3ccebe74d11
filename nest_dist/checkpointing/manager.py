"""Checkpoints by Orbax: asynchronous, whole or absent, restored onto any mesh."""

import dataclasses
import pathlib
import typing

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from nest_dist.base import failures, names

State = typing.Any
Metadata = dict[str, typing.Any]

FORMAT_VERSION = 1


class Manager:
    """The checkpoints of one run, in WORKDIR/checkpoints, by step."""

    def __init__(self, directory: pathlib.Path, keep: int | None) -> None:
        """Opens the folder; to save, removes what an interrupted save left.

        Args:
            directory: shared by all processes.
            keep: newest checkpoints that stay; None to read only, beside a run that may be
                saving just now.
        """
        registry = ocp.handlers.local_registry()
        # Without this Orbax would treat the dictionary of metadata as a tree of arrays.
        registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
        context = ocp.Context()
        context.checkpointables.registry = registry
        self._checkpointer = ocp.training.Checkpointer(
            directory,
            context=context,
            cleanup_tmp_directories=keep is not None,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )
        self._directory = directory

    def steps(self) -> list[int]:
        """The steps of the checkpoints there are, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: State, metadata: Metadata) -> None:
        """Starts saving; training may go on, also with donated buffers. A step is saved once."""
        if step in self.steps():
            return
        self._checkpointer.save_checkpointables_async(
            step,
            {"state": state, "meta": {"format_version": FORMAT_VERSION, "step": step, **metadata}},
            force=True,
        )

    def metadata(self, step: int) -> Metadata:
        """What was saved beside the state.

        Raises:
            BadInput: if the checkpoint was written by a newer format.
        """
        metadata = self._checkpointer.load_checkpointables(step, {"meta": None})["meta"]
        if (version := metadata["format_version"]) > FORMAT_VERSION:
            raise failures.BadInput(
                f"checkpoint {self._directory}/{step} has format {version}, this program reads up "
                f"to {FORMAT_VERSION}; use a newer nest_dist."
            )
        return typing.cast(Metadata, metadata)

    def restore(self, step: int, like: State) -> State:
        """The state of a step, laid out as `like`.

        Args:
            step: one of `steps()`.
            like: a tree of `jax.ShapeDtypeStruct` with shardings.
        Raises:
            BadInput: if the checkpoint holds other parameters.
        """
        self._require_same_shapes(step, like)
        try:
            loaded = self._checkpointer.load_checkpointables(step, {"state": like})
        except Exception as error:
            # Orbax reports every cause as a missing handler; the real one is behind it.
            cause = error.__cause__ or error
            raise failures.Failure(
                f"checkpoint {self._directory}/{step} cannot be restored "
                f"({failures.first_line(cause)}); move it away to use the one before."
            ) from error
        return loaded["state"]

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of a step's state by name, on this host alone; needs no configuration."""
        found = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        loaded = self.restore(step, abstract(found, jax.tree.map(lambda _: here, found)))
        return {name: np.asarray(leaf) for name, leaf in names.flatten(loaded).items()}

    def wait(self) -> None:
        """Waits until everything that was started is saved."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits likewise and ends the background threads."""
        self._checkpointer.close()

    def _require_same_shapes(self, step: int, like: State) -> None:
        found = self._checkpointer.checkpointables_metadata(step).metadata["state"]
        stored, wanted = _shapes(found), _shapes(like)
        for name in sorted(stored.keys() | wanted.keys()):
            if stored.get(name) != wanted.get(name):
                raise failures.BadInput(
                    f"checkpoint {self._directory}/{step} holds {name} as {stored.get(name)}, this "
                    f"configuration has {wanted.get(name)}; use the configuration that it was "
                    "trained with, or another --workdir."
                )


def abstract(shapes: State, shardings: State) -> State:
    """A tree of shapes, types and shardings, as `Manager.restore` takes it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
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
