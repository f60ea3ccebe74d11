"""The attention branch: x + factor * projection(attention(norm(x))), one kernel each way.

`attention_bodies` holds the kernels. Outside of them, `_folded` multiplies scale and shift of the
norm, the size of the scores and the biases into the matrices.
"""

import functools
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.model.kernels import attention_bodies as bodies
from nest_dist.model.kernels import border, call, norm

Params = Mapping[str, typing.Any]
Residuals = tuple[Array, Array, Array | None, Array, Array, Array, Array]

# Channels of a head: complete registers of bfloat16, and 128 lanes hold complete heads.
HEADS = (16, 32, 64, 128)


def plain(
    factor: Array, x: Array, of_norm: Params, params: Params, rounded: call.Rounding = call.exact
) -> Array:
    """What the kernels compute; `rounded` of each matrix is multiplied, else as of `branch`."""
    D = params["query"]["kernel"].shape[-1]
    tokens = rounded(norm.plain(x, of_norm))
    query, key, value = (
        jnp.einsum("btnc,ckd->btnkd", tokens, rounded(params[name]["kernel"]))
        + params[name]["bias"]
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("btnkd,btmkd->btknm", rounded(query * D**-0.5), rounded(key))
    weights = rounded(jax.nn.softmax(scores))
    mixed = rounded(jnp.einsum("btknm,btmkd->btnkd", weights, rounded(value)))
    out = params["output"]
    projected = jnp.einsum("btnkd,kdc->btnc", mixed, rounded(out["kernel"])) + out["bias"]
    return x + factor[:, None, None, None] * projected


def branch(
    factor: Array, x: Array, of_norm: Params, params: Params, position: Array | None = None
) -> Array:
    """New tokens [B, T, N, C].

    Args:
        factor: float32 [B]; 0 drops the branch of an image.
        x: tokens [B, T, N, C]; with `position`, images as rows of blocks [B, R, S, W, C].
        of_norm: "scale" and "bias" [C].
        params: "query", "key", "value" with "kernel" [C, K, D] and "bias" [K, D]; "output" with
            "kernel" [K, D, C] and "bias" [C].
        position: embeddings [T, N, C], to be added to the tokens first.
    """
    heads = params["query"]["kernel"].shape[1]
    if position is not None:
        return _branch(heads, 1, factor, x, position, *_folded(of_norm, params))
    B, T, N, C = x.shape
    several = call.merged(T, N)
    merged = x.reshape(B, T // several, several * N, C)
    y = _branch(heads, several, factor, merged, None, *_folded(of_norm, params))
    return y.reshape(x.shape)


def _folded(of_norm: Params, params: Params) -> tuple[Array, ...]:
    """Matrices [3C, C] to queries, keys and values and [C, C] back, and two biases [C, 1].

    The bias of keys adds the same to all scores of a query, which softmax ignores; that of values
    passes through the weights, whose sum is 1.
    """
    scale, shift = (of_norm[name].astype(jnp.float32) for name in ("scale", "bias"))
    C, D = len(scale), params["query"]["kernel"].shape[-1]
    query, key, value, out = (
        params[name]["kernel"].reshape(C, C).astype(jnp.float32)
        for name in ("query", "key", "value", "output")
    )
    unit = D**-0.5 / bodies.LN2  # 2 ** (x / LN2) is e ** x
    highest = functools.partial(jnp.dot, precision="highest")
    query_bias = unit * (highest(shift, query) + params["query"]["bias"].reshape(C))
    value_bias = highest(shift, value) + params["value"]["bias"].reshape(C)
    out_bias = params["output"]["bias"] + highest(value_bias, out)
    w = jnp.concatenate([unit * query, key, value], 1) * scale[:, None]
    return w.T, query_bias[:, None], out, out_bias[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _branch(
    heads: int,
    several: int,
    factor: Array,
    x: Array,
    position: Array | None,
    w: Array,
    bias: Array,
    out: Array,
    out_bias: Array,
) -> Array:
    return _with_residuals(heads, several, factor, x, position, w, bias, out, out_bias)[0]


def _with_residuals(
    heads: int,
    several: int,
    factor: Array,
    x: Array,
    position: Array | None,
    w: Array,
    bias: Array,
    out: Array,
    out_bias: Array,
) -> tuple[Array, Residuals]:
    (B, T, N, C), columns = border.shape(x)
    products = call.products()
    grid = call.grid(call.blocks_at_once(N, C), B, T, columns)
    matrices = w.astype(products), bias, out.T.astype(products), out_bias
    y, kept, log_sums = call.run(
        functools.partial(bodies.forward, heads=heads, several=several)
        if position is None
        else functools.partial(bodies.forward_from_image, heads=heads),
        "attention_forward",
        grid,
        [
            call.in_scalars(factor),
            grid.by_block(x),
            *_of(grid, position),
            *map(grid.whole, matrices),
        ],
        [
            grid.by_block(jax.ShapeDtypeStruct((B, T, N, C), x.dtype)),
            grid.by_block(jax.ShapeDtypeStruct((B, T, 4 * C, N), products)),
            grid.by_block(jax.ShapeDtypeStruct((B, T, heads, N), jnp.float32)),
        ],
        [] if position is None else [grid.scratch((N, C), x.dtype)],
    )
    return y, (factor, x, position, kept, log_sums, w, out)


def _gradients(
    heads: int, several: int, residuals: Residuals, of_y: Array
) -> tuple[Array | None, ...]:
    factor, x, position, kept, log_sums, w, out = residuals
    (B, T, N, C), columns = border.shape(x)
    products = call.products()
    grid = call.grid(call.blocks_at_once(N, C) / 2, B, T, columns)
    matrices = w.T.astype(products), out.astype(products)
    sums = [grid.total(*shape) for shape in ((3 * C, C), (C, 1), (C, C), (1, C))]
    scratch = [grid.scratch((4 * C, N), products)]
    if position is not None:
        sums.append(grid.total_of_position(T, N, C))
        scratch += [grid.scratch((N, C), x.dtype)] * 2
    of_x, *totals = call.run(
        functools.partial(bodies.backward, heads=heads, several=several)
        if position is None
        else functools.partial(bodies.backward_to_image, heads=heads),
        "attention_backward",
        grid,
        [
            call.in_scalars(factor),
            *(grid.by_block(x), *_of(grid, position)),
            *map(grid.by_block, (of_y, kept, log_sums)),
            *map(grid.whole, matrices),
        ],
        [grid.by_block(jax.ShapeDtypeStruct(x.shape, x.dtype)), *sums],
        scratch,
    )
    of_w, of_bias, of_out, of_out_bias, *rest = (total.sum(0) for total in totals)
    of_position = None if position is None else rest[0].astype(position.dtype)
    return None, of_x, of_position, of_w, of_bias, of_out, of_out_bias.T


_branch.defvjp(_with_residuals, _gradients)


def _of(grid: call.Grid, position: Array | None) -> list[call.Operand]:
    return [] if position is None else [grid.of_position(position)]


def memory(N: int, C: int, heads: int) -> int:
    """Bytes on the chip for the larger of the two kernels, about."""
    step = max(1, int(call.blocks_at_once(N, C) / 2))
    tokens, columns = call.tiled_bytes(N, C), call.tiled_bytes(C, N, "bfloat16")
    in_flight = 2 * step * (3 * tokens + 4 * columns + call.tiled_bytes(heads, N))
    matrices = 4 * (call.tiled_bytes(C, C) + call.tiled_bytes(C, C, "bfloat16"))
    return in_flight + matrices + 4 * step * columns + 12 * call.tiled_bytes(N, N)
