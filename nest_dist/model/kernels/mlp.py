"""The MLP branch: x + factor * output(gelu(hidden(norm(x)))), one kernel each way.

Tokens are rows. The hidden channels pass in chunks, so that the products of one chunk run beside
the GELU of the next. The forward pass keeps the argument of the GELU; the backward pass makes value
and derivative from it. For the gradients of the matrices only two narrow arrays are transposed, the
norm's and the branch's gradient.

Outside of the kernels, `_folded` multiplies scale and shift of the norm into the first matrix.
"""

import functools
import math
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from nest_dist.model.kernels import border, call, norm

Params = Mapping[str, typing.Any]
Block = tuple[int, int]  # of a step: image and block

# gelu(h) = h / 2 * (1 + tanh(SLOPE * h + CUBIC * h^3))
SLOPE = math.sqrt(2 / math.pi)
CUBIC = 0.044715 * SLOPE
# From this width on the forward norm adds along lanes: its two transpositions would cost more.
WIDE = 384


def plain(
    factor: Array, x: Array, of_norm: Params, params: Params, rounded: call.Rounding = call.exact
) -> Array:
    """What the kernels compute; `rounded` of each matrix is multiplied, else as of `branch`."""
    hidden, output = params["hidden"], params["output"]
    tokens = rounded(norm.plain(x, of_norm))
    values = rounded(jax.nn.gelu(tokens @ rounded(hidden["kernel"]) + hidden["bias"]))
    added = values @ rounded(output["kernel"]) + output["bias"]
    return x + factor[:, None, None, None] * added


