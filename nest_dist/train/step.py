"""One training step and one evaluation step, as pure functions to be jitted."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from nest_dist.parallel import reproducible, rules
from nest_dist.telemetry import histograms
from nest_dist.train import accumulation, losses, state

# logits [B, classes] from params, images [B, H, W, C]; with a key and rows [B] when training.
Forward = Callable[..., jax.Array]
DeviceBatch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[state.TrainState, DeviceBatch], tuple[state.TrainState, Metrics]]

# The logical axes of what a batch holds, and of the number of each example in it.
BATCH_AXES: Mapping[str, rules.Axes] = {
    "image": ("batch", "rows", None, None),
    "label": ("batch",),
    "weight": ("batch",),
    "row": ("batch",),
}


def train_step(
    forward: Forward,
    inputs: Callable[..., tuple[jax.Array, jax.Array]],
    rule: state.UpdateRule,
    schedule: Callable[[jax.Array], jax.Array],
    layout: rules.Layout,
    *,
    num_classes: int,
    label_smoothing: float,
    seed: int,
    microbatches: int = 1,
    together: int = 1,
    reduction: reproducible.Reduction | None = None,
    ema_decay: float | None = None,
    histograms_every: int | None = None,
) -> TrainStep:
    """A function from state and batch to the next state and float32 scalar metrics.

    Args:
        forward: `forward(params, images, key, rows)` gives logits.
        inputs: `inputs(images, targets, key, rows)` gives float32 images from uint8 ones, and
            targets.
        rule: the update rule.
        schedule: learning rate by step, for the metrics.
        layout: where activations lie.
        num_classes: of the model.
        label_smoothing: in [0, 1).
        seed: of the run; the step's randomness is keyed by it, the step and the example's number
            alone.
        microbatches: parts of the batch that are computed one after the other, to save memory.
        together: neighbours that `inputs` needs in one microbatch.
        reduction: how the parts of the batch are put together so that the devices' number does not
            matter; None leaves it to the compiler.
        ema_decay: of the average of the parameters; None if the state keeps none.
        histograms_every: steps between two that also measure all parameters and gradients.
    """

    def loss(
        params: state.Params, batch: DeviceBatch, inputs_key: jax.Array, forward_key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        with jax.named_scope("inputs"):
            targets = losses.smoothed_targets(batch["label"], num_classes, label_smoothing)
            images, targets = inputs(batch["image"], targets, inputs_key, batch["row"])
        logits = forward(params, images, forward_key, batch["row"])
        accuracy = losses.in_top(logits, batch["label"], 1).mean()
        return losses.cross_entropy(logits, targets).mean(), accuracy

    def gradients(
        params: state.Params, keys: tuple[jax.Array, jax.Array], batch: DeviceBatch
    ) -> tuple[tuple[jax.Array, jax.Array], state.Params]:
        def of_part(part: DeviceBatch) -> tuple[tuple[jax.Array, jax.Array], state.Params]:
            return jax.value_and_grad(loss, has_aux=True)(params, part, *keys)

        found: tuple[tuple[jax.Array, jax.Array], state.Params] = accumulation.mean(
            of_part, batch, BATCH_AXES, microbatches, together
        )
        return found

    def step(before: state.TrainState, batch: DeviceBatch) -> tuple[state.TrainState, Metrics]:
        numbered = {**batch, "row": jnp.arange(len(batch["label"]))}
        whole = before.params, keys(seed, before.step)
        if reduction is None:
            with layout.active():
                (value, accuracy), grads = gradients(*whole, numbered)
        else:
            (value, accuracy), grads = reduction.mean(gradients, whole, numbered)
        after, norms = before.updated(rule, grads, ema_decay)
        metrics = {
            "train/loss": value,
            "train/accuracy": accuracy,
            "train/learning_rate": jnp.asarray(schedule(before.step), jnp.float32),
            **norms,
        }
        if histograms_every is not None:
            metrics |= histograms.measure_if(
                after.step % histograms_every == 0,
                {"parameters": after.params, "gradients": grads},
            )
        return after, metrics

    return step


def keys(seed: int, step: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of a step's inputs, and of its forward pass."""
    inputs_key, forward_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return inputs_key, forward_key


def shown_inputs(
    inputs: Callable[..., tuple[jax.Array, jax.Array]], *, num_classes: int, seed: int
) -> Callable[[jax.Array, DeviceBatch], tuple[jax.Array, jax.Array]]:
    """A function from a step's number and its batch to what the model is given in it.

    Args:
        inputs: as of `train_step`.
        num_classes: of the model.
        seed: of the run.
    Returns:
        (steps before it, batch) -> images float32 [B, H, W, C] and the share of each class in
        each, [B, classes].
    """

    def show(step: jax.Array, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
        shares = losses.smoothed_targets(batch["label"], num_classes, 0.0)
        inputs_key, _ = keys(seed, step)
        return inputs(batch["image"], shares, inputs_key, jnp.arange(len(shares)))

    return show


def evaluation_step(
    forward: Forward, pixels: Callable[[jax.Array], jax.Array], layout: rules.Layout
) -> Callable[[state.Params, DeviceBatch], Metrics]:
    """A function from parameters and a weighted batch to counts of its real examples.

    It also gives the predicted class of each example, int32 [B], and its loss, float32 [B], which
    is 0 for one that is not real.

    Args:
        forward: `forward(params, images)` gives logits.
        pixels: float32 images from uint8 ones.
        layout: where activations lie.
    """

    def step(params: state.Params, batch: DeviceBatch) -> Metrics:
        with layout.active():
            logits = forward(params, pixels(batch["image"]))
        real = batch["weight"] > 0
        targets = losses.smoothed_targets(batch["label"], logits.shape[-1], 0.0)
        loss = losses.cross_entropy(logits, targets)

        def count(hits: jax.Array) -> jax.Array:
            return jnp.sum(hits & real, dtype=jnp.int32)

        return {
            "predicted": jnp.argmax(logits, axis=-1),
            "examples": count(real),
            "blank": jnp.sum(batch["label"] < 0, dtype=jnp.int32),
            "loss": jnp.where(real, loss, 0.0),
            "top_1": count(losses.in_top(logits, batch["label"], 1)),
            "top_5": count(losses.in_top(logits, batch["label"], 5)),
        }

    return step
