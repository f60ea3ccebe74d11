"""The training state: parameters, optimizer state, moving average, number of steps done."""

import dataclasses
import typing

import jax
import optax

Params = dict[str, typing.Any]  # nested dictionaries of float32 arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after a step, the same on every process."""

    step: jax.Array  # int32 scalar, steps already done
    params: Params  # of the model
    optimizer: optax.OptState  # the state of the optimizer
    # Exponential moving average of the parameters; None without `Step.ema_decay`
    ema: Params | None = None
    spikes: dict[str, typing.Any] | None = None  # the state of `Step.spikes`; None without it

    @property
    def evaluated(self) -> Params:
        """The parameters to evaluate and export: the average, if the run computes one."""
        return self.params if self.ema is None else self.ema
