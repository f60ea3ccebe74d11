"""The data of a run, open, and its batches on the devices."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.data import batch, prefetch, sequences, targets
from nest_dist.data.sources import traffic
from nest_dist.experiment import open_evaluation
from nest_dist.experiment import run as runs
from nest_dist.sharding import rules
from nest_dist.train import step

BatchShapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Feed:
    """A run on a mesh, with its data sets open."""

    run: runs.Run
    sharding: rules.ShardingContext
    training_source: batch.Source
    evaluations: tuple[open_evaluation.OpenEvaluation, ...]

    @property
    def evaluation_source(self) -> batch.Source:
        """The data of the first evaluation."""
        return self.evaluations[0].source

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label, in training and wherever the model's classes are judged."""
        return self.training_source.class_names

    @property
    def steps_per_epoch(self) -> float:
        """Not an integer if the batch does not divide the split: a batch may span two epochs."""
        return len(self.training_source) / self.run.global_batch

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows of a global batch that this process loads."""
        B = self.run.global_batch
        return prefetch.rows_of_process(self.sharding.sharding(("batch",), (B,)), B)

    @property
    def labels(self) -> targets.Form:
        """Their form in the batches."""
        return targets.form_of(self.run.step.objective.needs)

    def data_metrics(self, batches: int) -> dict[str, float]:
        """Examples and epochs of each source of a mixture after so many batches of its sequence.

        Also what this process has fetched, and taken from its cache.
        """
        return self._order.metrics(batches) | traffic.metrics()

    @functools.cached_property
    def _order(self) -> sequences.Order:
        run = self.run
        return run.data.order(self.training_source, run.global_batch, run.seed)

    @property
    def labelled(self) -> bool:
        """Whether the objective needs the labels of the data."""
        return bool(self.labels.name)

    def training_batches(
        self, first_step: int, stop_is_next: Callable[[], bool] = lambda: False
    ) -> prefetch.DevicePrefetcher:
        """Global batches on the devices, endless.

        Args:
            first_step: number of the first batch in the data's sequence, from 0: steps done plus
                batches left out.
            stop_is_next: whether a batch that stalls is not needed any more; then these end.
        """
        run, shapes = self.run, self.batch_shapes()[0]
        load = functools.partial(
            run.data.batches, seed=run.seed, first_step=first_step, labels=self.labels
        )
        return self._on_devices(load, self.training_source, shapes, stop_is_next)

    def evaluation_batches(
        self,
        stop_is_next: Callable[[], bool] = lambda: False,
        number: int = 0,
        reference: bool = False,
    ) -> prefetch.DevicePrefetcher:
        """Global batches on the devices: each example of an evaluation once.

        With `reference` they are the examples from which its measures learn.
        """
        opened, shapes = self.evaluations[number], self.evaluation_shapes(number)
        data, source = opened.config.data, opened.source
        if reference:
            assert opened.reference_data is not None
            assert opened.reference is not None
            data, source = opened.reference_data, opened.reference
        labels: targets.Form = targets.OneClass() if opened.config.measures else self.labels
        load = functools.partial(data.batches, labels=labels)
        return self._on_devices(load, source, shapes, stop_is_next)

    def batch_shapes(self) -> tuple[BatchShapes, BatchShapes]:
        """Shapes, types and shardings of a training and of an evaluation batch."""
        B, model, views = self.run.global_batch, self.run.model, self.run.data.views
        image = (*model.geometry().image_sides, model.num_channels)

        def shape(
            axes: rules.Axes, dtype: jax.typing.DTypeLike, *dimensions: int
        ) -> jax.ShapeDtypeStruct:
            global_shape = (B, *dimensions)
            sharding = self.sharding.sharding(axes, global_shape)
            return jax.ShapeDtypeStruct(global_shape, dtype, sharding=sharding)

        axes, needs = step.BATCH_AXES, self.run.step.objective.needs
        labels = self.labels.empty(1, model.num_logits).shape[1:]
        of_all = {name: shape(axes[name], dtype, *labels) for name, dtype in needs.items()}
        training = evaluating = shape(axes["image"], jnp.uint8, *image)
        if views > 1:
            training = shape(step.VIEWS_AXES, jnp.uint8, views, *image)
        weight = shape(axes["weight"], jnp.float32)
        return {"image": training, **of_all}, {"image": evaluating, **of_all, "weight": weight}

    def evaluation_shapes(self, number: int) -> BatchShapes:
        """Those of the batches of an evaluation: measures need labels, whatever the objective."""
        _, shapes = self.batch_shapes()
        if self.evaluations[number].config.measures:
            labels = jax.ShapeDtypeStruct((self.run.global_batch,), jnp.int32)
            sharding = self.sharding.sharding(step.BATCH_AXES["label"], labels.shape)
            shapes = {**shapes, "label": labels.update(sharding=sharding)}
        return shapes

    def _on_devices(
        self,
        load: Callable[..., batch.Batches],
        source: batch.Source,
        shapes: BatchShapes,
        stop_is_next: Callable[[], bool],
    ) -> prefetch.DevicePrefetcher:
        rows, global_batch = self.rows, self.run.global_batch
        local = functools.partial(load, source, rows=rows, global_batch=global_batch)
        to_devices = functools.partial(
            prefetch.to_global_arrays,
            rows=rows,
            global_batch=global_batch,
            shardings={name: leaf.sharding for name, leaf in shapes.items()},
        )
        return prefetch.DevicePrefetcher(local, to_devices, stop_is_next)
