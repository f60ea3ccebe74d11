"""Does the steps of a finished or running run again, to look into one of them.

The batch of a step is a pure function of configuration, seed and step. So the newest checkpoint
before a step and the steps after it give that step again: on the topology that wrote the checkpoint
to the bit, on others within rounding.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures
from nest_dist.checkpointing import reader
from nest_dist.data import prefetch
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import resume
from nest_dist.telemetry import pictures
from nest_dist.train import metrics_log
from nest_dist.train import state as states
from nest_dist.train.objectives import pretext

# Of the metadata of a checkpoint: where they differ, bits may differ.
TOPOLOGY = ("devices", "mesh", "processes", "versions", "data_fingerprint")


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps whose means are one line of `metrics.jsonl`."""

    first: int  # step
    last: int  # step, which the line has
    logged: Mapping[str, float]  # the line


@dataclasses.dataclass(frozen=True)
class Replay:
    """One step, done again."""

    step: int  # that was examined
    restored: int  # the checkpoint from which the steps were done; 0 for the beginning of the run
    window: Window | None  # that the step belongs to; None if the log has none
    means: Mapping[str, float]  # of the window, of metrics of the step; empty without a window
    # From the topology that wrote the checkpoint; empty if bits are the same
    differences: tuple[str, ...]
    class_names: tuple[str, ...]
    losses: np.ndarray  # of each row of the batch, [B]
    shares: np.ndarray  # of each class in each row before mixing, [B, classes]
    rows: np.ndarray  # of the worst examples, the worst first
    keys: tuple[str, ...]  # of these examples
    images: np.ndarray  # what the model saw of them, uint8 [N, H, W, C]
    gradient_norms: Mapping[str, float]  # by module


def replay(
    experiment: experiments.Experiment,
    checkpoints: reader.Reader,
    step: int,
    windows: Sequence[Window],
    first_state: Callable[[experiments.Experiment], states.TrainState],
) -> Replay:
    """Does the steps from the newest checkpoint before `step` again, to the end of its window.

    Raises:
        BadInput: if the run has not come to this step.
    """
    window = next((each for each in windows if each.first <= step <= each.last), None)
    reached = max([*checkpoints.steps(), *(each.last for each in windows)], default=0)
    if not 1 <= step <= reached:
        raise failures.BadInput(f"--step is {step}; the run has done the steps 1 to {reached}.")
    first = window.first if window else step
    restored = max((each for each in checkpoints.steps() if each < first), default=0)
    left_out = left_out_at(checkpoints, restored)
    differences: tuple[str, ...] = ()
    if known := [restored] if restored else checkpoints.steps()[:1]:
        metadata = checkpoints.metadata(known[0])
        experiment = experiment.in_order(metadata["class_names"])
        differences = _differences(metadata, experiment)
    if restored:
        state = checkpoints.restore(restored, experiment.state_shapes)
    else:
        state = first_state(experiment)
    train = experiment.taught(experiment.compiled_train_step())
    batches = experiment.training_batches(restored + left_out)
    history: list[dict[str, float]] = []
    try:
        for at in range(restored + 1, (window.last if window else step) + 1):
            batch = next(batches)
            if at == step:
                examined = _examine(experiment, state, batch, step, left_out)
            state, metrics = train(state, batch)
            if window and window.first <= at:
                scalars = {name: value for name, value in metrics.items() if not value.ndim}
                history.append({n: float(v) for n, v in jax.device_get(scalars).items()})
    finally:
        batches.close()
    means = _means([each for each in history if _is_finite(each)])
    return Replay(step, restored, window, means, differences, **examined)


def class_text(result: Replay, row: int) -> str:
    """The names of the classes of a row."""
    names = [result.class_names[label] for label in np.flatnonzero(result.shares[row])]
    return ", ".join(names) or "none"


def windows_of(lines: Sequence[Mapping[str, float]]) -> list[Window]:
    """The windows of a run, from the lines of its metrics in the order of their steps."""
    found: list[Window] = []
    for line in lines:
        if "train/loss" in line:
            first = found[-1].last + 1 if found else 1
            found.append(Window(first, int(line["step"]), line))
    return found


def compared(result: Replay) -> dict[str, tuple[float, float]]:
    """The metrics of the step in the window: (logged, done again)."""
    if result.window is None:
        return {}
    logged = result.window.logged
    return {
        name: (logged[name], value)
        for name, value in result.means.items()
        if name in logged and name != "train/skipped"
    }


