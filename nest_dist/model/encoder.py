"""One level of the hierarchy: position embeddings, then layers that work inside each block."""

import dataclasses
import math
import typing
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import rng
from nest_dist.model import attention, linen, patching
from nest_dist.model.kernels import attention as attention_kernels
from nest_dist.model.kernels import border, call
from nest_dist.model.kernels import mlp as mlp_kernels
from nest_dist.sharding import rules

Remat = typing.Literal["none", "dots", "layer"]
Layers = typing.Literal["unrolled", "scanned"]
Kernels = typing.Literal["auto", "fused", "cudnn", "plain"]


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
            parameters ("dots"), or everything inside a layer.
        layers: "unrolled" copies the program for every layer of a level; "scanned" repeats one
            program, which compiles faster and runs slower.
        kernels: "fused" computes each branch by one kernel for TPUs, "cudnn" attention by cuDNN's
            kernel for GPUs, all others by XLA.
    """

    multi_query: bool
    mlp_ratio: int
    attention_dropout: float
    projection_dropout: float
    gelu: linen.Gelu
    compute_dtype: linen.ComputeDtype
    remat: Remat
    layers: Layers = "unrolled"
    kernels: Kernels = "plain"


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
    """Adds position embeddings, then applies one layer after another.

    Attributes:
        heads: of attention at this level.
        drop_rates: of the layers, first layer first; see `EncoderLayer`.
        options: what all levels have in common.
        grid: rows and columns of blocks in an image.
        aggregated: whether an aggregation follows.
    """

    heads: int
    drop_rates: tuple[float, ...]
    options: Options
    grid: patching.Grid = (1, 1)
    aggregated: bool = False

    @nn.compact
    def __call__(self, blocks: Array, batch_rows: Array | None, bias: Array | None = None) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C].

        Args:
            blocks: tokens.
            batch_rows: int32 [B], rows of the examples in the global batch, which key the random
                numbers; None if nothing is dropped.
            bias: [C], added with the position embeddings.
        """
        options = self.options
        _, T, N, C = blocks.shape
        embedding = self.param("position_embedding", linen.kernel_init, (1, T, N, C), jnp.float32)
        position = linen.gather_parameter("/position_embedding", embedding, options.compute_dtype)
        if bias is not None:
            position = position + bias
        keys, dropout = None, max(options.attention_dropout, options.projection_dropout)
        if batch_rows is not None and (any(self.drop_rates) or dropout):
            keys = rng.keys(self.make_rng("dropout"), batch_rows)
        if options.layers == "scanned" and not self.is_initializing():
            return self._scan(blocks + position, keys)
        at_border = self._kernels_at_border(N)
        if not at_border:
            blocks = blocks + position
        layer_class, last = self._layer_class(), len(self.drop_rates) - 1
        for index, rate in enumerate(self.drop_rates):
            joins = at_border and self.aggregated and index == last
            layer = layer_class(self.heads, rate, options, self.grid, joins, name=f"layers_{index}")
            layer_keys = None if keys is None else rng.fold(keys, index)
            added = position if at_border and index == 0 else None
            blocks = layer(blocks, layer_keys, added)
        return blocks

    def _kernels_at_border(self, tokens: int) -> bool:
        """Whether the first kernel reads an image, and the last writes one; not of small blocks."""
        divided = rules.active() is None or rules.if_divided("rows", self.grid[0])
        fused = self.options.kernels == "fused" and not self.is_initializing()
        return fused and bool(divided) and call.merged(math.prod(self.grid), tokens) == 1

    def _scan(self, blocks: Array, keys: Array | None) -> Array:
        """The same layers, their parameters stacked here so that they keep their names."""
        depth = len(self.drop_rates)
        own = self.variables["params"]
        params = [own[f"layers_{index}"] for index in range(depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        # Traced, and yet an attribute: a detached layer is made anew in each trace.
        rates = jnp.array(self.drop_rates) if any(self.drop_rates) else None
        layer_class = self._layer_class(in_loop=True)

        def body(
            blocks: Array, of_layer: tuple[Array, dict[str, object], Array | None]
        ) -> tuple[Array, None]:
            index, params, rate = of_layer
            layer = layer_class(
                self.heads, 0.0 if rate is None else rate, self.options, parent=None
            )
            layer_keys = None if keys is None else rng.fold(keys, index)
            return layer.apply({"params": params}, blocks, layer_keys), None

        blocks, _ = jax.lax.scan(body, blocks, (jnp.arange(depth), stacked, rates))
        return blocks

    def _layer_class(self, in_loop: bool = False) -> type["EncoderLayer"]:
        remat = self.options.remat
        layer = linen.gathered(EncoderLayer, self, self.options.compute_dtype)
        if remat == "none":
            return layer
        # Products with parameters have no batch dimension; attention's own products do.
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        # In a loop, the compiler cannot merge what is computed again with the forward pass.
        return nn.remat(layer, policy=dots if remat == "dots" else None, prevent_cse=not in_loop)


class EncoderLayer(nn.Module):
    """Attention, then MLP; a norm precedes and a residual connection bypasses both.

    Attributes:
        heads: of attention.
        drop_rate: probability that a branch of one example is dropped when training.
        options: what all layers have in common.
        grid: rows and columns of blocks in an image.
        joins: whether the last kernel writes an image.
    """

    heads: int
    drop_rate: float | Array
    options: Options
    grid: patching.Grid = (1, 1)
    joins: bool = False

    @nn.compact
    def __call__(self, blocks: Array, keys: Array | None, position: Array | None = None) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C]; without keys [B] nothing is dropped.

        `position` [1, T, N, C] is given to a kernel that adds it.
        """
        options = self.options
        if options.kernels == "fused" and not self.is_initializing():
            return self._fused(blocks, keys, position)
        attend = attention.BlockAttention(
            self.heads,
            options.multi_query,
            options.attention_dropout,
            options.compute_dtype,
            options.kernels == "cudnn",
            name="attention",
        )
        mlp = Mlp(options, name="mlp")
        branch = linen.LayerNorm(options.compute_dtype, name="attention_norm")(blocks)
        branch = attend(branch, keys)
        branch = _drop(rng.dropout, branch, options.projection_dropout, keys, site=1)
        blocks = blocks + _drop(rng.drop_path, branch, self.drop_rate, keys, site=2)
        branch = linen.LayerNorm(options.compute_dtype, name="mlp_norm")(blocks)
        branch = mlp(branch, keys)
        blocks = blocks + _drop(rng.drop_path, branch, self.drop_rate, keys, site=5)
        return rules.constrain(blocks, "batch", "rows", None, None)

    def _fused(self, blocks: Array, keys: Array | None, position: Array | None) -> Array:
        """The same by kernels, which at the border of a level read or write an image.

        XLA cancels the change of layout here against the opposite one outside of the level.
        """

        def on_device(
            params: typing.Any,
            of_attention: Array,
            of_mlp: Array,
            blocks: Array,
            position: Array | None = None,
        ) -> Array:
            embeddings = None if position is None else position[0]
            with jax.named_scope("attention"):
                norm, branch = params["attention_norm"], _for_all_heads(params["attention"])
                blocks = attention_kernels.branch(of_attention, blocks, norm, branch, embeddings)
            with jax.named_scope("mlp"):
                norm, branch = params["mlp_norm"], params["mlp"]
                return mlp_kernels.branch(
                    of_mlp, blocks, norm, branch, columns if self.joins else None
                )

        B, _, N, C = blocks.shape
        side, (_, columns) = math.isqrt(N), self.grid
        kept = jnp.ones((B, 1, 1, 1))
        of_attention, of_mlp = (
            _drop(rng.drop_path, kept, self.drop_rate, keys, site).reshape(-1) for site in (2, 5)
        )
        cut, joined = ("batch", "rows", None, None), ("batch", "rows", None, None, None)
        arrays = [(of_attention, ("batch",)), (of_mlp, ("batch",)), (blocks, cut)]
        if position is not None:
            image = border.rows_of_blocks(patching.to_image(blocks, self.grid), side)
            arrays[2:] = [(image, joined), (position, (None, "rows", None, None))]
        result: tuple[tuple[int, ...], rules.Axes] = blocks.shape, cut
        if self.joins:
            result = border.result(blocks, columns), joined
        made = rules.on_each_device(on_device, self.variables["params"], arrays, result)
        if self.joins:
            made = patching.to_blocks(made.reshape(B, -1, columns * side, C), side)
        return rules.constrain(made, *cut)


def _for_all_heads(attention: typing.Any) -> typing.Any:
    """Parameters of attention, those of a head that serves all repeated for each."""
    heads = attention["query"]["kernel"].shape[-2]

    def repeated(leaf: Array) -> Array:
        return jnp.repeat(leaf, heads // leaf.shape[-2], -2)

    shared = {name: jax.tree.map(repeated, attention[name]) for name in ("key", "value")}
    return {**attention, **shared}


class Mlp(nn.Module):
    """Two dense layers on each token, with a GELU between them."""

    options: Options

    @nn.compact
    def __call__(self, tokens: Array, keys: Array | None) -> Array:
        """New tokens [B, ..., C] from tokens [B, ..., C]; without keys [B] nothing is dropped."""
        *_, C = tokens.shape
        options, rate = self.options, self.options.projection_dropout
        width = options.mlp_ratio * C
        hidden = linen.Dense(width, dtype=options.compute_dtype, name="hidden")(tokens)
        hidden = _drop(rng.dropout, linen.gelu(hidden, options.gelu), rate, keys, site=3)
        output = linen.Dense(C, dtype=options.compute_dtype, name="output")(hidden)
        return _drop(rng.dropout, output, rate, keys, site=4)


def _drop(
    drop: Callable[[Array, float | Array, Array], Array],
    x: Array,
    rate: float | Array,
    keys: Array | None,
    site: int,
) -> Array:
    """`drop` of `x`, its keys folded with the site in a layer; attention's dropout is site 0."""
    if keys is None or (isinstance(rate, float) and rate == 0):
        return x
    return drop(x, rate, rng.fold(keys, site))
