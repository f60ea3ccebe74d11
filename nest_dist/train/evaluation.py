"""Exact evaluation of a split: each example counts once, on any number of processes."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.train import average_precision, evaluators, objectives, state
from nest_dist.train import step as steps
from nest_dist.train.evaluators import features

# What a batch gives: metrics that are added up, and arrays [B, ...] that are gathered.
Measured = tuple[objectives.Metrics, dict[str, jax.Array]]


def compute(
    step: steps.TrainStep,
    of_objective: bool,
    measures: Sequence[evaluators.Measure],
    classes: evaluators.Classes,
    params: state.Params,
    batch: objectives.Batch,
) -> Measured:
    """What an evaluation measures of a batch; to be jitted.

    Args:
        step: with model and objective.
        of_objective: whether the objective is evaluated.
        measures: beside it.
        batch: with weights.
    """
    if of_objective:
        metrics = step.evaluate(params, batch)
    else:
        metrics = {"examples": jnp.sum(batch["weight"] > 0, dtype=jnp.int32)}
    if not measures:
        return metrics, {}
    levels = {level for measure in measures for level in measure.levels}
    # The compiler computes a forward pass that both need once.
    with step.sharding.active():
        images = step.inputs.normalize(batch["image"])
        seen = features.see(step.model, params, images, levels)
        gathered = {"label": batch["label"], "weight": batch["weight"]}
        for measure in measures:
            gathered |= measure.observe(seen, batch["label"], classes)
    return metrics, gathered


def evaluate(
    evaluation_step: Callable[[state.Params, objectives.Batch], Measured],
    params: state.Params,
    batches: Iterable[objectives.Batch],
    show: Callable[[objectives.Batch, objectives.Metrics], None] | None = None,
    stop_reached: Callable[[], bool] = lambda: False,
    prefix: str = "eval/",
    keep: Callable[[Mapping[str, np.ndarray]], None] | None = None,
) -> dict[str, float] | None:
    """Means over the split under their TensorBoard names; None if it was interrupted.

    Args:
        evaluation_step: `compute`, jitted.
        batches: global batches with weights; the same number on every process, or fewer where
            `stop_reached` is true then.
        show: receives the first batch and its values.
        stop_reached: whether to stop now; called before each batch and after the last.
        prefix: of the names.
        keep: receives what is gathered of each batch, in their order.
    """
    sums: collections.Counter[str] = collections.Counter()
    scores = average_precision.Scores()

    def add(measured: Measured) -> None:
        metrics, gathered = measured
        _add(sums, metrics)
        scores.add(metrics)
        if keep is not None:
            keep(jax.device_get(gathered))

    # The device computes the next batch while the host adds the values of the last one.
    pending: Measured | None = None
    for batch in batches:
        if stop_reached():
            return None
        measured = evaluation_step(params, batch)
        if pending is not None:
            add(pending)
        elif show is not None:
            show(batch, measured[0])
        pending = measured
    if stop_reached() or pending is None:
        return None
    add(pending)
    examples = sums.pop("examples")
    means = {f"{prefix}{name}": total / examples for name, total in sums.items()}
    ranked = {name.replace("eval/", prefix, 1): it for name, it in scores.metrics().items()}
    return {**means, **ranked, f"{prefix}examples": examples}


class Gathering:
    """Collects the arrays of the examples that count, batch after batch."""

    def __init__(self) -> None:
        self._batches: list[dict[str, np.ndarray]] = []
        self._rows = 0

    def keep(self, gathered: Mapping[str, np.ndarray]) -> None:
        """Appends those of a batch; the rows of weight 0 are left out."""
        arrays = dict(gathered)
        real = arrays.pop("weight") > 0
        arrays["position"] = self._rows + np.arange(len(real))
        self._rows += len(real)
        self._batches.append({name: values[real] for name, values in arrays.items()})

    def examples(self, example_ids: np.ndarray) -> evaluators.Examples:
        """All of them; `example_ids` are those of all rows, [batches * B]."""
        arrays = {
            name: np.concatenate([batch[name] for batch in self._batches])
            for name in self._batches[0]
        }
        labels, positions = arrays.pop("label"), arrays.pop("position")
        return evaluators.Examples(labels, example_ids[positions], arrays)


def _add(sums: collections.Counter[str], measured: objectives.Metrics) -> None:
    summed = measured.keys() - {"predicted", *average_precision.KEPT}
    values = jax.device_get({name: measured[name] for name in sorted(summed)})
    if "loss" in values:
        # One order and 53 bits: the sum of losses does not depend on the number of devices either.
        values["loss"] = values["loss"].sum(dtype=float)
    sums.update({name: value.item() for name, value in values.items()})
