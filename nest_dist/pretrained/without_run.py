"""A run for weights that come without one, so that they are evaluated as those of a run are."""

import dataclasses
from collections.abc import Sequence

from nest_dist.base import failures
from nest_dist.experiment import run as runs
from nest_dist.pretrained import preprocess, stored

DEFAULTS = "evaluate.gin"


def configured(
    weights: stored.StoredWeights, gin_files: Sequence[str], gin_bindings: Sequence[str]
) -> runs.Run:
    """The run that measures weights on data of one's choice.

    Model and normalization are those of the weights; their transforms serve data that binds none.
    Without a head the objective is not evaluated.

    Args:
        gin_files: with the data, as of `nest-dist train`.
        gin_bindings: likewise; those of `Normalize` win over the weights.
    Raises:
        BadInput: if no data is given, or a binding concerns the model.
    """
    if not gin_files:
        raise failures.BadInput(
            "--workdir is not given, and no data either; give the workdir of a run, or a file of "
            "data such as --gin_file=data/image_folder.gin."
        )
    if of_model := [binding for binding in gin_bindings if binding.startswith("NesT.")]:
        raise failures.BadInput(
            f"--gin_bindings has {of_model[0]!r}, but without a workdir the model is that of the "
            "weights; leave it out."
        )
    run = runs.load([DEFAULTS, *gin_files], gin_bindings)
    of_weights = preprocess.of_model(weights.model, weights.run)
    step = run.step
    if not any(binding.startswith("Normalize.") for binding in gin_bindings):
        inputs = dataclasses.replace(step.inputs, normalize=of_weights.normalize)
        step = dataclasses.replace(step, inputs=inputs)
    evaluations = []
    for evaluation in run.evaluations:
        changed = {}
        for field in ("data", "reference"):
            if (data := getattr(evaluation, field)) is not None and not data.transforms:
                changed[field] = dataclasses.replace(data, transforms=of_weights.transforms)
        if weights.model.num_classes == 0:
            if not evaluation.measures:
                raise failures.BadInput(
                    "the weights have no head (NesT.num_classes is 0), so they predict nothing; "
                    "measure their features, as by --measures=knn,few_shot,linear_probe."
                )
            changed["of_objective"] = False
        evaluations.append(dataclasses.replace(evaluation, **changed))
    model = weights.model.clone(kernels="auto")
    return dataclasses.replace(run, model=model, step=step, evaluations=tuple(evaluations))
