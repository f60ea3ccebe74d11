"""Exact evaluation of a split: each example counts once, on any number of processes."""

import collections
from collections.abc import Callable, Iterable

import jax

from nest_dist.train import average_precision, objectives, state


def evaluate(
    evaluation_step: Callable[[state.Params, objectives.Batch], objectives.Metrics],
    params: state.Params,
    batches: Iterable[objectives.Batch],
    show: Callable[[objectives.Batch, objectives.Metrics], None] | None = None,
    stop_reached: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over the split under their TensorBoard names; None if it was interrupted.

    Args:
        evaluation_step: `TrainStep.evaluate`, jitted.
        params: of the model.
        batches: global batches with weights; the same number on every process, or fewer where
            `stop_reached` is true then.
        show: receives the first batch and its values.
        stop_reached: whether to stop now; called before each batch and after the last.
    """
    sums: collections.Counter[str] = collections.Counter()
    scores = average_precision.Scores()
    # The device computes the next batch while the host adds the values of the last one.
    pending: objectives.Metrics | None = None
    for batch in batches:
        if stop_reached():
            return None
        measured = evaluation_step(params, batch)
        if pending is not None:
            _add(sums, pending)
            scores.add(pending)
        elif show is not None:
            show(batch, measured)
        pending = measured
    if stop_reached() or pending is None:
        return None
    _add(sums, pending)
    scores.add(pending)
    examples = sums.pop("examples")
    means = {f"eval/{name}": total / examples for name, total in sums.items()}
    return {**means, **scores.metrics(), "eval/examples": examples}


def _add(sums: collections.Counter[str], measured: objectives.Metrics) -> None:
    summed = measured.keys() - {"predicted", *average_precision.KEPT}
    values = jax.device_get({name: measured[name] for name in sorted(summed)})
    # One order and 53 bits: the sum of losses does not depend on the number of devices either.
    values["loss"] = values["loss"].sum(dtype=float)
    sums.update({name: value.item() for name, value in values.items()})
