"""How each parameter is trained, by its name: learning rate, weight decay, or not at all."""

import dataclasses
import typing
from collections.abc import Collection, Sequence

import jax
import optax

from nest_dist.base import checks, failures, settings, tree_paths
from nest_dist.base.checks import Within
from nest_dist.base.settings import Effect, means
from nest_dist.model import parameters
from nest_dist.train import clipping as clippings

Factors = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Treatment:
    """How one parameter is trained."""

    multiplier: float  # of the learning rate
    decay: float  # factor of the optimizer's weight decay
    frozen: bool  # whether it stays as it is


@settings.register
class ParameterRules:
    """Rules by patterns of names, as `nest-dist rehearse --audit` lists them; `*` fits any text.

    Of the pairs that fit a name the last one counts. A pattern that fits no name is refused.

    Attributes:
        layer_decay: factor of the learning rate from each layer to the one before it, in (0, 1];
            head and norm have the whole rate.
        learning_rates: pairs (pattern, factor) of the learning rate, as in (("head/*", 10.0),).
        weight_decays: pairs (pattern, factor) of the optimizer's weight decay.
        frozen: patterns of parameters that stay as they are: without gradient, and without state
            of the optimizer.
    Source: arXiv 2106.08254, appendix, for the decay by layer.
    """

    layer_decay: typing.Annotated[float, Within(0, 1, open_low=True)] = 1.0
    learning_rates: Factors = ()
    weight_decays: Factors = ()
    frozen: tuple[str, ...] = means(Effect.ANOTHER_RUN, default=())

    def __post_init__(self) -> None:
        for field in ("learning_rates", "weight_decays"):
            for pattern, factor in getattr(self, field):
                name = f"the factor of {pattern!r} in ParameterRules.{field}"
                checks.in_range(name, factor, 0, settings.LARGEST)

    def build(self, no_weight_decay: Sequence[str], block_repeats: Sequence[int]) -> "Treatments":
        """The rules for a model.

        Args:
            no_weight_decay: patterns of its parameters that do not decay unless asked to.
            block_repeats: its layers by level.
        """
        decays = (*((pattern, 0.0) for pattern in no_weight_decay), *self.weight_decays)
        rules = dataclasses.replace(self, weight_decays=decays)
        return Treatments(rules, tuple(block_repeats))


@dataclasses.dataclass(frozen=True)
class Treatments:
    """The treatment of each parameter of a model, by its name."""

    rules: ParameterRules  # with those of the model
    block_repeats: tuple[int, ...]

    def __call__(self, name: str) -> Treatment:
        above = parameters.layers_above(name, self.block_repeats)
        return Treatment(
            multiplier=self.rules.layer_decay**above * _last(name, self.rules.learning_rates),
            decay=_last(name, self.rules.weight_decays),
            frozen=tree_paths.matches(name, self.rules.frozen),
        )

    def decay(self, name: str) -> float:
        return self(name).decay

    def require_fitting(self, names: Collection[str]) -> None:
        """Checks the patterns against all names of parameters."""
        rules = self.rules
        patterns = {
            "to freeze": rules.frozen,
            "with a learning rate of their own": [pattern for pattern, _ in rules.learning_rates],
            "with a weight decay of their own": [pattern for pattern, _ in rules.weight_decays],
        }
        for purpose, listed in patterns.items():
            for pattern in listed:
                if not any(tree_paths.matches(name, [pattern]) for name in names):
                    raise failures.BadInput(
                        f"{pattern!r} names parameters {purpose}, but no parameter fits it; the "
                        f"names are like {next(iter(names))!r}."
                    )
        if all(self(name).frozen for name in names):
            raise failures.BadInput(
                f"ParameterRules.frozen is {rules.frozen}, which leaves no parameter to train; "
                "freeze fewer."
            )

    def split(self, params: tree_paths.Tree) -> tuple[tree_paths.Tree, tree_paths.Tree]:
        """The parameters that are trained, and those that are frozen."""
        if not self.rules.frozen:
            return params, {}
        flat = tree_paths.flatten(params)
        frozen = {name: leaf for name, leaf in flat.items() if self(name).frozen}
        trained = {name: leaf for name, leaf in flat.items() if name not in frozen}
        return tree_paths.unflatten(trained), tree_paths.unflatten(frozen)

    def around(
        self, optimizer: optax.GradientTransformation, clipping: clippings.Clipping | None
    ) -> optax.GradientTransformation:
        """The optimizer with clipped gradients, and updates times their multipliers.

        Its state is that of the optimizer.
        """

        def scaled(name: str, update: jax.Array) -> jax.Array:
            multiplier = self(name).multiplier
            return update if multiplier == 1 else multiplier * update

        def update(
            grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
        ) -> tuple[optax.Updates, optax.OptState]:
            clipped = grads if clipping is None else clipping(grads, params)
            updates, state = optimizer.update(clipped, state, params)
            return tree_paths.map_named(scaled, updates), state

        return optax.GradientTransformation(optimizer.init, update)


# Every parameter at the optimizer's own rate and decay.
ALIKE = Treatments(ParameterRules(), ())


def merged(trained: tree_paths.Tree, frozen: tree_paths.Tree) -> tree_paths.Tree:
    """The inverse of `Treatments.split`."""
    if not frozen:
        return trained
    return tree_paths.unflatten({**tree_paths.flatten(trained), **tree_paths.flatten(frozen)})


def _last(name: str, factors: Factors) -> float:
    fitting = [factor for pattern, factor in factors if tree_paths.matches(name, [pattern])]
    return fitting[-1] if fitting else 1.0
