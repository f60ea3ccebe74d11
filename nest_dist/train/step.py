"""The training step: from a batch of uint8 images to the next state."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from nest_dist.sharding import ordered_mean, rules
from nest_dist.train import (
    inputs,
    microbatches,
    objectives,
    parameter_rules,
    schedules,
    state,
)
from nest_dist.train import spikes as spike_rules
from nest_dist.train import teacher as teachers
from nest_dist.train.objectives import pretext

# The logical axes of the arrays of a batch; the step adds "row", the row in the global batch.
BATCH_AXES: Mapping[str, rules.Axes] = {
    "image": ("batch", "rows", None, None),
    "label": ("batch",),
    "labels": ("batch", None),
    "weight": ("batch",),
    "row": ("batch",),
}

# Of images of several views.
VIEWS_AXES: rules.Axes = ("batch", None, "rows", None, None)

Keys = tuple[jax.Array, jax.Array]  # for augmentation, and for the forward pass


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The computations of a step; all methods are pure, to be jitted.

    Attributes:
        model: gives outputs [B, num_classes] of images [B, H, W, C].
        inputs: from uint8 images to the inputs of the model.
        objective: loss and metrics.
        optimizer: from gradients to updates, of the parameters that are trained.
        learning_rate: by step, for the metrics.
        sharding: mesh and rules for activations.
        seed: of the run; with the step and the example's row in the global batch it keys all
            randomness.
        microbatches: their number; they are computed one after the other, to save memory.
        reduction: adds gradients in an order that the number of devices does not change; None
            leaves the order to the compiler.
        ema_decay: of the moving average of the parameters, in [0, 1); None computes none.
        skip_nonfinite: discards an update that is not finite; "train/skipped" is 1 then, else 0.
        spikes: discards an update far above the recent ones; "train/spike" is 1 then, else 0.
        treatments: how each parameter is trained; here only whether it is frozen.
        teacher: that the model learns from; its parameters are the last argument of each method
            that computes a loss for training.
        observe: (steps done, {"parameters": ..., "gradients": ...}) -> further metrics, vectors.
    """

    model: typing.Any
    inputs: inputs.Inputs
    objective: objectives.Objective | pretext.Pretext
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    sharding: rules.ShardingContext
    seed: int
    microbatches: int = 1
    reduction: ordered_mean.OrderedMean | None = None
    ema_decay: float | None = None
    skip_nonfinite: bool = False
    spikes: spike_rules.SpikeRule | None = None
    treatments: parameter_rules.Treatments = parameter_rules.ALIKE
    teacher: teachers.Teacher | None = None
    observe: Callable[[jax.Array, Mapping[str, state.Params]], objectives.Metrics] | None = None

    def init(self) -> state.TrainState:
        """The state before the first step, with initial parameters."""
        H, W = self.model.geometry().image_sides
        images = jnp.zeros((1, H, W, self.model.num_channels))
        params = self.model.init({"params": jax.random.key(self.seed)}, images)["params"]
        if bias := self.objective.head_bias:
            head = {**params["head"], "bias": params["head"]["bias"] + bias}
            params = {**params, "head": head}
        return self.init_from(params)

    def init_from(self, params: state.Params) -> state.TrainState:
        """The state before the first step, with these parameters of the model."""
        if isinstance(self.objective, pretext.Pretext):
            key = jax.random.fold_in(jax.random.key(self.seed), pretext.INIT)
            params = {**params, pretext.PARAMETERS: self.objective.init(self.model, key)}
        ema = None if self.ema_decay is None else jax.tree.map(jnp.copy, params)
        step = jnp.zeros((), jnp.int32)
        trained, _ = self.treatments.split(params)
        recent = None if self.spikes is None else self.spikes.init()
        return state.TrainState(step, params, self.optimizer.init(trained), ema, recent)

    def __call__(
        self,
        before: state.TrainState,
        batch: objectives.Batch,
        teacher: state.Params | None = None,
    ) -> tuple[state.TrainState, objectives.Metrics]:
        """The next state, and metrics: float32 scalars, and the vectors of `observe`."""
        batch = {**batch, "row": jnp.arange(len(batch["image"]))}
        operands = before.params, keys(self.seed, before.step), teacher
        if self.reduction is None:
            with self.sharding.active():
                (loss, values), grads = self._gradients(*operands, batch)
        else:
            (loss, values), grads = self.reduction.mean(self._gradients, operands, batch)
        after, norms = self._updated(before, grads)
        values = {"loss": loss, **values, "learning_rate": self.learning_rate(before.step), **norms}
        metrics = {f"train/{name}": jnp.float32(value) for name, value in values.items()}
        if self.observe is not None:
            metrics |= self.observe(after.step, {"parameters": after.params, "gradients": grads})
        if self.skip_nonfinite:
            finite = jnp.all(jnp.isfinite(jnp.stack([loss, *norms.values()])))
            after = _either(finite, after, _skipped(before))
            metrics["train/skipped"] = 1.0 - finite
        if self.spikes is not None and before.spikes is not None:
            watched = {name: metrics[f"train/{name}"] for name in spike_rules.WATCHED}
            is_spike, recent = self.spikes(before.spikes, watched)
            after = _either(is_spike, _skipped(before), after)
            after = dataclasses.replace(after, spikes=recent)
            metrics["train/spike"] = jnp.float32(is_spike)
        return after, metrics

    def evaluate(self, params: state.Params, batch: objectives.Batch) -> objectives.Metrics:
        """Counts over the examples of weight 1, and values of each example.

        Returns:
            "examples" and the hits of each metric as int32 scalars. "loss" float32 [B], 0 for
            weight 0. "predicted" int32 [B]. What else the objective gives.
        """
        with self.sharding.active():
            values = self._measured(params, batch)
        real = batch["weight"] > 0
        hits = {name: value & real for name, value in values.items() if value.dtype == jnp.bool_}
        counts = {
            name: jnp.sum(counted, dtype=jnp.int32)
            for name, counted in {**hits, "examples": real}.items()
        }
        return {**values, **counts, "loss": jnp.where(real, values["loss"], 0.0)}

    def examine(
        self,
        before: state.TrainState,
        batch: objectives.Batch,
        teacher: state.Params | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What a step adds up: the loss of each example [B], and gradient norms by module.

        Modules are those of the first level of names, such as "levels_0" or "head".
        """
        operands = before.params, keys(self.seed, before.step), teacher
        numbered = {**batch, "row": jnp.arange(len(batch["image"]))}
        with self.sharding.active():
            losses, _ = self._losses(*operands, numbered)
            _, grads = self._gradients(*operands, numbered)
        return losses, {name: optax.tree.norm(module) for name, module in grads.items()}

    def model_inputs(
        self, step: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The model's inputs of the batch after `step` steps, float32, and their targets."""
        inputs_key, _ = keys(self.seed, step)
        return self.inputs(images, targets, inputs_key, jnp.arange(len(images)))

    def _measured(self, params: state.Params, batch: objectives.Batch) -> objectives.Metrics:
        images = self.inputs.normalize(batch["image"])
        if isinstance(self.objective, pretext.Pretext):
            return self.objective.evaluate(pretext.Network(self.model, params), images, batch)
        outputs = self.model.apply({"params": params}, images)
        return self.objective.evaluate(outputs, batch)

    def _gradients(
        self,
        params: state.Params,
        keys: Keys,
        teacher: state.Params | None,
        batch: objectives.Batch,
    ) -> typing.Any:
        """((mean loss, mean metrics), gradients) of a batch, microbatch by microbatch."""
        trained, frozen = self.treatments.split(params)

        def mean_loss(
            trained: state.Params, microbatch: objectives.Batch
        ) -> tuple[jax.Array, objectives.Metrics]:
            merged = parameter_rules.merged(trained, frozen)
            losses, values = self._losses(merged, keys, teacher, microbatch)
            return losses.mean(), {name: value.mean() for name, value in values.items()}

        gradient = jax.value_and_grad(mean_loss, has_aux=True)
        return microbatches.mean(
            functools.partial(gradient, trained),
            batch,
            BATCH_AXES,
            self.microbatches,
            self.inputs.mixing_group,
        )

    def _losses(
        self,
        params: state.Params,
        keys: Keys,
        teacher: state.Params | None,
        batch: objectives.Batch,
    ) -> tuple[jax.Array, objectives.Metrics]:
        (inputs_key, forward_key), rows = keys, batch["row"]
        if isinstance(self.objective, pretext.Pretext):
            network = pretext.Network(self.model, params, forward_key)
            return self.objective.losses(network, self.inputs, batch, inputs_key)
        augment = functools.partial(self.inputs, key=inputs_key, rows=rows)
        forward: objectives.Forward = functools.partial(
            self.model.apply,
            {"params": params},
            train=True,
            batch_rows=rows,
            rngs={"dropout": forward_key},
        )
        if self.teacher is not None:
            assert teacher is not None
            forward = self.teacher.beside(forward, teacher)
        return self.objective.losses(forward, augment, batch, self.model.num_classes)

    @jax.named_scope("optimizer")
    def _updated(
        self, before: state.TrainState, grads: state.Params
    ) -> tuple[state.TrainState, objectives.Metrics]:
        trained, frozen = self.treatments.split(before.params)
        updates, optimizer = self.optimizer.update(grads, before.optimizer, trained)
        params = parameter_rules.merged(optax.apply_updates(trained, updates), frozen)
        norms = {"gradient_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        ema = None
        if self.ema_decay is not None:
            decay = schedules.ema_decay(self.ema_decay, before.step)
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), before.ema, params)
        return state.TrainState(before.step + 1, params, optimizer, ema, before.spikes), norms


def keys(seed: int, step: int | jax.Array) -> Keys:
    """The keys of augmentation and of the forward pass, after `step` steps."""
    inputs_key, forward_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return inputs_key, forward_key


def _skipped(before: state.TrainState) -> state.TrainState:
    """The state with one more step; the schedule goes on, too."""
    step = before.step + 1
    of_schedule = "ScaleByScheduleState"
    optimizer = optax.tree.set(
        before.optimizer,
        lambda path, _: getattr(path[-1], "tuple_name", None) == of_schedule,
        count=step,
    )
    return dataclasses.replace(before, step=step, optimizer=optimizer)


@jax.named_scope("optimizer")
def _either(condition: jax.Array, one: state.TrainState, other: state.TrainState) -> typing.Any:
    return jax.tree.map(lambda left, right: jnp.where(condition, left, right), one, other)
