"""A run on a mesh, with its data sets open: state, jitted steps, batches. Every command uses it."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from nest_dist.base import checks, lengths, tree_paths
from nest_dist.config import run_json
from nest_dist.data import classes
from nest_dist.experiment import audit, feed, teachers
from nest_dist.model import flops, fused, on_cpu, on_gpu, parameters
from nest_dist.sharding import ordered_mean, rules
from nest_dist.telemetry import histograms
from nest_dist.train import evaluation, loop, objectives, parameter_rules, state, step
from nest_dist.train.objectives import class_weights, pretext


@dataclasses.dataclass(frozen=True)
class Experiment(feed.Feed):
    """A run on a mesh, with its data sets open, its steps and its state."""

    teacher: teachers.OnMesh | None = None

    @functools.cached_property
    def document(self) -> run_json.Json:
        """The run as JSON."""
        return run_json.dump(self.run)

    @property
    def judges_classes(self) -> bool:
        """Whether an evaluation judges the classes of the model."""
        return any(each.judges_classes for each in self.evaluations)

    def in_order(self, class_names: Sequence[str]) -> "Experiment":
        """The experiment with the labels of a checkpoint."""
        if not self.labelled:
            return self
        whose = "the checkpoint of this workdir"
        remedy = "give data with these classes, or start anew in another --workdir"
        training = classes.in_order(self.training_source, class_names, whose, remedy)
        evaluations = tuple(each.in_order(class_names) for each in self.evaluations)
        if training is self.training_source and evaluations == self.evaluations:
            return self
        return dataclasses.replace(self, training_source=training, evaluations=evaluations)

    def with_weights(self, weights: tuple[typing.Any, ...] | None) -> "Experiment":
        """The experiment with the weights of a mixture that a resumed run keeps, if any."""
        if weights is None:
            return self
        source = dataclasses.replace(typing.cast(typing.Any, self.run.data.source), weights=weights)
        data = dataclasses.replace(self.run.data, source=source)
        return dataclasses.replace(self, run=dataclasses.replace(self.run, data=data))

    @functools.cached_property
    def intervals(self) -> loop.Intervals:
        """The run's length and cadence in steps."""
        num_steps = self._steps(self.run.num_epochs)
        return loop.Intervals(
            num_steps=num_steps,
            log_every=self.run.cadence.log_every_steps,
            evaluate_every=tuple(
                self._steps(each.every_epochs, num_steps) for each in self.run.evaluations
            ),
            save_every=self._steps(self.run.cadence.save_every_epochs, num_steps),
        )

    def missing_evaluations(self, step: int, recorded: Mapping[str, float]) -> tuple[int, ...]:
        """The numbers of the evaluations that follow a step and are not among recorded metrics."""
        due, examples = self.intervals.evaluations(step), self.evaluation_marks
        return tuple(number for number in due if examples[number] not in recorded)

    @property
    def evaluation_marks(self) -> tuple[str, ...]:
        """The metric by which each evaluation is recognised."""
        return tuple(f"{each.prefix}examples" for each in self.run.evaluations)

    @property
    def training_flops(self) -> float:
        """Floating-point operations of one picture's training step, a teacher's included."""
        taught = 0 if self.teacher is None else 2 * flops.multiply_adds(self.teacher.model)
        return self.run.data.views * flops.training_flops(self.run.model) + taught

    @functools.cached_property
    def kernels(self) -> fused.Choice:
        """The form of the model's layers on this mesh."""
        return fused.choose(self.run.model, self.sharding)

    @functools.cached_property
    def step(self) -> step.TrainStep:
        """What a training step computes.

        Raises:
            BadInput: if the mesh does not support `Step.reproducible_reduction` or `NesT.kernels`.
        """
        run, config = self.run, self.run.step
        every = run.cadence.histograms_every_steps
        treatments = self.treatments
        learning_rate = config.schedule.build(
            config.optimizer.peak_learning_rate, self.intervals.num_steps, self.steps_per_epoch
        )
        num_outputs, taught = run.model.num_logits, None
        if self.teacher is not None:
            taught = self.teacher.build(config.inputs.normalize, self.class_names, num_outputs)
        return step.TrainStep(
            model=run.model.clone(kernels=self.kernels.form),
            inputs=config.inputs,
            objective=class_weights.resolved(
                config.objective,
                self.class_names,
                self.training_source.class_counts(),
                num_outputs,
            ),
            optimizer=treatments.around(
                config.optimizer.build(learning_rate, treatments.decay), config.clipping
            ),
            learning_rate=learning_rate,
            sharding=self.sharding,
            seed=run.seed,
            microbatches=config.microbatches,
            reduction=self._reduction() if config.reproducible_reduction else None,
            ema_decay=config.ema_decay,
            skip_nonfinite=config.nonfinite.policy == "skip",
            spikes=config.spikes,
            treatments=treatments,
            teacher=taught,
            observe=functools.partial(histograms.measure_every, every) if every else None,
        )

    @functools.cached_property
    def state_shapes(self) -> state.TrainState:
        """Shapes, types and shardings of the state.

        Raises:
            BadInput: for a pattern of `Step.parameters` that fits no parameter.
        """
        shapes = jax.eval_shape(self.step.init)
        self.treatments.require_fitting(tree_paths.flatten(shapes.params).keys())
        return rules.sharded_shapes(self.sharding, shapes, self.parameter_axes)

    def audit(self) -> list[audit.Entry]:
        """Checks and lists the sharding and the treatment of each parameter."""
        params = self.state_shapes.params
        return audit.entries(self.sharding, params, self.parameter_axes, self.treatments)

    @functools.cached_property
    def treatments(self) -> parameter_rules.Treatments:
        """How each parameter is trained, by its name."""
        rules = self.run.step.parameters
        return rules.build(parameters.NO_WEIGHT_DECAY, self.run.model.block_repeats)

    @property
    def parameter_axes(self) -> Mapping[str, rules.Axes]:
        """The logical axes of the parameters of model and objective, by name pattern."""
        model, objective = self.run.model, self.run.step.objective
        own = objective.axes if isinstance(objective, pretext.Pretext) else {}
        return {**parameters.of_model(model.num_hierarchies, model.num_logits), **own}

    def init_state(self) -> state.TrainState:
        """The state before the first step; each device computes its own shards."""
        return jax.jit(self.step.init, out_shardings=self._state_shardings)()

    def state_from(self, params: Mapping[str, np.ndarray]) -> state.TrainState:
        """The state before the first step, with these parameters of the model.

        Args:
            params: unsharded arrays by name, the same on every process.
        """
        shapes = dict(self.state_shapes.params)
        shapes.pop(pretext.PARAMETERS, None)
        sharded = rules.on_devices(shapes, params)
        return jax.jit(self.step.init_from, out_shardings=self._state_shardings)(sharded)

    def train_step(self) -> jax.stages.Wrapped:
        """The jitted training step; it donates the buffers of its state."""

        # XLA, its cache and traces call the program by this function's name.
        def step(
            before: state.TrainState, batch: objectives.Batch, *teacher: state.Params
        ) -> tuple[state.TrainState, objectives.Metrics]:
            return self.step(before, batch, *teacher)

        return jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(self._state_shardings, self.sharding.replicated()),
            compiler_options=self._compiler_options,
        )

    def traced_train_step(self) -> jax.stages.Traced:
        """`train_step` on the shapes of this run."""
        teacher = () if self.teacher is None else (self.teacher.shapes,)
        return self.train_step().trace(self.state_shapes, self.batch_shapes()[0], *teacher)

    def compiled_train_step(self) -> jax.stages.Compiled:
        """`train_step`, compiled."""
        return self.traced_train_step().lower().compile()

    def taught(self, step: Callable[..., typing.Any]) -> Callable[..., typing.Any]:
        """A function of state and batch, from one that also takes the teacher's parameters."""
        if self.teacher is None:
            return step
        params = self.teacher.params()
        return lambda before, batch: step(before, batch, params)

    def compiled_evaluation_step(self, number: int = 0) -> jax.stages.Compiled:
        """`evaluation.compute` for an evaluation, by its number, on the shapes of this run."""
        opened = self.evaluations[number]
        config = opened.config

        def evaluate(params: state.Params, batch: objectives.Batch) -> evaluation.Measured:
            judged = (config.of_objective, config.measures, opened.classes)
            return evaluation.compute(self.step, *judged, params, batch)

        jitted = jax.jit(
            evaluate,
            out_shardings=self.sharding.replicated(),
            compiler_options=self._compiler_options,
        )
        shapes = self.evaluation_shapes(number)
        return jitted.lower(self.state_shapes.evaluated, shapes).compile()

    @property
    def _state_shardings(self) -> typing.Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)

    @property
    def _compiler_options(self) -> dict[str, str | bool]:
        platform = self.sharding.mesh.devices.flat[0].platform
        if platform in on_gpu.PLATFORMS:
            return dict(on_gpu.COMPILER_OPTIONS)
        return dict(on_cpu.compiler_options()) if platform == "cpu" else {}

    def _reduction(self) -> ordered_mean.OrderedMean:
        config = self.run.step
        reduction = ordered_mean.OrderedMean(self.sharding, config.reduction_shards)
        group = config.inputs.mixing_group
        checks.divides(
            "Run.global_batch",
            self.run.global_batch,
            reduction.shards * config.microbatches * group,
            f"{reduction.shards} Step.reduction_shards x {config.microbatches} microbatches x "
            f"{group} of a mixing group",
            "set it to one of them, or lower Step.reduction_shards",
        )
        return reduction

    def _steps(self, length: lengths.Length, num_steps: int = 0) -> int:
        steps = max(1, lengths.in_steps(length, self.steps_per_epoch, num_steps))
        checks.in_range(f"{lengths.text(length)} in steps", steps, 1, np.iinfo(np.int32).max)
        return steps
