"""Searches the largest batch that the memory of a device holds, for every remat policy."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator

from nest_dist.base import checks, chips, failures
from nest_dist.experiment import audit, build
from nest_dist.experiment import experiment as experiments
from nest_dist.model import encoder
from nest_dist.rehearsal import forecast

# Compiles the step of an experiment and forecasts it; None if the compiler refuses.
Measure = Callable[[experiments.Experiment], forecast.Forecast | None]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One policy with one batch; fields are None if the compiler refused it."""

    remat: str
    images_a_device: float
    fits: bool
    bytes_a_device: int | None = None
    cycles_an_image: float | None = None
    images_per_second_a_chip: float | None = None


def policies(requested: list[str] | None) -> tuple[str, ...]:
    """The requested policies of `NesT.remat`, or all; an unknown one is refused."""
    known = typing.get_args(encoder.Remat)
    for policy in requested or ():
        checks.one_of("--remat", policy, known)
    return tuple(requested or known)


def require_limit(experiment: experiments.Experiment) -> float:
    """Memory of a device in bytes; one of unknown size is refused."""
    kind = experiment.sharding.mesh.devices.flat[0].device_kind
    if (chip := chips.of_kind(kind)) is None:
        generations = dict.fromkeys(each.generation for each in chips.CHIPS.values())
        raise failures.BadInput(
            f"--fit is given for {kind}, whose memory is not in the table of chips; give a "
            f"--topology of {', '.join(generations)}."
        )
    return chip.usable_bytes


def search(
    experiment: experiments.Experiment,
    policies: tuple[str, ...],
    limit: float,
    measure: Measure,
    tell: Callable[[Trial], None],
) -> list[Trial]:
    """All trials, policy by policy.

    Args:
        experiment: the run, with the first batch to try.
        limit: memory of a device in bytes.
        measure: compiles, which may take minutes.
        tell: receives each trial as soon as it has ended.
    """
    trials: list[Trial] = []
    unit = build.batch_unit(experiment.run, experiment.sharding)
    most = len(experiment.training_source) // unit
    fixed = audit.device_bytes(experiment.state_shapes)
    for policy in policies:
        model = experiment.run.model.clone(remat=policy)

        def needed(units: int) -> float:
            run = dataclasses.replace(experiment.run, model=model, global_batch=units * unit)  # noqa: B023
            costs = measure(dataclasses.replace(experiment, run=run)) or {}
            memory = costs.get("memory", {"total": None, "fits": False})
            trial = Trial(
                remat=run.model.remat,
                images_a_device=run.global_batch / experiment.sharding.mesh.size,
                fits=memory["fits"],
                bytes_a_device=memory["total"],
                cycles_an_image=costs.get("cycles_an_image"),
                images_per_second_a_chip=costs.get("images_per_second_a_chip"),
            )
            tell(trial)
            trials.append(trial)
            return math.inf if memory["total"] is None else memory["total"]

        largest(needed, limit, fixed, experiment.run.global_batch // unit, most)
    return trials


def largest(
    needed: Callable[[int], float], limit: float, fixed: float, first: int, most: int
) -> int:
    """The largest number whose need is within the limit, to an eighth of it; 0 if none is.

    Args:
        needed: grows about linearly with its argument, from about `fixed`.
        limit: of the need.
        fixed: need of an empty batch.
        first: number to try.
        most: largest number that makes sense.
    """
    low, high, number = 0, most + 1, min(first, most)
    while high - low > 1 and (high > most or high - low > low / 8):
        need = needed(number)
        if need <= limit:
            low = number
        else:
            high = number
        # In proportion to this need, but between the known limits. The next number is
        # at least a step above `low`: one step ends the search.
        in_proportion = number * (limit - fixed) / max(need - fixed, 1)
        step = max(1, low // 8)
        number = min(max(int(in_proportion), low + step), high - 1)
    return low


def table(trials: list[Trial]) -> Iterator[str]:
    """Lines with the largest batch that fits for every policy."""
    yield (
        f"{'remat':<8}{'images a device':>16}{'GB a device':>13}{'cycles an image':>17}"
        f"{'images/s a chip':>17}"
    )
    for policy in dict.fromkeys(trial.remat for trial in trials):
        of_policy = [trial for trial in trials if trial.remat == policy]
        that_fit = [trial for trial in of_policy if trial.fits]
        if not that_fit:
            smallest = min(trial.images_a_device for trial in of_policy)
            yield f"{policy:<8}not even {smallest:g} images a device fit"
            continue
        best = max(that_fit, key=lambda trial: trial.images_a_device)
        yield (
            f"{policy:<8}{best.images_a_device:>16g}{(best.bytes_a_device or 0) / 1e9:>13.2f}"
            f"{_number(best.cycles_an_image)}{_number(best.images_per_second_a_chip)}"
        )


def _number(value: float | None) -> str:
    """In a column; the compiler for GPUs estimates none."""
    return f"{'-' if value is None else format(value, ',.0f'):>17}"
