"""Saves checkpoints: durable or absent, restored onto any mesh.

A checkpoint is a folder named by its step. These writes complete it, in this order:

1. Orbax writes the arrays on all processes, on a disk into STEP.saving.
2. Every process syncs the files and folders that it wrote.
3. The primary process compares what is stored with the names and shapes of the state.
4. It writes `metadata.json`, with the fingerprints of all arrays, and the checksum of that.
5. On a disk STEP.saving becomes STEP.

Only then does retention remove older ones. The metrics of an evaluation follow later, in
`evaluation.json`.
"""

import concurrent.futures
import contextlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
from etils import epath

from nest_dist.base import failures, files
from nest_dist.checkpointing import catalog, fingerprint, orbax, reader
from nest_dist.checkpointing import retention as retentions
from nest_dist.cluster import processes

Metadata = catalog.Metadata
# Upper bound for the files of a checkpoint that are no arrays.
_OVERHEAD_BYTES = 1 << 20


class Manager(reader.Reader):
    """The checkpoints of the one run that saves them; all processes call it together."""

    def __init__(
        self,
        directory: epath.PathLike,
        retention: retentions.Retention,
        require_held: Callable[[], None] = lambda: None,
    ) -> None:
        """Removes the leftovers of interrupted saves.

        Args:
            require_held: raises if the folder is no longer this run's; called before each save.
        """
        super().__init__(directory)
        self._retention, self._require_held = retention, require_held
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._jobs: list[concurrent.futures.Future[None]] = []
        self._saves = 0
        if processes.is_primary():
            if not self._catalog.in_bucket:
                files.again(lambda: files.make_folder(self._catalog.directory))
            for name in self._catalog.unfinished():
                leftover = self._catalog.directory / name
                self._catalog.attempt(f"{leftover} stays, an unfinished save", leftover.rmtree)

    def newest(self) -> tuple[int, Metadata]:
        """The newest complete checkpoint and its metadata, chosen by the primary process for all.

        Corrupt checkpoints of later steps are quarantined.

        Returns:
            Its step, 0 before the first checkpoint, and the JSON beside the state.
        Raises:
            BadInput: if there are checkpoints and none is complete, or one has another format or
                another step than its folder.
            Unavailable: if the storage does not answer.
        """

        def choose() -> tuple[int, Metadata]:
            corrupt = {}
            for step in reversed(self._catalog.folders()):
                try:
                    metadata = self._catalog.metadata(step)
                except catalog.Corrupt as problem:
                    corrupt[step] = str(problem)
                    continue
                for later, text in corrupt.items():
                    self._catalog.quarantine(later, text)
                return step, metadata
            if problems := [*corrupt.values(), *self._catalog.quarantined()]:
                raise failures.BadInput(
                    f"{self._catalog.directory} has no complete checkpoint ({problems[0]}); bring "
                    "one back, give another --workdir, or remove the folder to begin at step 0."
                )
            return 0, {}

        step, metadata = processes.broadcast(choose)
        return step, metadata

    def quarantine(self, step: int, problem: str) -> None:
        """Renames a corrupt checkpoint; `notes` says so."""
        processes.broadcast(lambda: self._catalog.quarantine(step, problem))

    def discard_from(self, step: int) -> None:
        """Removes the checkpoints of a step and of later ones."""

        def discard() -> None:
            for later in self._catalog.folders():
                if later >= step:
                    self._catalog.remove(later)

        processes.broadcast(discard)

    def notes(self) -> list[str]:
        """Lines on the primary process about entries that are corrupt or cannot be removed."""
        notes, self._catalog.notes = self._catalog.notes, []
        return notes

    def require_room(self, like: orbax.State) -> None:
        """Checks that the disk has room for another checkpoint of such a state, or its shapes.

        Raises:
            BadInput: on every process, if it lacks the room.
        """
        directory, needed = self._catalog.directory, _OVERHEAD_BYTES
        for leaf in jax.tree.leaves(like):
            needed += math.prod(leaf.shape) * leaf.dtype.itemsize

        def free() -> int:
            try:
                return shutil.disk_usage(directory).free
            except OSError:  # storage without a size, such as a bucket
                return needed

        if (free_bytes := processes.broadcast(free)) < needed:
            raise failures.BadInput(
                f"{directory} lies on a disk with {free_bytes / 1e6:.1f} MB free, a checkpoint "
                f"takes up to {needed / 1e6:.1f} MB; make room, or give another --workdir."
            )

    def warmup(self, state: orbax.State) -> None:
        """Compiles the programs that saving such a state needs."""
        fingerprint.Fingerprint(_detached(state)).local_sums()

    def save(self, step: int, state: orbax.State, metadata: Metadata) -> None:
        """Starts saving a step that is not saved yet; training may donate the buffers meanwhile.

        Raises:
            Lost: if the folder is no longer this run's.
            Unavailable: if the save before this one failed.
        """
        self.wait()

        def is_saved() -> bool:
            self._require_held()
            return self._catalog.is_complete(step)

        if processes.broadcast(is_saved):
            return
        self._saves += 1
        exchange, pending = f"checkpoint {self._saves}", self._catalog.pending(step)
        detached, names = _detached(state), reader.shapes(state)
        # Of the devices' own arrays now: the next step is free to reuse these buffers.
        started_sums = fingerprint.Fingerprint(state) if detached is state else None
        with self._saving(step):
            written = orbax.save(pending, detached)

        def finish() -> None:
            sums = (started_sums or fingerprint.Fingerprint(detached)).local_sums()
            written.result()
            if not self._catalog.in_bucket:
                orbax.sync(pending)
            gathered = processes.gather(exchange, sums)
            if processes.is_primary():
                reader.require_same_shapes(pending, reader.shapes(orbax.stored(pending)), names)
                prints = fingerprint.combine(gathered)
                document = {**metadata, "arrays": names, "fingerprints": prints}
                self._catalog.complete(step, document)
                self._apply_retention()
            # Else a process that has to end now would take the primary one along.
            processes.barrier(f"{exchange} is durable")

        self._submit(step, finish)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Starts writing an evaluation beside a checkpoint, if there is one, after its save."""

        def write() -> None:
            if self._catalog.is_complete(step):
                self._catalog.record(step, metrics)
                self._apply_retention()

        if processes.is_primary():
            self._submit(step, write)

    def evaluation(self, step: int) -> dict[str, float]:
        """The recorded metrics of an evaluation; empty without one."""
        return processes.broadcast(lambda: self._catalog.evaluation(step) or {})

    def raise_failure(self) -> None:
        """Raises the failure of a background save, without waiting for one under way."""
        while self._jobs and self._jobs[0].done():
            self._jobs.pop(0).result()

    def wait(self) -> None:
        """Waits until the saves under way are durable.

        Raises:
            Unavailable: if one of them failed.
        """
        while self._jobs:
            self._jobs.pop(0).result()

    def close(self) -> None:
        """Waits for the save under way and ends the background thread."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _submit(self, step: int, work: Callable[[], None]) -> None:
        """Runs `work` in the background thread, after what was submitted before."""

        def run() -> None:
            with self._saving(step):
                work()

        self._jobs.append(self._worker.submit(run))

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Makes one line of what the storage or Orbax raises while a step is saved.

        Nothing is removed before the save is complete, so a restart loses no checkpoint.
        """
        try:
            yield
        # Orbax's writers raise ValueError and RuntimeError.
        except (OSError, ValueError, RuntimeError) as error:
            if processes.is_primary():
                self._require_held()  # the folder may be gone
            if isinstance(error, failures.Failure):
                raise
            kind = failures.BadInput if failures.is_forbidden(error) else failures.Unavailable
            raise kind(
                f"checkpoint {self._catalog.folder(step)} could not be saved "
                f"({failures.cause(error)}); make room or give the folder back, then start the "
                "same command again."
            ) from error

    def _apply_retention(self) -> None:
        """Removes what is not retained; nothing about older checkpoints makes a save fail."""

        def apply() -> None:
            measured = {step: self._catalog.evaluation(step) for step in self.steps()}
            known = {step: it for step, it in measured.items() if it is not None}
            for step in known.keys() - self._retention.retained(known):
                self._catalog.remove(step)

        self._catalog.attempt("older checkpoints stay", apply)


def _detached(state: orbax.State) -> orbax.State:
    """The state itself; on CPUs a copy.

    Orbax reads the memory of CPU devices while it writes. A step that receives such an array as a
    donation would wait for the write.
    """
    return copied(state) if jax.default_backend() == "cpu" else state


@jax.jit
def copied(state: orbax.State) -> orbax.State:
    """A copy on the same devices."""
    return jax.tree.map(jnp.copy, state)
