"""One level of the hierarchy: places, then layers that work inside each block."""

import dataclasses
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.model import affine, attention
from nest_dist.parallel import rules

Gelu = typing.Literal["tanh", "exact"]
Remat = typing.Literal["none", "dots", "layer"]


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
    """

    multi_query: bool
    mlp_ratio: int
    attention_dropout: float
    projection_dropout: float
    gelu: Gelu
    compute_dtype: affine.ComputeDtype
    remat: Remat


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
    def __call__(self, blocks: Array, train: bool) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C]."""
        _, T, N, C = blocks.shape
        places = self.param("position_embedding", affine.initial, (1, T, N, C), jnp.float32)
        blocks = blocks + places.astype(blocks.dtype)
        layer_class = _rematerialised(self.options.remat)
        for index, rate in enumerate(self.drop_rates):
            layer = layer_class(self.heads, rate, self.options, name=f"layers_{index}")
            blocks = layer(blocks, train)
        return blocks


class EncoderLayer(nn.Module):
    """Attention, then MLP; each sees normalised tokens, and its outcome is added to them.

    Attributes:
        heads: of attention.
        drop_rate: chance that a branch of one example is dropped when training.
        options: what all layers have in common.
    """

    heads: int
    drop_rate: float
    options: Options

    @nn.compact
    def __call__(self, blocks: Array, train: bool) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C]."""
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
        drop = nn.Dropout(options.projection_dropout, deterministic=not train)

        branch = affine.norm(options.compute_dtype, "attention_norm")(blocks)
        blocks = blocks + self._drop_path(drop(attend(branch, train)), train)
        branch = affine.norm(options.compute_dtype, "mlp_norm")(blocks)
        blocks = blocks + self._drop_path(mlp(branch, train), train)
        return rules.constrain(blocks, "batch", "blocks", None, None)

    def _drop_path(self, branch: Array, train: bool) -> Array:
        if not train or self.drop_rate == 0:
            return branch
        return drop_examples(branch, self.drop_rate, self.make_rng("dropout"))


def drop_examples(branch: Array, rate: float, key: Array) -> Array:
    """Zeroes whole examples of [B, ...] with chance `rate`, and scales up those that stay."""
    stays = jax.random.bernoulli(key, 1 - rate, (branch.shape[0],) + (1,) * (branch.ndim - 1))
    return jnp.where(stays, branch / (1 - rate), 0).astype(branch.dtype)


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
    def __call__(self, tokens: Array, train: bool) -> Array:
        """New tokens [..., C] from tokens [..., C]."""
        *_, C = tokens.shape
        hidden = self.ratio * C
        drop = nn.Dropout(self.dropout, deterministic=not train)
        kernel, bias = affine.Affine((C, hidden), (hidden,), self.compute_dtype, name="hidden")()
        tokens = drop(jax.nn.gelu(tokens @ kernel + bias, approximate=self.gelu == "tanh"))
        kernel, bias = affine.Affine((hidden, C), (C,), self.compute_dtype, name="output")()
        return drop(tokens @ kernel + bias)


def _rematerialised(remat: Remat) -> type[EncoderLayer]:
    if remat == "none":
        return EncoderLayer
    # Products with parameters have no batch dimension; attention's own products do.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    train = 2  # its place among the arguments, after the layer itself and the blocks
    return nn.remat(EncoderLayer, policy=policy, static_argnums=(train,))
