"""Two views of a picture get like features, which keep apart from those of other pictures."""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from nest_dist.base import settings
from nest_dist.base.checks import Within
from nest_dist.sharding import rules
from nest_dist.train import inputs, objectives
from nest_dist.train.objectives import pretext

LAYERS = 3  # of the projector
NORM_EPSILON = 1e-5
VARIANCE_EPSILON = 1e-4

# Features with a variance of 1 stay so through all layers.
projector_init = jax.nn.initializers.lecun_normal()

_Weight = typing.Annotated[float, Within(0)]


@settings.register
class TwoViews(pretext.Pretext):
    """Invariance, variance and covariance of projected features of two views of each picture.

    A projector of three layers follows the model, with batch norms and ReLUs between them. Means,
    variances and covariances are those of the global batch, whatever the mesh. Evaluation compares
    each picture with its mirror image; batch norms then use the evaluated batch.

    Attributes:
        width: of the projector's layers; the paper has 8,192 behind 2,048 features.
        invariance: weight of the squared distance between two views.
        variance: weight of what standard deviations lack of 1.
        covariance: weight of the squared covariances of two features.
    Source: VICReg, arXiv 2105.04906, section 4 and algorithm 1.
    """

    width: typing.Annotated[int, Within(2, 2**16)]
    invariance: _Weight = 25.0
    variance: _Weight = 25.0
    covariance: _Weight = 1.0
    views: typing.ClassVar[int] = 2
    of_batch: typing.ClassVar[bool] = True
    axes: typing.ClassVar[Mapping[str, rules.Axes]] = {
        "*/projector/*/kernel": ("embed", None),
        "*/projector/*/scale": ("embed",),
        "*/projector/*/bias": ("embed",),
    }

    def init(self, model: typing.Any, key: jax.Array) -> pretext.Params:
        D, layers = self.width, {}
        widths = [model.widths()[-1], *[D] * LAYERS]
        for layer, layer_key in enumerate(jax.random.split(key, LAYERS)):
            kernel = {"kernel": projector_init(layer_key, (widths[layer], D))}
            norm = {"scale": jnp.ones(D), "bias": jnp.zeros(D)} if layer + 1 < LAYERS else {}
            layers[f"layers_{layer}"] = {**kernel, **norm}
        return {"projector": layers}

    def losses(
        self,
        network: pretext.Network,
        augment: inputs.Inputs,
        batch: objectives.Batch,
        key: jax.Array,
    ) -> tuple[jax.Array, objectives.Metrics]:
        """The loss; an example differs from the others of its batch by its invariance alone."""
        B, V, *_ = batch["image"].shape
        rows = (V * batch["row"][:, None] + jnp.arange(V)).reshape(-1)
        views = pretext.augmented(augment, pretext.as_examples(batch["image"]), key, rows)
        features = network(views, rows).reshape(B, V, -1)
        return self.compared(network.own(self.axes), features, jnp.ones(B))

    def evaluate(
        self, network: pretext.Network, images: jax.Array, batch: objectives.Batch
    ) -> objectives.Metrics:
        """The loss of images and their mirror images, over the examples of weight 1."""
        views = jnp.stack([images, images[:, :, ::-1]], axis=1)
        rows = jnp.arange(2 * len(images))
        features = network(pretext.as_examples(views), rows).reshape(len(images), 2, -1)
        losses, _ = self.compared(network.own(self.axes), features, batch["weight"])
        return {"loss": losses}

    def pictures(self, network: pretext.Network, images: jax.Array) -> jax.Array:
        return jnp.concatenate([images, images[:, :, ::-1]], axis=2)

    @jax.named_scope("two_views")
    def compared(
        self, own: pretext.Params, features: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, objectives.Metrics]:
        """Loss of each example [B] and its terms, [B] each.

        Args:
            features: [B, 2, C].
            weights: [B], 1 for an example and 0 for what does not count.
        """
        projected = _projected(own["projector"], features, weights)  # [B, 2, D]
        invariance = jnp.square(projected[:, 0] - projected[:, 1]).mean(axis=-1)
        centred = (projected - _mean(projected, weights)) * weights[:, None, None]
        freedom = jnp.maximum(weights.sum() - 1, 1)
        deviations = jnp.sqrt(jnp.square(centred).sum(axis=0) / freedom + VARIANCE_EPSILON)
        variance = jax.nn.relu(1 - deviations).mean(axis=-1).sum()
        covariances = jnp.einsum("bvc,bvd->vcd", centred, centred) / freedom
        apart = jnp.where(jnp.eye(self.width, dtype=bool), 0, covariances)
        covariance = jnp.square(apart).sum() / self.width
        of_batch = self.variance * variance + self.covariance * covariance
        terms = {"variance": variance, "covariance": covariance}
        metrics = {name: jnp.broadcast_to(term, invariance.shape) for name, term in terms.items()}
        return self.invariance * invariance + of_batch, {"invariance": invariance, **metrics}


def _projected(
    projector: Mapping[str, typing.Any], features: jax.Array, weights: jax.Array
) -> jax.Array:
    """Projections [B, 2, D] of features [B, 2, C]; each view has its own statistics."""
    for layer in range(LAYERS):
        params = projector[f"layers_{layer}"]
        features = features @ params["kernel"]
        if "scale" in params:
            features = features - _mean(features, weights)
            scale = jax.lax.rsqrt(_mean(jnp.square(features), weights) + NORM_EPSILON)
            features = jax.nn.relu(features * scale * params["scale"] + params["bias"])
    return features


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean over the examples [B, 2, C] of weight 1: [2, C]."""
    return (values * weights[:, None, None]).sum(axis=0) / jnp.maximum(weights.sum(), 1)
