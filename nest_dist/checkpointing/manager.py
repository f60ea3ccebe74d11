"""Checkpoints by Orbax: asynchronous, whole or absent, restored onto any mesh.

A checkpoint is a folder named by its step. Orbax writes `state` there and gives the folder its
name; then the lead process adds `metadata.json`, and last the digests of all files. Only with them
it is whole: whatever a process dies of in between leaves a folder that is no checkpoint.
"""

import concurrent.futures
import json
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from nest_dist.base import failures, names
from nest_dist.checkpointing import digests, fingerprint, states
from nest_dist.checkpointing import keep as keeping
from nest_dist.parallel import hosts

State = states.State
Metadata = dict[str, typing.Any]

FORMAT_VERSION = 1
METADATA = "metadata.json"
# Ends of names of folders that are no checkpoints and may be removed.
_UNFINISHED = ".orbax-checkpoint-tmp"
_UNWANTED = ".unwanted"
_ASIDE = ".damaged"


class Damaged(failures.Failure):
    """A checkpoint is not what was saved; one before it may be."""


class Manager:
    """The checkpoints of one run, in WORKDIR/checkpoints, by step."""

    def __init__(self, directory: typing.Any, keep: keeping.Keep | None) -> None:
        """Opens the folder; to save, removes what an interrupted save left.

        Args:
            directory: a path shared by all processes, also gs://.
            keep: which checkpoints stay; None to read only, beside a run that may be saving just
                now.
        """
        self._directory = epath.Path(directory)
        self._keep = keep
        self._finisher = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: concurrent.futures.Future[None] | None = None
        if keep is not None and hosts.lead():
            self._directory.mkdir(parents=True, exist_ok=True)
            for path in self._entries():
                if path.name.endswith((_UNFINISHED, _UNWANTED)):
                    path.rmtree()

    def steps(self) -> list[int]:
        """The steps of the checkpoints that were finished, ascending."""
        return [step for step in self._folders() if self._finished(step)]

    def newest_whole(self) -> tuple[int, list[str]]:
        """The step to go on from, decided by all processes together; 0 if there is none.

        What lies after it and is damaged is renamed aside.

        Returns:
            The step, and a line for each folder that was set aside.
        """

        def choose() -> str:
            notes: list[str] = []
            for step in reversed(self._folders()):
                problem = digests.problem(self._folder(step))
                if problem is None:
                    return json.dumps([step, notes])
                notes.append(self._renamed_aside(step, problem))
            return json.dumps([0, notes])

        step, notes = json.loads(hosts.told(choose))
        return step, notes

    def set_aside(self, step: int, problem: str) -> str:
        """Renames a damaged checkpoint, for all processes; returns a line that says so."""
        return hosts.told(lambda: self._renamed_aside(step, problem))

    def require_whole(self, step: int) -> None:
        """Checks the content digests of one of `steps()`, for all processes.

        Raises:
            Damaged: naming the file.
        """
        if problem := hosts.told(lambda: digests.problem(self._folder(step)) or ""):
            raise Damaged(
                f"checkpoint {self._folder(step)} is damaged ({problem}); give another --step, or "
                "resume the training, which sets it aside."
            )

    def require_room(self, like: State) -> None:
        """Checks that the disk has room for one more checkpoint.

        Raises:
            BadInput: on every process, if it has not.
        """
        states.require_room(self._directory, like)

    def prepare(self, state: State) -> None:
        """Compiles what saving such a state needs."""
        fingerprint.Fingerprint(states.detached(state)).parts()

    def save(
        self, step: int, state: State, metadata: Metadata, metrics: Mapping[str, float]
    ) -> None:
        """Starts saving; training may go on, also with donated buffers. A step is saved once.

        Args:
            step: steps done.
            state: on the devices.
            metadata: what JSON can hold.
            metrics: of the evaluation at this step, if there was one.
        Raises:
            Failure: if the save before this one failed.
        """
        self.wait()
        if hosts.told(lambda: str(self._finished(step))) == "True":
            return
        detached = states.detached(state)
        if detached is state:  # read at once what the next step takes over
            parts = fingerprint.Fingerprint(state).parts
        else:

            def parts() -> dict[str, int]:
                return fingerprint.Fingerprint(detached).parts()

        written = ocp.save_checkpointables_async(self._folder(step), {"state": detached})
        document = {"format_version": FORMAT_VERSION, "step": step, "metrics": dict(metrics)}
        self._saving = self._finisher.submit(
            self._finish, step, written, parts, {**document, **metadata}
        )

    def metadata(self, step: int) -> Metadata:
        """What was saved beside the state.

        Raises:
            BadInput: if the checkpoint was written by a newer format.
        """
        metadata = json.loads((self._folder(step) / METADATA).read_text())
        if (version := metadata["format_version"]) > FORMAT_VERSION:
            raise failures.BadInput(
                f"checkpoint {self._folder(step)} has format {version}, this program reads up "
                f"to {FORMAT_VERSION}; use a newer nest_dist."
            )
        return typing.cast(Metadata, metadata)

    def restore(self, step: int, like: State) -> State:
        """The state of a step, laid out as `like`; checked to be what the devices once held.

        Args:
            step: one of `steps()`.
            like: a tree of `jax.ShapeDtypeStruct` with shardings.
        Raises:
            BadInput: if the checkpoint holds other parameters.
            Damaged: if the restored leaves are not those that were saved.
        """
        states.require_same_shapes(self._folder(step), self._stored(step), like)
        try:
            state = ocp.load_checkpointables(self._folder(step), {"state": like})["state"]
        except Exception as error:
            # Orbax reports every cause as a missing handler; the real one is behind it.
            cause = error.__cause__ or error
            raise failures.Failure(
                f"checkpoint {self._folder(step)} cannot be restored "
                f"({failures.first_line(cause)}); `nest-dist verify` tells whether it is damaged."
            ) from error
        found = fingerprint.of_whole(state)
        if wrong := fingerprint.differing(self.metadata(step)["fingerprints"], found):
            raise Damaged(
                f"checkpoint {self._folder(step)} does not hold what was saved: the fingerprint of "
                f"{wrong[0]} differs, {len(wrong)} of {len(found)} in all; use another checkpoint."
            )
        return state

    def arrays(self, step: int) -> dict[str, np.ndarray]:
        """Every array of a step's state by name, on this host alone; needs no configuration."""
        found = self._stored(step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        loaded = self.restore(step, states.abstract(found, jax.tree.map(lambda _: here, found)))
        return {name: np.asarray(leaf) for name, leaf in names.flatten(loaded).items()}

    def problem(self, step: int) -> str | None:
        """What is wrong with a folder, found on this host alone; None if it is whole."""
        try:
            if found := digests.problem(self._folder(step)):
                return found
            self.arrays(step)
        except failures.Failure as failure:
            return str(failure)
        return None

    def folders(self) -> dict[str, int | None]:
        """Every folder there is: its step, or None for one that was set aside."""
        aside = sorted(path.name for path in self._entries() if _ASIDE in path.name)
        return {**{str(step): step for step in self._folders()}, **dict.fromkeys(aside)}

    def raise_failure(self) -> None:
        """Tells of a save that failed in the background, without waiting for one under way."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits until everything that was started is saved.

        Raises:
            Failure: if it could not be.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Waits likewise and ends the background thread."""
        try:
            self.wait()
        finally:
            self._finisher.shutdown()

    def _finish(
        self,
        step: int,
        written: ocp.AsyncResponse[None],
        parts: Callable[[], dict[str, int]],
        document: Metadata,
    ) -> None:
        """What makes a checkpoint whole, in the background."""
        folder = self._folder(step)
        try:
            every = hosts.collected(f"fingerprints/{step}", json.dumps(parts()))
            written.result()
            if not hosts.lead():
                return
            document["fingerprints"] = fingerprint.numbers(map(json.loads, every))
            digests.replace_text(folder / METADATA, json.dumps(document, indent=1))
            digests.write(folder)
            self._remove_unwanted()
        # Orbax's writers raise the last two.
        except (OSError, ValueError, RuntimeError) as error:
            cause = getattr(error, "strerror", None) or failures.first_line(error)
            raise failures.Failure(
                f"checkpoint {folder} could not be saved ({cause}); make room or give the folder "
                "back, then start the same command again."
            ) from error

    def _remove_unwanted(self) -> None:
        assert self._keep is not None
        metrics = {step: self.metadata(step)["metrics"] for step in self.steps()}
        for step in metrics.keys() - self._keep.kept(metrics):
            # A folder that is half removed must not pass for a damaged checkpoint.
            unwanted = self._folder(step).with_name(f"{step}{_UNWANTED}")
            self._folder(step).rename(unwanted)
            unwanted.rmtree()

    def _renamed_aside(self, step: int, problem: str) -> str:
        folder = self._folder(step)
        names_taken = {path.name for path in self._entries()}
        aside, count = f"{step}{_ASIDE}", 1
        while aside in names_taken:
            count += 1
            aside = f"{step}{_ASIDE}.{count}"
        folder.rename(folder.with_name(aside))
        return f"checkpoint {step} is damaged ({problem}); set aside as {folder.with_name(aside)}"

    def _folders(self) -> list[int]:
        return sorted(int(path.name) for path in self._entries() if path.name.isdigit())

    def _entries(self) -> list[epath.Path]:
        # A bucket has no empty folders.
        return list(self._directory.iterdir()) if self._directory.exists() else []

    def _finished(self, step: int) -> bool:
        return (self._folder(step) / digests.MANIFEST).exists()

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _stored(self, step: int) -> State:
        return ocp.checkpointables_metadata(self._folder(step)).metadata["state"]
