"""Optimizers: from gradients to updates. Each is a chain of optax's transformations."""

import abc
import dataclasses
import typing
from collections.abc import Callable

import jax
import optax

from nest_dist.base import settings, tree_paths
from nest_dist.base.checks import Within
from nest_dist.train import matrices

# The factor of weight decay of a parameter, by its name.
DecayFactor = Callable[[str], float]
Transformations = tuple[optax.GradientTransformation, ...]
Positive = typing.Annotated[float, Within(0)]
Beta = typing.Annotated[float, Within(0, 1, open_high=True)]


class Optimizer(typing.Protocol):
    """An optimizer as gin configures it: from gradients to updates."""

    peak_learning_rate: float  # the height of the schedule

    def build(
        self, learning_rate: optax.Schedule, decay_factor: DecayFactor
    ) -> optax.GradientTransformation:
        """The transformation, with weight decay times `decay_factor` of each name."""


@dataclasses.dataclass(frozen=True)
class _Chain(abc.ABC):
    """Transformations of gradients, then the learning rate.

    Attributes:
        peak_learning_rate: reached at the end of the warm-up.
    """

    peak_learning_rate: Positive
    weight_decay: Positive

    def build(
        self, learning_rate: optax.Schedule, decay_factor: DecayFactor
    ) -> optax.GradientTransformation:
        decay = decayed(self.weight_decay, decay_factor)
        learning = optax.scale_by_learning_rate(learning_rate)
        return optax.chain(*self.transformations(decay), learning)

    @abc.abstractmethod
    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        """What precedes the learning rate; `decay` is the weight decay."""


@settings.register
class AdamW(_Chain):
    """The paper's optimizer.

    Attributes:
        peak_learning_rate: reached at the end of the warm-up. The paper's is 2.5e-4 for each 256
            examples of the global batch.
        weight_decay: times the learning rate, subtracted from each parameter that decays.
        beta_1: decay of the mean of gradients.
        beta_2: decay of the mean of squared gradients.
        epsilon: added to the root in the denominator.
    Source: arXiv 1711.05101, algorithm 2; arXiv 2105.12723, appendix.
    """

    weight_decay: Positive = 0.05
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    epsilon: Positive = 1e-8

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        return optax.scale_by_adam(self.beta_1, self.beta_2, self.epsilon), decay


@settings.register
class Adam(_Chain):
    """Adam; its weight decay is part of the gradient, as in PyTorch's.

    Attributes:
        weight_decay: times the parameter, added to its gradient.
        beta_1: decay of the mean of gradients.
        beta_2: decay of the mean of squared gradients.
        epsilon: added to the root in the denominator.
    Source: arXiv 1412.6980, algorithm 1.
    """

    weight_decay: Positive = 0.0
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    epsilon: Positive = 1e-8

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        return decay, optax.scale_by_adam(self.beta_1, self.beta_2, self.epsilon)


@settings.register
class SGD(_Chain):
    """Gradient descent with momentum; its weight decay is part of the gradient.

    Attributes:
        weight_decay: times the parameter, added to its gradient.
        momentum: decay of the sum of gradients; 0 keeps none.
        nesterov: whether the gradient is added to the decayed sum once more.
    Source: Sutskever et al. 2013, section 2, in the form of PyTorch's SGD.
    """

    weight_decay: Positive = 0.0
    momentum: Beta = 0.9
    nesterov: bool = False

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        momentum = optax.trace(self.momentum, self.nesterov) if self.momentum else optax.identity()
        return decay, momentum


@settings.register
class Lion(_Chain):
    """Steps by the sign of the momentum, so each weight moves equally far.

    Attributes:
        peak_learning_rate: reached at the end of the warm-up; 3 to 10 times below AdamW's.
        weight_decay: times the learning rate, subtracted; 3 to 10 times above AdamW's.
        beta_1: share of the momentum in the update.
        beta_2: decay of the momentum.
    Source: arXiv 2302.06675, algorithm 2.
    """

    weight_decay: Positive = 0.5
    beta_1: Beta = 0.9
    beta_2: Beta = 0.99

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        return optax.scale_by_lion(self.beta_1, self.beta_2), decay