def branch(
    factor: Array, x: Array, of_norm: Params, params: Params, columns: int | None = None
) -> Array:
    """New tokens [B, T, N, C], or with `columns` images as rows of blocks [B, R, S, W, C].

    Args:
        factor: float32 [B]; 0 drops the branch of an image.
        x: tokens [B, T, N, C].
        of_norm: "scale" and "bias" [C].
        params: "hidden" with "kernel" [C, M] and "bias" [M], "output" with [M, C] and [C].
        columns: of blocks in an image.
    """
    B, T, N, C = x.shape
    several = call.merged(T, N) if columns is None else 1
    merged = x.reshape(B, T // several, several * N, C)
    y = _branch(columns, factor, merged, *_folded(of_norm, params))
    return y if columns is not None else y.reshape(x.shape)


def _folded(of_norm: Params, params: Params) -> tuple[Array, ...]:
    """Two matrices [C, M] and [M, C], each before its bias [1, M] and [1, C]."""
    hidden, output = params["hidden"], params["output"]
    shift = jnp.dot(of_norm["bias"], hidden["kernel"], precision="highest")
    return (
        of_norm["scale"][:, None] * hidden["kernel"],
        (hidden["bias"] + shift)[None],
        output["kernel"].astype(jnp.float32),
        output["bias"].astype(jnp.float32)[None],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branch(
    columns: int | None,
    factor: Array,
    x: Array,
    w: Array,
    bias: Array,
    out: Array,
    out_bias: Array,
) -> Array:
    return _with_residuals(columns, factor, x, w, bias, out, out_bias)[0]


def _with_residuals(
    columns: int | None,
    factor: Array,
    x: Array,
    w: Array,
    bias: Array,
    out: Array,
    out_bias: Array,
) -> tuple[Array, tuple[Array, ...]]:
    B, T, N, C = x.shape
    products = call.products()
    grid = call.grid(call.blocks_at_once(N, C), B, T, columns)
    w, out = w.astype(products), out.astype(products)
    y, hidden = call.run(
        _forward if columns is None else _forward_to_image,
        "mlp_forward",
        grid,
        [call.in_scalars(factor), grid.by_block(x), *map(grid.whole, (w, bias, out, out_bias))],
        [
            grid.by_block(jax.ShapeDtypeStruct(border.result(x, columns), x.dtype)),
            grid.by_block(jax.ShapeDtypeStruct((B, T, N, w.shape[1]), products)),
        ],
        [] if columns is None else [grid.scratch((N, C), x.dtype)],
    )
    return y, (factor, x, hidden, w, out)


def _gradients(
    columns: int | None, residuals: tuple[Array, ...], of_y: Array
) -> tuple[Array | None, ...]:
    factor, x, hidden, w, out = residuals
    B, T, N, C = x.shape
    M = w.shape[1]
    grid = call.grid(call.blocks_at_once(N, C) / 2, B, T, columns)
    of_x, *totals = call.run(
        _backward if columns is None else _backward_from_image,
        "mlp_backward",
        grid,
        [
            call.in_scalars(factor),
            *map(grid.by_block, (x, of_y, hidden)),
            *map(grid.whole, (w, out)),
        ],
        [
            grid.by_block(jax.ShapeDtypeStruct(x.shape, x.dtype)),
            *(grid.total(*shape) for shape in ((C, M), (1, M), (C, M), (1, C))),
        ],
        [] if columns is None else [grid.scratch((N, C), x.dtype)],
    )
    of_w, of_bias, of_out, of_out_bias = (total.sum(0) for total in totals)
    return None, of_x, of_w, of_bias, of_out.T, of_out_bias


_branch.defvjp(_with_residuals, _gradients)


def memory(N: int, C: int, M: int) -> int:
    """Bytes on the chip for the larger of the two kernels, about."""
    step = max(1, int(call.blocks_at_once(N, C) / 2))
    tokens, hidden = call.tiled_bytes(N, C), call.tiled_bytes(N, M, "bfloat16")
    matrices = 2 * (call.tiled_bytes(C, M) + call.tiled_bytes(C, M, "bfloat16"))
    return 2 * step * (3 * tokens + hidden) + matrices + 6 * step * tokens


def _chunks(M: int, C: int) -> list[slice]:
    """The hidden channels in slices of about 400."""
    width = 384 if C < WIDE else 512
    return [slice(start, min(start + width, M)) for start in range(0, M, width)]


def _forward(*refs: call.Ref) -> None:
    factor_ref, x_ref, w_ref, bias_ref, out_ref, out_bias_ref, y_ref, hidden_ref = refs
    (*_, C), M = x_ref.shape, w_ref.shape[1]
    every, dtype = call.every_block(x_ref), w_ref.dtype

    @call.unless_dropped(factor_ref, x_ref, y_ref)
    def compute(factors: list[Array]) -> None:
        def tokens(at: Block) -> Array:
            if C >= WIDE:
                return norm.standardized(x_ref[at].astype(jnp.float32), 1)[0].astype(dtype)
            return jnp.transpose(norm.columns(x_ref[at])[0].astype(dtype))

        standard = {at: tokens(at) for at in every}  # [N, C]
        outputs = dict.fromkeys(every, out_bias_ref[...])
        for chunk in _chunks(M, C):
            for at in every:
                hidden = call.dot(standard[at], w_ref[:, chunk]) + bias_ref[:, chunk]
                hidden_ref[(*at, slice(None), chunk)] = hidden.astype(dtype)
                outputs[at] = outputs[at] + call.dot(_gelu(hidden)[0].astype(dtype), out_ref[chunk])
        for at in every:
            y = x_ref[at].astype(jnp.float32) + factors[at[0]] * outputs[at]
            y_ref[at] = y.astype(y_ref.dtype)


def _forward_to_image(*refs: call.Ref) -> None:
    *inputs, image_ref, hidden_ref, tokens_ref = refs
    _forward(*inputs, tokens_ref, hidden_ref)
    border.join(tokens_ref, image_ref)


def _backward_from_image(*refs: call.Ref) -> None:
    factor_ref, x_ref, of_image_ref, *rest, of_tokens_ref = refs
    border.cut(of_image_ref, of_tokens_ref)
    _backward(factor_ref, x_ref, of_tokens_ref, *rest)


def _backward(*refs: call.Ref) -> None:
    """Gives the gradient of out as [C, M]."""
    factor_ref, x_ref, of_y_ref, hidden_ref, w_ref, out_ref, of_x_ref, *totals = refs
    *of_matrices, of_out_bias_ref = totals  # of w, its bias, and out
    (*_, C), M = x_ref.shape, w_ref.shape[1]
    every, dtype = call.every_block(x_ref), w_ref.dtype

    @pl.when(call.first_step())
    def begin() -> None:
        for ref in totals:
            ref[...] = jnp.zeros_like(ref)

    @call.unless_dropped(factor_ref, of_y_ref, of_x_ref)
    def compute(factors: list[Array]) -> None:
        standard, of_branch, of_branch_columns, of_tokens = {}, {}, {}, {}
        of_out_bias = jnp.zeros((1, C))
        for at in every:
            given = factors[at[0]] * of_y_ref[at].astype(jnp.float32)
            of_out_bias += jnp.sum(given, 0, keepdims=True)
            standard[at] = norm.columns(x_ref[at])[0].astype(dtype)  # [C, N]
            of_branch[at] = given.astype(dtype)  # [N, C]
            of_branch_columns[at] = jnp.transpose(of_branch[at])  # [C, N]
            of_tokens[at] = jnp.zeros(given.shape)
        of_out_bias_ref[...] += of_out_bias

        def prepared(chunk: slice, at: Block) -> tuple[Array, ...]:
            value, slope = _gelu(hidden_ref[(*at, slice(None), chunk)].astype(jnp.float32))
            of_hidden = call.dot(of_branch[at], out_ref[chunk], call.NT) * slope  # [N, chunk]
            of_bias = jnp.sum(of_hidden, 0, keepdims=True)
            return value.astype(dtype), of_hidden.astype(dtype), of_bias

        turns = [(chunk, at) for chunk in _chunks(M, C) for at in every]
        following = prepared(*turns[0])
        sums: tuple[Array, ...] = ()
        for turn, (chunk, at) in enumerate(turns):
            value, of_hidden, of_bias = following
            if turn + 1 < len(turns):  # before the products, so that they hide it
                following = prepared(*turns[turn + 1])
            of_w = call.dot(standard[at], of_hidden)  # [C, chunk]
            of_out = call.dot(of_branch_columns[at], value)  # [C, chunk]
            gradients = of_w, of_bias, of_out
            sums = gradients if at == every[0] else tuple(map(jnp.add, sums, gradients))
            of_tokens[at] += call.dot(of_hidden, w_ref[:, chunk], call.NT)  # [N, C]
            if at == every[-1]:
                for ref, total in zip(of_matrices, sums, strict=True):
                    ref[:, chunk] += total
        for at in every:
            of_columns = norm.standardized_gradient(
                *norm.columns(x_ref[at]), jnp.transpose(of_tokens[at]), 0
            )
            of_x = of_y_ref[at].astype(jnp.float32) + jnp.transpose(of_columns)
            of_x_ref[at] = of_x.astype(of_x_ref.dtype)


def _gelu(x: Array) -> tuple[Array, Array]:
    """GELU in its tanh form, and its derivative."""
    square = x * x
    tanh = jnp.tanh(x * (SLOPE + CUBIC * square))
    half = 0.5 + 0.5 * tanh
    return x * half, half + (0.5 * x) * (1 - tanh * tanh) * (SLOPE + 3 * CUBIC * square)
