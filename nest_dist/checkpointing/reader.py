"""Reads the checkpoints of a run, also while the run saves and removes some."""

import typing
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from etils import epath

from nest_dist.base import failures, tree_paths
from nest_dist.checkpointing import catalog, fingerprint, orbax
from nest_dist.cluster import processes

Result = typing.TypeVar("Result")

# How often a reader turns to another checkpoint when a run removes the one that it reads.
_ATTEMPTS = 5


class Reader:
    """The checkpoints of one run, in WORKDIR/checkpoints, by step."""

    def __init__(self, directory: epath.PathLike) -> None:
        """Opens the folder: a path shared by all processes, also gs://."""
        self._catalog = catalog.Catalog(directory)

    def steps(self) -> list[int]:
        """The steps of the complete checkpoints, ascending."""
        return self._catalog.steps()

    def read(self, step: int | None, action: Callable[[int], Result]) -> tuple[int, Result]:
        """The step of a checkpoint, None for the newest, and what `action` reads of it.

        Raises:
            BadInput: if there is no such checkpoint.
            Unavailable: if its run removes it.
        """

        def choose() -> int:
            steps, folder = self.steps(), self._catalog.directory
            if not steps:
                raise failures.BadInput(f"{folder} has no checkpoint yet; train first.")
            if step is not None and step not in steps:
                raise failures.BadInput(
                    f"{folder} has no checkpoint of step {step}; give one of "
                    f"{', '.join(map(str, steps))}."
                )
            return steps[-1] if step is None else step

        # One process that tries again alone would leave the others waiting.
        attempts = _ATTEMPTS if step is None and jax.process_count() == 1 else 1
        while True:
            attempts -= 1
            chosen = processes.broadcast(choose)
            try:
                return chosen, action(chosen)
            except (catalog.Corrupt, failures.BadInput) as error:
                if not self._catalog.is_removed(chosen):
                    raise
                if not attempts:
                    raise failures.Unavailable(
                        f"checkpoint {self._catalog.folder(chosen)} is being removed by its run; "
                        "take another one."
                    ) from error

    def metadata(self, step: int) -> catalog.Metadata:
        """The JSON beside the state; raises as `catalog.Catalog.metadata`."""
        return self._catalog.metadata(step)

    def restore(self, step: int, like: orbax.State) -> orbax.State:
        """The state of a step, sharded as `like`, with the fingerprints that were saved.

        Args:
            like: a tree of `jax.ShapeDtypeStruct` with shardings.
        Raises:
            BadInput: if the checkpoint holds other arrays.
            Corrupt: if it cannot be restored, or a leaf differs from the saved one.
            Unavailable: if the storage does not answer.
        """
        problem, state, expected = "", None, {}
        sums: dict[str, int] = {}
        try:
            metadata, folder = self._catalog.metadata(step), self._catalog.folder(step)
            require_same_shapes(folder, metadata["arrays"], shapes(like))
            expected, state = metadata["fingerprints"], orbax.load(folder, like)
            sums = fingerprint.Fingerprint(state).local_sums()
        except catalog.Corrupt as error:
            problem = error.problem

        def judge(outcomes: list[tuple[str, dict[str, int]]]) -> str:
            if first := next((text for text, _ in outcomes if text), ""):
                return first
            restored = fingerprint.combine(sums for _, sums in outcomes)
            if wrong := fingerprint.differing(expected, restored):
                return (
                    f"it does not hold what was saved: the fingerprint of {wrong[0]} differs, "
                    f"{len(wrong)} of {len(restored)} in all"
                )
            return ""

        if all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(like)):
            problem = judge([(problem, sums)])
        else:  # a process that raised alone would leave the others waiting
            problem = processes.decide("restored", (problem, sums), judge)
        if problem:
            raise catalog.Corrupt(step, problem)
        return state

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of a step's state by name, on this host alone; needs no configuration."""
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=local),
            orbax.stored(self._catalog.folder(step)),
        )
        leaves = tree_paths.flatten(self.restore(step, like))
        return {name: np.asarray(leaf) for name, leaf in leaves.items()}

    def verified(self) -> Iterator[tuple[str, str, bool]]:
        """Reads all checkpoints on this host alone.

        Yields:
            The name of an entry, a text, whether it is corrupt.
        Raises:
            Unavailable: if the storage does not answer.
        """
        for name in self._catalog.quarantined():
            yield name, "quarantined earlier; remove it when it is no longer needed", False
        unfinished = self._catalog.unfinished()
        for name in unfinished:
            yield name, "not complete: being saved or removed, or left by a killed run", False
        for step in self._catalog.folders():
            if str(step) in unfinished:
                continue
            try:
                self.arrays(step)
            except (catalog.Corrupt, failures.BadInput) as failure:
                if not self._catalog.is_removed(step):
                    yield str(step), str(failure), True
            else:
                yield str(step), "complete", False


def shapes(tree: orbax.State) -> dict[str, str]:
    """Type and shape of each leaf by name, as float32[3, 4]."""
    return {
        name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in tree_paths.flatten(tree).items()
    }


def require_same_shapes(
    folder: epath.Path, actual: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    """Checks that a checkpoint holds the arrays that a configuration expects."""
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            raise failures.BadInput(
                f"checkpoint {folder} holds {name} as {actual.get(name)}, this configuration has "
                f"{expected.get(name)}; use the configuration that it was trained with, or another "
                "--workdir."
            )