@settings.register
class LAMB(_Chain):
    """AdamW whose update of each parameter is as long as the parameter; for large batches.

    Attributes:
        weight_decay: times the parameter, added to the update before its length is set.
        beta_1: decay of the mean of gradients.
        beta_2: decay of the mean of squared gradients.
        epsilon: added to the root in the denominator.
    Source: arXiv 1904.00962, algorithm 2, with the identity as phi.
    """

    weight_decay: Positive = 0.05
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    epsilon: Positive = 1e-6

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        return (
            optax.scale_by_adam(self.beta_1, self.beta_2, self.epsilon),
            decay,
            optax.scale_by_trust_ratio(),
        )


@settings.register
class Adafactor(_Chain):
    """Divides by the root of squared gradients, of which it keeps the means of rows and columns.

    Attributes:
        weight_decay: times the learning rate, subtracted from each parameter that decays.
        decay_exponent: the mean of squared gradients decays by 1 - step**-exponent.
        clipping: largest root mean square of an update, before the learning rate.
        relative: whether an update is multiplied by the root mean square of its parameter.
        smallest_factored: a parameter with two sides of at least this length keeps only the means.
    Source: arXiv 1804.04235, algorithm 4, without its schedule.
    """

    weight_decay: Positive = 0.0
    decay_exponent: typing.Annotated[float, Within(0, 1)] = 0.8
    clipping: typing.Annotated[float, Within(0, open_low=True)] = 1.0
    relative: bool = True
    smallest_factored: typing.Annotated[int, Within(2)] = 128

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:
        return (
            optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent, min_dim_size_to_factor=self.smallest_factored
            ),
            optax.clip_by_block_rms(self.clipping),
            optax.scale_by_param_block_rms() if self.relative else optax.identity(),
            decay,
        )


@settings.register
class Muon(_Chain):
    """Orthogonalised momentum for the matrices inside of the model, Adam for all else.

    An update of a matrix is as long as AdamW's typically is, so AdamW's rate and decay fit.

    Attributes:
        weight_decay: times the learning rate, subtracted from each parameter that decays.
        momentum: decay of the sum of gradients of matrices, with Nesterov's step.
        matrices: name patterns of the parameters that are taken as matrices.
        beta_1: Adam's decay of the mean of gradients.
        beta_2: Adam's decay of the mean of squared gradients.
        epsilon: Adam's, added to the root in the denominator.
    Source: Jordan et al. 2024, "Muon"; the length of updates of arXiv 2502.16982, section 2.2.
    """

    weight_decay: Positive = 0.05
    momentum: Beta = 0.95
    matrices: tuple[str, ...] = ("levels_*/kernel", "aggregations_*/kernel")
    beta_1: Beta = 0.9
    beta_2: Beta = 0.999
    epsilon: Positive = 1e-8

    def transformations(self, decay: optax.GradientTransformation) -> Transformations:

        def kinds(params: tree_paths.Tree) -> tree_paths.Tree:
            def kind(name: str, leaf: jax.Array) -> str:
                is_matrix = leaf.ndim > 1 and tree_paths.matches(name, self.matrices)
                return "matrix" if is_matrix else "other"

            return tree_paths.map_named(kind, params)

        matrix = optax.chain(
            optax.trace(self.momentum, nesterov=True), _by_name(matrices.orthogonalized)
        )
        other = optax.scale_by_adam(self.beta_1, self.beta_2, self.epsilon)
        return optax.partition({"matrix": matrix, "other": other}, kinds), decay


@settings.register
class Optax:
    """Any transformation of optax, made by a function that gin can name.

    Attributes:
        peak_learning_rate: the height of the schedule.
        transformation: from the learning rate by step to the transformation. Weight decay is its
            own matter; `ParameterRules.weight_decays` do not reach it.
    """

    peak_learning_rate: Positive
    transformation: Callable[..., optax.GradientTransformation]

    def build(
        self, learning_rate: optax.Schedule, decay_factor: DecayFactor
    ) -> optax.GradientTransformation:
        return self.transformation(learning_rate)


def decayed(weight_decay: float, factor: DecayFactor) -> optax.GradientTransformation:
    """Adds `weight_decay * factor(name)` times each parameter to its update."""

    def add(name: str, update: jax.Array, param: jax.Array) -> jax.Array:
        rate = weight_decay * factor(name)
        return update + rate * param if rate else update

    return _by_name(add)


def _by_name(
    function: Callable[[str, jax.Array, jax.Array], jax.Array],
) -> optax.GradientTransformation:
    """A transformation without state: `function` of a name, its update and its parameter."""

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        return tree_paths.map_named(function, updates, params), state

    return optax.GradientTransformation(optax.init_empty_state, update)
