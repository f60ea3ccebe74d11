"""Pages for TensorBoard of a run without labels: what its objective sees of pictures."""

import abc
import functools
import typing
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.data import prefetch
from nest_dist.experiment import experiment as experiments
from nest_dist.telemetry import pictures
from nest_dist.telemetry import report as reports
from nest_dist.train import state
from nest_dist.train.objectives import pretext

# Side by side, of one picture.
MOST_IMAGES = 3


class FirstBatch(abc.ABC):
    """Shows the first of the batches for training."""

    def training(
        self, batches: Iterator[prefetch.DeviceBatch], steps_done: int
    ) -> Iterator[prefetch.DeviceBatch]:
        """Yields the batches unchanged; the first one is shown as the model's inputs."""
        first = next(batches, None)
        if first is None:
            return
        self.show_inputs(first, steps_done)
        yield first
        yield from batches

    @abc.abstractmethod
    def show_inputs(self, batch: prefetch.DeviceBatch, steps_done: int) -> None:
        """Shows what the model sees of a batch after so many steps."""


class PretextGallery(FirstBatch):
    """As `Gallery`: all processes compute the pages, the primary one records them."""

    def __init__(self, experiment: experiments.Experiment, report: reports.Report) -> None:
        """Compiles the functions that replicate a few examples."""
        run, step = experiment.run, experiment.step
        H, W = run.model.geometry().image_sides
        count = min(pictures.room(H, MOST_IMAGES * W), run.global_batch)
        objective = typing.cast(pretext.Pretext, step.objective)
        self._report = report

        def inputs(steps_done: jax.Array, batch: prefetch.DeviceBatch) -> jax.Array:
            views = run.data.views
            images = pretext.as_examples(batch["image"])
            inputs, _ = step.model_inputs(steps_done, images, jnp.zeros((len(images), 0)))
            shown = step.inputs.normalize.inverted(inputs[: count * views])
            of_pictures = shown.reshape(count, views, *shown.shape[1:])
            return jnp.concatenate([of_pictures[:, view] for view in range(views)], axis=2)

        def evaluated(params: state.Params, batch: prefetch.DeviceBatch) -> jax.Array:
            images = step.inputs.normalize(batch["image"])
            with experiment.sharding.active():
                network = pretext.Network(step.model, params)
                seen = objective.pictures(network, images)
            return step.inputs.normalize.inverted(seen[:count])

        training, evaluating = experiment.batch_shapes()
        steps_done = jax.ShapeDtypeStruct((), np.int32)
        compiled = functools.partial(jax.jit, out_shardings=experiment.sharding.replicated())
        self._inputs = compiled(inputs).lower(steps_done, training).compile()
        params = experiment.state_shapes.evaluated
        self._evaluated = compiled(evaluated).lower(params, evaluating).compile()

    def show_inputs(self, batch: prefetch.DeviceBatch, steps_done: int) -> None:
        """Shows all views of its pictures."""
        self._page("train/images", self._inputs(np.int32(steps_done), batch), steps_done + 1)

    def evaluation(
        self,
        step: int,
        params: state.Params,
        prefix: str,
        batch: prefetch.DeviceBatch,
        _: Mapping[str, jax.Array],
    ) -> None:
        """Shows what the objective makes of examples of an evaluation batch."""
        self._page(f"{prefix}images", self._evaluated(params, batch), step)

    def _page(self, name: str, images: jax.Array, step: int) -> None:
        shown = jax.device_get(images)
        self._report.page(name, shown, [pictures.Caption(())] * len(shown), step)
