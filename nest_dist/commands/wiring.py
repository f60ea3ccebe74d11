"""From a `Run` to the functions that are compiled: the same for every command."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import checks, failures, names
from nest_dist.checkpointing import states
from nest_dist.commands import audit, compatibility
from nest_dist.commands import run as runs
from nest_dist.data import assembly, batch, pipeline
from nest_dist.model import axes, on_cpu
from nest_dist.parallel import reproducible, rules
from nest_dist.train import guard, loop, state, step

DeviceBatch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Wiring:
    """A run on a mesh, with its data sets open."""

    run: runs.Run
    layout: rules.Layout
    training_source: batch.Source
    evaluation_source: batch.Source

    @functools.cached_property
    def cadence(self) -> loop.Cadence:
        """Epochs in steps."""
        return loop.Cadence(
            num_steps=self._steps(self.run.num_epochs),
            log_every=self.run.log_every_steps,
            evaluate_every=self._steps(self.run.evaluate_every_epochs),
            save_every=self._steps(self.run.save_every_epochs),
        )

    @property
    def steps_per_epoch(self) -> float:
        """A fraction where the batch does not divide the split: epochs follow without a gap."""
        return len(self.training_source) / self.run.global_batch

    @functools.cached_property
    def shapes(self) -> typing.Any:
        """Shapes, types and shardings of the state."""
        shapes = jax.eval_shape(self._initialiser)
        shardings = rules.tree_shardings(self.layout, shapes, self.parameter_axes)
        return states.abstract(shapes, shardings)

    def audit(self) -> list[audit.Entry]:
        """Where each parameter lies and how it is treated, checked."""
        return audit.entries(self.layout, self.shapes.params, self.parameter_axes, axes.NOT_DECAYED)

    @property
    def parameter_axes(self) -> Mapping[str, rules.Axes]:
        """The logical axes of this model's parameters, by name pattern."""
        return axes.of_model(self.run.model.num_hierarchies, self.run.model.num_classes)

    def init_state(self) -> state.TrainState:
        """The first state, each device making its own part."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        return jax.jit(self._initialiser, out_shardings=shardings)()

    def state_from(self, params: Mapping[str, np.ndarray]) -> state.TrainState:
        """The state that begins with these parameters, given flat and whole on every process."""

        def place(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            return jax.make_array_from_callback(
                leaf.shape, leaf.sharding, lambda index: params[name][index]
            )

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        begin = functools.partial(state.first, self._rule, self.run.ema_decay is not None)
        placed = names.map_named(place, self.shapes.params)
        return jax.jit(begin, out_shardings=shardings)(placed)

    def train_step(self) -> jax.stages.Wrapped:
        """The jitted training step; the state given to it is consumed.

        Raises:
            BadInput: if the mesh does not allow the reduction that is asked for.
        """
        function = step.train_step(
            lambda params, images, key, rows: self.run.model.apply(
                {"params": params}, images, train=True, rows=rows, rngs={"dropout": key}
            ),
            self.run.inputs(),
            self._rule,
            self._schedule,
            self.layout,
            num_classes=self.run.model.num_classes,
            label_smoothing=self.run.label_smoothing,
            seed=self.run.seed,
            microbatches=self.run.microbatches,
            together=compatibility.together(self.run),
            reduction=self._reduction,
            ema_decay=self.run.ema_decay,
            histograms_every=self.run.histograms_every_steps,
        )
        guarded = guard.guarded(function, self.run.not_finite.policy == "skip")
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.shapes)
        return jax.jit(
            guarded,
            donate_argnums=0,
            out_shardings=(shardings, self.layout.replicated()),
            compiler_options=self._compiler_options,
        )

    def evaluation_step(self) -> jax.stages.Wrapped:
        """The jitted evaluation step."""
        function = step.evaluation_step(
            lambda params, images: self.run.model.apply({"params": params}, images),
            self.run.pixels,
            self.layout,
        )
        return jax.jit(
            function,
            out_shardings=self.layout.replicated(),
            compiler_options=self._compiler_options,
        )

    def shown_inputs(self, count: int) -> jax.stages.Wrapped:
        """Jitted: what the model is given of the first `count` examples in a training step.

        (steps before it, batch) -> uint8 images and the shares of the classes, on every process.
        """
        show = step.shown_inputs(
            self.run.inputs(), num_classes=self.run.model.num_classes, seed=self.run.seed
        )

        def first(number: jax.Array, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
            images, shares = show(number, batch)
            return self.run.pixels.inverted(images[:count]), shares[:count]

        return jax.jit(first, out_shardings=self.layout.replicated())

    def first_examples(self, count: int) -> jax.stages.Wrapped:
        """Jitted: the first `count` examples of a batch, on every process."""
        return jax.jit(
            lambda batch: {name: values[:count] for name, values in batch.items()},
            out_shardings=self.layout.replicated(),
        )

    def training_batches(
        self,
        first_step: int,
        positions: batch.Positions | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> assembly.Ahead:
        """Global batches on the devices, from the one that follows `first_step` steps.

        Args:
            first_step: steps already done.
            positions: after them, if the data is a stream: of all virtual shards.
            stopping: whether a stop was asked: then empty batches take the place of missing ones.
        """
        local = self.run.training_data.batches(
            self.training_source,
            seed=self.run.seed,
            global_batch=self.run.global_batch,
            rows=self._rows,
            first_step=first_step,
            positions=positions,
        )
        return self._on_devices(local, self.batch_shapes()[0], stopping)

    def evaluation_batches(self, stopping: Callable[[], bool] = lambda: False) -> assembly.Ahead:
        """Global batches on the devices that hold each evaluation example once."""
        local = self.run.evaluation_data.batches(
            self.evaluation_source, global_batch=self.run.global_batch, rows=self._rows
        )
        return self._on_devices(local, self.batch_shapes()[1], stopping)

    def batch_shapes(self) -> tuple[typing.Any, typing.Any]:
        """Shapes, types and shardings of a training and of an evaluation batch."""
        H, W = self.run.model.geometry().image_sides
        B, C = self.run.global_batch, self.run.model.num_channels

        def shape(name: str, dtype: typing.Any, *dimensions: int) -> jax.ShapeDtypeStruct:
            whole = (B, *dimensions)
            sharding = self.layout.sharding(step.BATCH_AXES[name], whole)
            return jax.ShapeDtypeStruct(whole, dtype, sharding=sharding)

        training = {"image": shape("image", jnp.uint8, H, W, C), "label": shape("label", jnp.int32)}
        return training, {**training, "weight": shape("weight", jnp.float32)}

    def _on_devices(
        self, local: batch.Batches, shapes: typing.Any, stopping: Callable[[], bool]
    ) -> assembly.Ahead:
        """With `stopping`, a batch without data has no weight, and no class as its labels."""
        blank = {
            name: np.full((len(self._rows), *leaf.shape[1:]), 0, leaf.dtype)
            for name, leaf in shapes.items()
        }
        blank["label"] += guard.NO_DATA
        place = functools.partial(
            assembly.assemble,
            rows=self._rows,
            shardings={name: leaf.sharding for name, leaf in shapes.items()},
            global_batch=self.run.global_batch,
        )
        return assembly.Ahead(local, place, blank, stopping=stopping)

    @property
    def _compiler_options(self) -> dict[str, str]:
        on_a_cpu = self.layout.mesh.devices.flat[0].platform == "cpu"
        return on_cpu.compiler_options() if on_a_cpu else {}

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        label = self.batch_shapes()[0]["label"]
        return assembly.rows_of_process(label.sharding, self.run.global_batch)

    @functools.cached_property
    def _schedule(self) -> Callable[..., typing.Any]:
        return self.run.optimizer.schedule(self.cadence.num_steps, self.steps_per_epoch)

    @functools.cached_property
    def _rule(self) -> state.UpdateRule:
        return self.run.optimizer.build(self._schedule, axes.NOT_DECAYED)

    @property
    def _reduction(self) -> reproducible.Reduction | None:
        if not self.run.reproducible_reduction:
            return None
        found = reproducible.Reduction(self.layout, self.run.reduction_shards)
        factors = f"{found.shards} Run.reduction_shards", f"{self.run.microbatches} microbatches"
        checks.divides(
            "Run.global_batch",
            self.run.global_batch,
            found.shards * self.run.microbatches * compatibility.together(self.run),
            " x ".join((*factors, f"{compatibility.together(self.run)} that stay together")),
            "set it to one of them, or lower Run.reduction_shards",
        )
        return found

    @functools.cached_property
    def _initialiser(self) -> Callable[[], state.TrainState]:
        model = self.run.model
        H, W = model.geometry().image_sides
        image = jnp.zeros((1, H, W, model.num_channels))

        def init_params(key: jax.Array) -> state.Params:
            return model.init({"params": key}, image)["params"]

        with_ema = self.run.ema_decay is not None
        return state.initialiser(init_params, self._rule, self.run.seed, with_ema)

    def _steps(self, epochs: float) -> int:
        return max(1, round(epochs * self.steps_per_epoch))


def wire(
    run: runs.Run,
    devices: Sequence[typing.Any] | None = None,
    absent: batch.Source | None = None,
) -> Wiring:
    """Opens the data sets, builds the mesh and checks that the parts fit together.

    Args:
        run: what is configured.
        devices: of the mesh; by default all of all processes.
        absent: stands for the data sets where they are not here, and is all that is asked then.
    Raises:
        BadInput: if batch, mesh, model and data do not fit.
    """
    layout = rules.Layout(run.mesh.build(devices), run.rules)
    compatibility.require_fitting_mesh(run, layout)
    if absent is None:
        opened = run.training_data.source.open(), run.evaluation_data.source.open()
        wiring = Wiring(run, layout, *opened)
        compatibility.require_fitting_data(run, *opened)
        if devices is None:
            for source in opened:
                pipeline.require_dealable(source, run.global_batch, wiring._rows)
    else:
        wiring = Wiring(run, layout, absent, absent)
    if (examples := len(wiring.training_source)) < run.global_batch:
        raise failures.BadInput(
            f"the training split has {examples} examples, fewer than one batch of "
            f"{run.global_batch}; lower Run.global_batch."
        )
    run.keep.require_evaluated(wiring.cadence.save_every, wiring.cadence.evaluate_every)
    return wiring
