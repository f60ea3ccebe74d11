"""Resumes a run from the newest complete checkpoint of its workdir."""

import dataclasses
import typing
from collections.abc import Callable

import jax

from nest_dist.base import failures
from nest_dist.base.settings import Effect
from nest_dist.checkpointing import catalog, manager
from nest_dist.config import run_json
from nest_dist.data import classes
from nest_dist.data.sources import mixture
from nest_dist.experiment import changes, preflight
from nest_dist.experiment import experiment as experiments
from nest_dist.train import early_stopping
from nest_dist.train import state as states


@dataclasses.dataclass(frozen=True)
class Start:
    """The state and the data position from which a run starts."""

    step: int  # steps already done
    state: states.TrainState | None  # after these steps; None at the beginning of a run
    left_out: int  # batches of the data's sequence that rewinds have left out so far
    class_names: tuple[str, ...]  # of the checkpoint, or of the data at the beginning of a run
    # The numbers of the evaluations that are due at this step and are not recorded
    missing: tuple[int, ...]
    history: early_stopping.History  # of evaluations, for `Run.early_stopping`
    notes: tuple[str, ...]  # lines for the user: quarantined checkpoints, changed bindings
    # Of a mixture, with those that the checkpoint kept; None without one
    weights: tuple[typing.Any, ...] | None = None


def metadata(
    experiment: experiments.Experiment,
    left_out: int,
    history: early_stopping.History = early_stopping.NONE,
) -> manager.Metadata:
    """The JSON beside a checkpoint, `left_out` and `history` as of `Start`."""
    taught = experiment.teacher
    return {
        **({} if taught is None else {"teacher": taught.weights.digest}),
        "seed": experiment.run.seed,
        "global_batch": experiment.run.global_batch,
        "data_fingerprint": experiment.training_source.fingerprint,
        "run": experiment.document,
        "class_names": list(experiment.class_names),
        "devices": [jax.device_count(), jax.devices()[0].device_kind],
        "mesh": dict(experiment.sharding.mesh.shape),
        "processes": jax.process_count(),
        "versions": preflight.versions(),
        "batches_left_out": left_out,
        "evaluations": dataclasses.asdict(history),
    }


def find(
    checkpoints: manager.Manager, experiment: experiments.Experiment, allow_change: bool
) -> Start:
    """Restores the newest complete checkpoint, decided by all processes together.

    Raises:
        BadInput: if the checkpoint belongs to another run, unless `allow_change`.
    """

    weights: tuple[typing.Any, ...] | None = None

    def compare(step: int, stored: manager.Metadata) -> list[str]:
        nonlocal weights
        _require_no_stream(stored)
        weights = _weights(experiment, stored, step + stored["batches_left_out"])
        continued = experiment.with_weights(weights).document
        changed = changes.between(stored["run"], continued)
        if any(change.effect is Effect.ANOTHER_RUN for change in changed):
            # As they were given, for the error text.
            given = changes.between(stored["run"], experiment.document)
            changes.require_same_run(given, allow_change)
        notes = [f"configuration changed: {change}" for change in changed]
        names = tuple(stored["class_names"])
        if experiment.in_order(names) is not experiment:
            notes.append(f"classes are in the order of the checkpoint: {classes.few(names)}")
        fingerprint = experiment.training_source.fingerprint
        if stored["data_fingerprint"] != fingerprint:
            if not allow_change:
                what, before = "the fingerprint of the training data", stored["data_fingerprint"]
                raise changes.another_run(what, fingerprint, before, "give the same data")
            notes.append("the training data are others: the run goes on differently")
        if note := _other_teacher(stored, experiment, allow_change):
            notes.append(note)
        return notes

    start = _newest(checkpoints, experiment, compare)
    return dataclasses.replace(start, weights=weights)


def _other_teacher(
    stored: manager.Metadata, experiment: experiments.Experiment, allow_change: bool
) -> str:
    """A line on a teacher that is not the checkpoint's; empty for the same, or for none."""
    before, taught = stored.get("teacher"), experiment.teacher
    if taught is None or before in (None, taught.weights.digest):
        return ""
    if not allow_change:
        what, now = "the digest of the weights of Distillation.teacher", taught.weights.digest
        raise changes.another_run(what, now, before, "give the same teacher")
    return "the teacher is another: the run goes on differently"


def rewind(
    checkpoints: manager.Manager, experiment: experiments.Experiment, start: Start, bad_step: int
) -> Start:
    """Restores the newest checkpoint before a bad step, after the save under way.

    The batches after the checkpoint are left out up to the bad one, each once, whatever rewinds
    before this one have left out. `start` is that of the attempt which met the bad step.
    """
    checkpoints.wait()
    checkpoints.discard_from(bad_step)
    before = _newest(checkpoints, experiment, lambda *_: [])
    next_batch = bad_step + start.left_out
    return dataclasses.replace(before, left_out=next_batch - before.step)


def _newest(
    checkpoints: manager.Manager,
    experiment: experiments.Experiment,
    compare: Callable[[int, manager.Metadata], list[str]],
) -> Start:
    while True:
        step, stored = checkpoints.newest()
        if not step:
            notes = tuple(checkpoints.notes())
            none = early_stopping.NONE
            return Start(0, None, 0, experiment.class_names, (), none, notes)
        compared = compare(step, stored)
        try:
            state = checkpoints.restore(step, experiment.state_shapes)
        except catalog.Corrupt as corrupt:
            checkpoints.quarantine(step, failures.first_line(corrupt))
            continue
        measured = checkpoints.evaluation(step)
        history = early_stopping.History(**stored.get("evaluations", {}))
        if measured and (rule := experiment.run.early_stopping):
            history = rule.after(history, step, measured)
        return Start(
            step,
            state,
            left_out=stored["batches_left_out"],
            class_names=tuple(stored["class_names"]),
            missing=experiment.missing_evaluations(step, measured),
            history=history,
            notes=(*checkpoints.notes(), *compared),
        )


def _weights(
    experiment: experiments.Experiment, stored: manager.Metadata, batches: int
) -> tuple[typing.Any, ...] | None:
    """The weights of a mixture after so many batches; None if the checkpoint has none of them."""
    source = experiment.run.data.source
    before = run_json.select(stored["run"], "data", "source")
    if not isinstance(source, mixture.Mixture) or not run_json.is_object(before):
        return None
    fields = before["fields"]
    if len(fields.get("sources", ())) != len(source.sources):
        return None
    return source.continued(fields["weights"], batches).weights


def _require_no_stream(stored: manager.Metadata) -> None:
    if stored.get("data_positions"):  # as versions wrote that streamed data
        raise failures.BadInput(
            "the checkpoint of this workdir is of a run on streamed data, which this version reads "
            "in another order; go on with the version that wrote it, or start from its weights in "
            "another --workdir: Run.init_from = 'WORKDIR'."
        )
