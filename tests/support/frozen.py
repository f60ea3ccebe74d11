"""The training step of a run whose backbone is frozen, and that of the whole model."""

import typing

import jax

from nest_dist.experiment import build
from nest_dist.experiment import run as runs

BACKBONE = "('patch_embedding/*', 'levels_*', 'aggregations_*', 'norm/*')"
# Bindings by what is trained.
STEPS = {
    "all": (),
    "head alone": (f"ParameterRules.frozen = {BACKBONE}",),
}


def compiled(bindings: typing.Sequence[str]) -> tuple[typing.Any, typing.Any, typing.Any]:
    """Step, state and batch of the quick start with some bindings, on one device."""
    run = runs.load(["runs/quickstart.gin"], ["Run.global_batch = 64", *bindings])
    experiment = build.build(run, jax.devices()[:1])
    batches = experiment.training_batches(0)
    batch = next(batches)
    batches.close()
    return experiment.compiled_train_step(), experiment.init_state(), batch


def temporary_bytes(step: typing.Any) -> int:
    """Memory of a compiled step beside its inputs and outputs."""
    return int(step.memory_analysis().temp_size_in_bytes)


def flops(step: typing.Any) -> float:
    """As the compiler counts them."""
    return float(step.cost_analysis()["flops"])
