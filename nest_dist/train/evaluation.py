"""Counting over a whole split, exactly: each example once, on any number of processes."""

from collections.abc import Callable, Iterable, Mapping

import jax

from nest_dist.train import state, step


def evaluate(
    evaluation_step: Callable[[state.Params, step.DeviceBatch], step.Metrics],
    params: state.Params,
    batches: Iterable[step.DeviceBatch],
    show: Callable[[step.DeviceBatch, step.Metrics], None] | None = None,
    stop_reached: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over the split under their TensorBoard names; None if it did not come to an end.

    Args:
        evaluation_step: as of `step.evaluation_step`, jitted.
        params: what is evaluated.
        batches: global batches with weights; the same number on every process.
        show: is given the first batch and what was counted in it.
        stop_reached: called after each batch; whether to leave off.
    """
    sums = {"examples": 0, "blank": 0, "loss": 0.0, "top_1": 0, "top_5": 0}
    # The device works on the next batch while the host adds up the last one.
    pending: step.Metrics | None = None
    for batch in batches:
        counted = evaluation_step(params, batch)
        if show is not None and pending is None:
            show(batch, counted)
        sums = _added(sums, pending)
        pending = counted
        if stop_reached():
            return None
    sums = _added(sums, pending)
    if sums["blank"]:
        return None  # a process had no data and took part with an empty batch
    examples = sums["examples"]
    return {
        "eval/loss": sums["loss"] / examples,
        "eval/top_1": sums["top_1"] / examples,
        "eval/top_5": sums["top_5"] / examples,
        "eval/examples": examples,
    }


def _added(sums: Mapping[str, float], counted: step.Metrics | None) -> dict[str, float]:
    if counted is None:
        return dict(sums)
    fetched = jax.device_get(counted)
    # In one order and with 53 bits, so that losses, too, add up alike on any number of devices.
    fetched["loss"] = fetched["loss"].sum(dtype=float)
    return {name: total + fetched[name].item() for name, total in sums.items()}
