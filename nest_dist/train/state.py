"""What a step changes: parameters, optimizer state, their moving average and the step's number."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Params = typing.Any
UpdateRule: typing.TypeAlias = optax.GradientTransformation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """One state of a run, the same on every process.

    Attributes:
        step: int32 scalar, steps already done.
        params: nested dictionaries of float32 arrays.
        optimizer: the state of the update rule.
        ema: exponential moving average of the parameters; None if the run keeps none.
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState
    ema: Params | None = None

    @property
    def evaluated(self) -> Params:
        """The parameters that are measured and used: the average, if there is one."""
        return self.params if self.ema is None else self.ema

    @jax.named_scope("optimizer")
    def updated(
        self, rule: UpdateRule, grads: Params, ema_decay: float | None = None
    ) -> tuple["TrainState", dict[str, jax.Array]]:
        """The state after one step with these gradients, and the lengths of both."""
        updates, optimizer = rule.update(grads, self.optimizer, self.params)
        params = optax.apply_updates(self.params, updates)
        norms = {
            "train/gradient_norm": optax.tree.norm(grads),
            "train/update_norm": optax.tree.norm(updates),
        }
        ema = None
        if ema_decay is not None:
            # The first steps move the parameters far; so long the average forgets faster.
            decay = jnp.minimum(ema_decay, (1 + self.step) / (10 + self.step))
            ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), self.ema, params)
        return TrainState(self.step + 1, params, optimizer, ema), norms


def initialiser(
    init_params: Callable[[jax.Array], Params], rule: UpdateRule, seed: int, with_ema: bool
) -> Callable[[], TrainState]:
    """A function of nothing that makes the first state; to be jitted with output shardings.

    Args:
        init_params: parameters from a key.
        rule: the update rule.
        seed: of the run.
        with_ema: whether the state keeps a moving average of the parameters.
    """

    def init() -> TrainState:
        return first(rule, with_ema, init_params(jax.random.key(seed)))

    return init


def first(rule: UpdateRule, with_ema: bool, params: Params) -> TrainState:
    """The state of step 0 with these parameters."""
    ema = jax.tree.map(jnp.copy, params) if with_ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, rule.init(params), ema)
