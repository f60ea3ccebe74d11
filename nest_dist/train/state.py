"""What a step changes: parameters, optimizer state and the step's number."""

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
    """

    step: jax.Array
    params: Params
    optimizer: optax.OptState

    def updated(self, rule: UpdateRule, grads: Params) -> tuple["TrainState", dict[str, jax.Array]]:
        """The state after one step with these gradients, and the lengths of both."""
        updates, optimizer = rule.update(grads, self.optimizer, self.params)
        params = optax.apply_updates(self.params, updates)
        norms = {
            "train/gradient_norm": optax.tree.norm(grads),
            "train/update_norm": optax.tree.norm(updates),
        }
        return TrainState(self.step + 1, params, optimizer), norms


def initialiser(
    init_params: Callable[[jax.Array], Params], rule: UpdateRule, seed: int
) -> Callable[[], TrainState]:
    """A function of nothing that makes the first state; to be jitted with output shardings.

    Args:
        init_params: parameters from a key.
        rule: the update rule.
        seed: of the run.
    """

    def init() -> TrainState:
        return first(rule, init_params(jax.random.key(seed)))

    return init


def first(rule: UpdateRule, params: Params) -> TrainState:
    """The state of step 0 with these parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, rule.init(params))
