"""One level of the hierarchy: places, then layers that work inside each block."""

import dataclasses
import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import chance
from nest_dist.model import affine, attention
from nest_dist.parallel import rules

Gelu = typing.Literal["tanh", "exact"]
Remat = typing.Literal["none", "dots", "layer"]
Layers = typing.Literal["unrolled", "scanned"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What all layers of a model have in common.

    Attributes:
        multi_query: see `BlockAttention`.
        mlp_ratio: hidden width of the MLP over the width of tokens.
        attention_dropout: rate inside attention.
        projection_dropout: rate after each projection but those to query, key and value.
        gelu: the exact function, or its tanh approximation.
        compute_dtype: of activations and products.
        remat: what the backward pass computes again: nothing, all but the products with
            parameters ("dots"), or all that is inside a layer.
        layers: of a level as copies of the program, or as one program that is repeated, which
            compiles faster and runs slower.
    """

    multi_query: bool
    mlp_ratio: int
    attention_dropout: float
    projection_dropout: float
    gelu: Gelu
    compute_dtype: affine.ComputeDtype
    remat: Remat
    layers: Layers = "unrolled"

    def drops(self) -> bool:
        """Whether anything but whole branches is dropped."""
        return self.attention_dropout > 0 or self.projection_dropout > 0


def drop_rates(final_rate: float, depths: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Stochastic-depth rate of each layer of each level, rising linearly from 0 to `final_rate`.

    Source: arXiv 1603.09382, section 3, stated there as survival probability.
    """
    last = max(sum(depths) - 1, 1)
    rates = [final_rate * layer / last for layer in range(sum(depths))]
    starts = [sum(depths[:level]) for level in range(len(depths))]
    return tuple(
        tuple(rates[start : start + depth]) for start, depth in zip(starts, depths, strict=True)
    )


class Level(nn.Module):
    """Tells every token its place, then applies one layer after another.

    Attributes:
        heads: of attention at this level.
        drop_rates: of the layers, first one first; see `EncoderLayer`.
        options: what all levels have in common.
    """

    heads: int
    drop_rates: tuple[float, ...]
    options: Options

    @nn.compact
    def __call__(self, blocks: Array, rows: Array | None) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C].

        Args:
            blocks: tokens.
            rows: int32 [B], the number of each example in its global batch, by which the choice
                of what is dropped is keyed; None if nothing is.
        """
        options = self.options
        _, T, N, C = blocks.shape
        blocks = blocks + affine.parameter(
            self, "position_embedding", affine.initial, (1, T, N, C), options.compute_dtype
        )
        keys = None
        if rows is not None and (any(self.drop_rates) or options.drops()):
            keys = chance.keys(self.make_rng("dropout"), rows)
        if options.layers == "scanned" and not self.is_initializing():
            return self._scan(blocks, keys)
        layer_class = _rematerialised(options.remat)
        for index, rate in enumerate(self.drop_rates):
            layer = layer_class(self.heads, rate, options, name=f"layers_{index}")
            blocks = layer(blocks, None if keys is None else chance.fold(keys, index))
        return blocks

    def _scan(self, blocks: Array, keys: Array | None) -> Array:
        """The same layers, their parameters stacked here so that they keep their names."""
        depth = len(self.drop_rates)
        own = self.variables["params"]
        layers = [own[f"layers_{index}"] for index in range(depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        # An attribute of a layer that is traced: a detached layer is made anew in each trace.
        rates = jnp.array(self.drop_rates) if any(self.drop_rates) else None
        layer_class = _rematerialised(self.options.remat, in_loop=True)

        def body(blocks: Array, of_layer: typing.Any) -> tuple[Array, None]:
            index, params, rate = of_layer
            layer = layer_class(
                self.heads, 0.0 if rate is None else rate, self.options, parent=None
            )
            layer_keys = None if keys is None else chance.fold(keys, index)
            return layer.apply({"params": params}, blocks, layer_keys), None

        blocks, _ = jax.lax.scan(body, blocks, (jnp.arange(depth), stacked, rates))
        return blocks


class EncoderLayer(nn.Module):
    """Attention, then MLP; each sees normalised tokens, and its outcome is added to them.

    Attributes:
        heads: of attention.
        drop_rate: chance that a branch of one example is dropped when training.
        options: what all layers have in common.
    """

    heads: int
    drop_rate: float | Array
    options: Options

    @nn.compact
    def __call__(self, blocks: Array, keys: Array | None) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C]; without keys [B] nothing is dropped."""
        options = self.options
        attend = attention.BlockAttention(
            self.heads,
            options.multi_query,
            options.attention_dropout,
            options.compute_dtype,
            name="attention",
        )
        mlp = Mlp(
            options.mlp_ratio,
            options.projection_dropout,
            options.gelu,
            options.compute_dtype,
            name="mlp",
        )
        branch = affine.Norm(options.compute_dtype, name="attention_norm")(blocks)
        branch = _drop(attend(branch, keys), options.projection_dropout, keys, place=1)
        blocks = blocks + _drop(branch, self.drop_rate, keys, place=2, whole=True)
        branch = affine.Norm(options.compute_dtype, name="mlp_norm")(blocks)
        blocks = blocks + _drop(mlp(branch, keys), self.drop_rate, keys, place=5, whole=True)
        return rules.constrain(blocks, "batch", "rows", None, None)