def left_out_at(checkpoints: reader.Reader, restored: int) -> int:
    """Batches that rewinds have left out before the steps that follow a checkpoint.

    A run that went back to this checkpoint left out more than the checkpoint says; the next one
    tells how many. A step means the attempt that was kept.
    """
    later = [each for each in checkpoints.steps() if each > restored]
    source = later[0] if later else restored
    return int(checkpoints.metadata(source)["batches_left_out"]) if source else 0


def steps_with(
    experiment: experiments.Experiment, checkpoints: reader.Reader, example_id: int, last: int
) -> list[int]:
    """The steps up to `last` that saw an example.

    Args:
        checkpoints: of its workdir, which tell the batches that were left out.
    Raises:
        BadInput: if the data are others than those of the run.
    """
    run, source = experiment.run, experiment.training_source
    saved = checkpoints.steps()
    before = checkpoints.metadata(saved[-1])["data_fingerprint"] if saved else source.fingerprint
    if before != source.fingerprint:
        raise failures.BadInput(
            f"the fingerprint of the training data is {source.fingerprint}, the steps of this run "
            f"saw data of {before}; give the same data."
        )
    left_out = {at: left_out_at(checkpoints, at) for at in (0, *checkpoints.steps())}
    found = []
    order, rows = run.data.order(source, run.global_batch, run.seed), np.arange(run.global_batch)
    for step in range(1, last + 1):
        restored = max(at for at in left_out if at < step)
        if example_id in order.at(step - 1 + left_out[restored], rows).examples:
            found.append(step)
    return found


def example_id(experiment: experiments.Experiment, key: str) -> int:
    """The index of the example with a key, or with a number where none has that key.

    Raises:
        BadInput: if there is no such example.
    """
    source = experiment.training_source
    has_keys = len(source) > 0 and "key" in source[0]
    for index in range(len(source) if has_keys else 0):
        if source[index].get("key") == key:
            return index
    number = key.removeprefix("example ")
    if number.isdecimal() and int(number) < len(source):
        return int(number)
    some = ", ".join(_key(experiment, index) for index in range(min(3, len(source))))
    raise failures.BadInput(
        f"--example is {key!r}, which no training example has; keys are such as {some}."
    )


def _examine(
    experiment: experiments.Experiment,
    state: states.TrainState,
    batch: prefetch.DeviceBatch,
    step: int,
    left_out: int,
) -> dict[str, typing.Any]:
    """The fields of `Replay` from `class_names` on."""
    run, replicated = experiment.run, experiment.sharding.replicated()
    examine = experiment.taught(jax.jit(experiment.step.examine, out_shardings=replicated))
    losses, norms = jax.device_get(examine(state, batch))
    H, W = run.model.geometry().image_sides
    # NaN is the worst of all.
    order = np.argsort(-np.where(np.isnan(losses), np.inf, losses), kind="stable")
    rows = order[: pictures.room(H, W)]

    def seen(batch: prefetch.DeviceBatch, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        views = run.data.views
        shares = run.step.objective.shares(batch, run.model.num_logits)
        images, _ = experiment.step.model_inputs(
            jnp.int32(step - 1), pretext.as_examples(batch["image"]), shares.repeat(views, axis=0)
        )
        return run.step.inputs.normalize.inverted(images[views * rows]), shares

    images, shares = jax.device_get(jax.jit(seen, out_shardings=replicated)(batch, rows))
    ids = run.data.example_ids(
        experiment.training_source,
        seed=run.seed,
        global_batch=run.global_batch,
        step=step - 1 + left_out,
    )
    return {
        "class_names": experiment.class_names,
        "losses": losses,
        "shares": shares,
        "rows": rows,
        "keys": tuple(_key(experiment, int(ids[row])) for row in rows),
        "images": images,
        "gradient_norms": {name: float(norm) for name, norm in norms.items()},
    }


def _key(experiment: experiments.Experiment, example_id: int) -> str:
    return str(experiment.training_source[example_id].get("key", f"example {example_id}"))


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """As a run computes the means of a window."""
    names = steps[0] if steps else ()
    return {name: sum(metrics[name] for metrics in steps) / len(steps) for name in names}


def _is_finite(metrics: Mapping[str, float]) -> bool:
    """Whether a run counts this step in a mean; others were skipped."""
    return all(math.isfinite(metrics.get(name, 0)) for name in metrics_log.WATCHED)


def _differences(
    metadata: Mapping[str, typing.Any], experiment: experiments.Experiment
) -> tuple[str, ...]:
    here = resume.metadata(experiment, 0)
    return tuple(
        f"{name} {metadata[name]} then, {here[name]} now"
        for name in TOPOLOGY
        if name in metadata and metadata[name] != here[name]
    )
