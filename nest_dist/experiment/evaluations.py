"""Makes an evaluation of a run: the devices see each example, the primary process concludes."""

import contextlib
import functools
import typing
from collections.abc import Callable, Mapping

import numpy as np

from nest_dist.cluster import processes
from nest_dist.data import batch, index
from nest_dist.experiment import experiment as experiments
from nest_dist.train import evaluation, evaluators, objectives
from nest_dist.train import state as states

Step = Callable[[states.Params, objectives.Batch], evaluation.Measured]


class Outcome(typing.NamedTuple):
    """What an evaluation says."""

    metrics: Mapping[str, float]  # under their names in TensorBoard, on every process
    notes: tuple[str, ...] = ()  # lines for the user, likewise
    confused: evaluators.Confused | None = None  # of the primary process alone, if it was measured


def make(
    experiment: experiments.Experiment,
    number: int,
    step: Step,
    params: states.Params,
    show: Callable[[objectives.Batch, objectives.Metrics], None] | None = None,
    stop_is_next: Callable[[], bool] = lambda: False,
    stop_reached: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """The outcome of an evaluation; None if it was interrupted.

    Args:
        experiment: with the classes in the order of the parameters.
        step: `Experiment.compiled_evaluation_step` of this number.
        show: receives the first batch and its values.
        stop_is_next: whether a batch that stalls is not needed any more.
        stop_reached: whether to stop now; called before each batch.
    """
    opened = experiment.evaluations[number]
    config = opened.config
    gathered, learnt = evaluation.Gathering(), evaluation.Gathering()
    # Only the primary process concludes.
    keeps = bool(config.measures) and processes.is_primary()
    with contextlib.closing(experiment.evaluation_batches(stop_is_next, number)) as batches:
        keep = gathered.keep if keeps else None
        metrics = evaluation.evaluate(
            step, params, batches, show, stop_reached, config.prefix, keep
        )
    if metrics is None or not config.measures:
        return None if metrics is None else Outcome(metrics)
    if opened.reference is not None:
        with contextlib.closing(
            experiment.evaluation_batches(stop_is_next, number, True)
        ) as batches:
            keep = learnt.keep if keeps else None
            if evaluation.evaluate(step, params, batches, None, stop_reached, "", keep) is None:
                return None
    confused: list[evaluators.Confused] = []

    def conclude() -> tuple[dict[str, float], list[str]]:
        ids = functools.partial(_example_ids, global_batch=experiment.run.global_batch)
        examples = gathered.examples(ids(opened.source))
        reference = None
        if opened.reference is not None:
            reference = learnt.examples(ids(opened.reference))
        said: dict[str, float] = {}
        notes: list[str] = []
        for measure in config.measures:
            finding = measure.conclude(evaluators.Gathered(examples, reference, opened.classes))
            said |= {f"{config.prefix}{name}": it for name, it in finding.metrics.items()}
            notes += finding.notes
            confused.extend([finding.confused] if finding.confused else [])
        return said, notes

    said, notes = processes.broadcast(conclude)
    return Outcome({**metrics, **said}, tuple(notes), confused[0] if confused else None)


def _example_ids(source: batch.Source, global_batch: int) -> np.ndarray:
    """The id of the example in each row of all batches of a data set, [batches * B]."""
    order = index.order(source.row_groups, len(source), global_batch, None)
    rows = np.arange(global_batch)
    return np.concatenate([order.at(step, rows).examples for step in range(order.steps())])