class Mlp(nn.Module):
    """Two affine maps of each token, with a GELU between them.

    Attributes:
        ratio: hidden width over the width of tokens.
        dropout: rate after each map.
        gelu: the exact function, or its tanh approximation.
        compute_dtype: of activations and products.
    """

    ratio: int
    dropout: float
    gelu: Gelu
    compute_dtype: affine.ComputeDtype

    @nn.compact
    def __call__(self, tokens: Array, keys: Array | None) -> Array:
        """New tokens [B, ..., C] from tokens [B, ..., C]; without keys [B] nothing is dropped."""
        *_, C = tokens.shape
        hidden = self.ratio * C
        kernel, bias = affine.Affine((C, hidden), (hidden,), self.compute_dtype, name="hidden")()
        tokens = gelu(affine.contract(tokens, kernel) + bias, self.gelu)
        tokens = _drop(tokens, self.dropout, keys, place=3)
        kernel, bias = affine.Affine((hidden, C), (C,), self.compute_dtype, name="output")()
        return _drop(affine.contract(tokens, kernel) + bias, self.dropout, keys, place=4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Array, kind: Gelu) -> Array:
    """`jax.nn.gelu`; for its gradient `x` alone is kept, and the derivative computed from it."""
    return jax.nn.gelu(x, approximate=kind == "tanh")


def _gelu_gradient(kind: Gelu, x: Array, gradient: Array) -> tuple[Array]:
    _, pull_back = jax.vjp(functools.partial(jax.nn.gelu, approximate=kind == "tanh"), x)
    found: tuple[Array] = pull_back(gradient)
    return found


gelu.defvjp(lambda x, kind: (gelu(x, kind), x), _gelu_gradient)


def _drop(
    x: Array, rate: float | Array, keys: Array | None, place: int, whole: bool = False
) -> Array:
    """Drops parts of `x`; `place` tells apart what a layer drops (attention is place 0)."""
    if keys is None or (isinstance(rate, float) and rate == 0):
        return x
    return chance.drop(x, rate, chance.fold(keys, place), whole)


def _rematerialised(remat: Remat, in_loop: bool = False) -> type[EncoderLayer]:
    if remat == "none":
        return EncoderLayer
    # Products with parameters have no batch dimension; attention's own products do.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    # In a loop nothing can be merged with what was computed before.
    return nn.remat(EncoderLayer, policy=policy, prevent_cse=not in_loop)
