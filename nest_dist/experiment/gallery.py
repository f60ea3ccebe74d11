"""Pages of training and evaluation examples with captions, for TensorBoard."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from nest_dist.data import classes, prefetch
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import pretext_gallery
from nest_dist.telemetry import pictures
from nest_dist.telemetry import report as reports
from nest_dist.train import state
from nest_dist.train.objectives import classification, pretext

# A caption omits classes with a smaller share of a mixed picture.
SMALLEST_SHARE = 0.005


def of_run(
    experiment: experiments.Experiment, report: reports.Report
) -> "Gallery | pretext_gallery.PretextGallery":
    """The gallery of the run's objective."""
    if isinstance(experiment.run.step.objective, pretext.Pretext):
        return pretext_gallery.PretextGallery(experiment, report)
    return Gallery(experiment, report)


class Gallery(pretext_gallery.FirstBatch):
    """All processes compute the pages, the primary one records them."""

    def __init__(self, experiment: experiments.Experiment, report: reports.Report) -> None:
        """Compiles the functions that replicate a few examples."""
        run, step = experiment.run, experiment.step
        H, W = run.model.geometry().image_sides
        count = min(pictures.room(H, W), run.global_batch)
        self._classes = experiment.class_names
        self._report = report

        def model_inputs(
            steps_done: jax.Array, batch: prefetch.DeviceBatch
        ) -> tuple[jax.Array, jax.Array]:
            shares = step.objective.shares(batch, run.model.num_logits)
            images, shares = step.model_inputs(steps_done, batch["image"], shares)
            return step.inputs.normalize.inverted(images[:count]), shares[:count]

        def examples(batch: prefetch.DeviceBatch) -> prefetch.DeviceBatch:
            shares = step.objective.shares(batch, run.model.num_logits)
            shown = {"image": batch["image"], "weight": batch["weight"], "shares": shares}
            return {name: values[:count] for name, values in shown.items()}

        training, evaluating = experiment.batch_shapes()
        steps_done = jax.ShapeDtypeStruct((), np.int32)
        replicated = experiment.sharding.replicated()
        inputs = jax.jit(model_inputs, out_shardings=replicated)
        self._inputs = inputs.lower(steps_done, training).compile()
        self._examples = jax.jit(examples, out_shardings=replicated).lower(evaluating).compile()

    def show_inputs(self, batch: prefetch.DeviceBatch, steps_done: int) -> None:
        images, shares = jax.device_get(self._inputs(np.int32(steps_done), batch))
        captions = [pictures.Caption([*label_text(row, self._classes), ""][:2]) for row in shares]
        self._report.page("train/images", images, captions, steps_done + 1)

    def evaluation(
        self,
        step: int,
        _: state.Params,
        prefix: str,
        batch: prefetch.DeviceBatch,
        measured: Mapping[str, jax.Array],
    ) -> None:
        """Shows examples of an evaluation batch with their true and predicted classes."""
        examples = jax.device_get(self._examples(batch))
        real = examples["weight"] > 0
        if not real.any():
            return
        predicted = np.asarray(measured["predicted"])[: len(real)]
        captions = [
            judged(np.flatnonzero(shares), guess, self._classes)
            for shares, guess in zip(examples["shares"][real], predicted[real], strict=True)
        ]
        name = f"{prefix}images"
        self._report.page(name, examples["image"][real], captions, step)


def label_text(shares: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """The one or two classes of a picture with the largest shares, such as "70% cat"."""
    largest = [label for label in np.argsort(-shares)[:2] if shares[label] >= SMALLEST_SHARE]
    if len(largest) == 1:
        return [class_names[largest[0]]]
    return [f"{shares[label]:.0%} {class_names[label]}" for label in largest]


def judged(
    labels: Sequence[int] | np.ndarray, guess: int, class_names: Sequence[str]
) -> pictures.Caption:
    """The true classes and the predicted one of a picture; NaN where the model predicts none."""
    name = "NaN" if guess == classification.NO_CLASS else class_names[guess]
    true = classes.few([class_names[label] for label in labels]) or "none"
    return pictures.Caption((f"true: {true}", f"pred: {name}"), guess in labels)
