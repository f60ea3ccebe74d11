"""The attention branch: x + factor * projection(attention(norm(x))), one kernel each way.

    tokens as rows    x [N, C]                                       y = x + factor * transposed
                         | transpose                                             ^ transpose
    as columns        norm [C, N] -> q, k, v [C, N]           mixed [C, N] -> projected [C, N]
                                       | k as rows                ^
    for each head        scores [N keys, N queries] -> softmax -> v @ weights [D, N queries]

Keys lie along sublanes, so the sums of a softmax are additions of registers, and heads are slices
of sublanes. The matrix units take a head's keys from lanes, where a slice would need rotations: so
keys of 128 lanes meet queries in which the rows of other heads are 0. Several heads go together
through each stage, which hides the latency of one behind the others.

Outside of the kernels, `_folded` multiplies scale and shift of the norm, the size of the scores and
the biases into the matrices. Scores are powers of 2.
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
Residuals = tuple[Array, Array, Array | None, Array, Array, Array, Array]
Block = tuple[int, int]  # of a step: image and block

LANES = 128
# Channels of a head: complete registers of bfloat16, and 128 lanes hold complete heads.
HEADS = (16, 32, 64, 128)
LN2 = math.log(2)


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
    return _branch(heads, factor, x, position, *_folded(of_norm, params))


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
    unit = D**-0.5 / LN2  # 2 ** (x / LN2) is e ** x
    highest = functools.partial(jnp.dot, precision="highest")
    query_bias = unit * (highest(shift, query) + params["query"]["bias"].reshape(C))
    value_bias = highest(shift, value) + params["value"]["bias"].reshape(C)
    out_bias = params["output"]["bias"] + highest(value_bias, out)
    w = jnp.concatenate([unit * query, key, value], 1) * scale[:, None]
    return w.T, query_bias[:, None], out, out_bias[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _branch(
    heads: int,
    factor: Array,
    x: Array,
    position: Array | None,
    w: Array,
    bias: Array,
    out: Array,
    out_bias: Array,
) -> Array:
    return _with_residuals(heads, factor, x, position, w, bias, out, out_bias)[0]


def _with_residuals(
    heads: int,
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
        functools.partial(_forward if position is None else _forward_from_image, heads=heads),
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


def _gradients(heads: int, residuals: Residuals, of_y: Array) -> tuple[Array | None, ...]:
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
        functools.partial(_backward if position is None else _backward_to_image, heads=heads),
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


def _forward(*refs: call.Ref, heads: int) -> None:
    """`kept`: queries, keys, values and mixed values of each block as columns [4C, N]."""
    factor_ref, x_ref, w_ref, bias_ref, out_ref, out_bias_ref, y_ref, kept_ref, log_sums_ref = refs
    *_, C = x_ref.shape
    D, every, dtype = C // heads, call.every_block(x_ref), w_ref.dtype
    query, key, value, mixed = (slice(part * C, part * C + C) for part in range(4))

    @call.unless_dropped(factor_ref, x_ref, y_ref)
    def compute(factors: list[Array]) -> None:
        tokens = {at: norm.columns(x_ref[at])[0].astype(dtype) for at in every}
        for part in (query, key, value):
            for at in every:
                projected = call.dot(w_ref[part], tokens[at])  # [C, N]
                if part == query:
                    projected = projected + bias_ref[...]
                kept_ref[(*at, part)] = projected.astype(dtype)
        keys = {at: jnp.transpose(kept_ref[(*at, key)]) for at in every}  # [N, C]
        for pairs in _together(every, heads):
            scores, weights = {}, {}
            for at, head in pairs:
                rows, lanes = _alone(kept_ref, at, head, D)
                scores[at, head] = call.dot(keys[at][:, lanes], rows)  # [N keys, N queries]
            for at, head in pairs:
                highest = jnp.max(scores[at, head], 0, keepdims=True)
                powers = jnp.exp2(scores[at, head] - highest)
                total = jnp.sum(powers, 0, keepdims=True)
                log_sums_ref[(*at, slice(head, head + 1))] = highest + jnp.log2(total)
                weights[at, head] = powers.astype(dtype), call.reciprocal(total)
            for at, head in pairs:
                powers, scale = weights[at, head]
                of_head = call.dot(kept_ref[(*at, _rows(head, D, value))], powers)  # [D, N]
                kept_ref[(*at, _rows(head, D, mixed))] = (of_head * scale).astype(dtype)
        for at in every:
            projected = call.dot(out_ref[...], kept_ref[(*at, mixed)]) + out_bias_ref[...]  # [C, N]
            y = x_ref[at].astype(jnp.float32) + factors[at[0]] * jnp.transpose(projected)
            y_ref[at] = y.astype(y_ref.dtype)


def _forward_from_image(*refs: call.Ref, heads: int) -> None:
    factor_ref, image_ref, position_ref, *rest, tokens_ref = refs
    border.read(image_ref, position_ref, tokens_ref)
    _forward(factor_ref, tokens_ref, *rest, heads=heads)


def _backward_to_image(*refs: call.Ref, heads: int) -> None:
    factor_ref, image_ref, position_ref, *rest = refs
    *inputs, of_image_ref, of_w, of_bias, of_out, of_out_bias, of_position_ref = rest[:-3]
    of_kept_ref, tokens_ref, of_tokens_ref = rest[-3:]
    border.read(image_ref, position_ref, tokens_ref)
    sums = of_w, of_bias, of_out, of_out_bias
    _backward(factor_ref, tokens_ref, *inputs, of_tokens_ref, *sums, of_kept_ref, heads=heads)
    border.join(of_tokens_ref, of_image_ref)

    @pl.when(call.first_turn())
    def begin() -> None:
        of_position_ref[...] = jnp.zeros_like(of_position_ref)

    for at in call.every_block(of_tokens_ref):
        of_position_ref[at[1]] += of_tokens_ref[at].astype(jnp.float32)


def _backward(*refs: call.Ref, heads: int) -> None:
    """`of_kept`: the gradient of `kept`; of its mixed values it is that of the projection."""
    factor_ref, x_ref, of_y_ref, kept_ref, log_sums_ref, w_ref, out_ref, of_x_ref, *sums = refs
    of_w_ref, of_bias_ref, of_out_ref, of_out_bias_ref, of_kept_ref = sums
    *_, C = x_ref.shape
    D, every, dtype = C // heads, call.every_block(x_ref), w_ref.dtype
    query, key, value, mixed = (slice(part * C, part * C + C) for part in range(4))

    @pl.when(call.first_step())
    def begin() -> None:
        for ref in (of_w_ref, of_bias_ref, of_out_ref, of_out_bias_ref):
            ref[...] = jnp.zeros_like(ref)

    @call.unless_dropped(factor_ref, of_y_ref, of_x_ref)
    def compute(factors: list[Array]) -> None:
        of_branch = {
            at: factors[at[0]] * of_y_ref[at].astype(jnp.float32) for at in every
        }  # [N, C]
        of_out_bias_ref[...] += sum(jnp.sum(each, 0, keepdims=True) for each in of_branch.values())
        keys = {at: jnp.transpose(kept_ref[(*at, key)]) for at in every}  # [N, C]
        values = {at: jnp.transpose(kept_ref[(*at, value)]) for at in every}
        of_out, totals = jnp.zeros((C, C)), {}
        for at in every:
            given = of_branch[at].astype(dtype)
            of_mixed = call.dot(out_ref[...], given, call.NT)  # [C, N]
            of_kept_ref[(*at, mixed)] = of_mixed.astype(dtype)
            for head in range(heads):
                of_head = kept_ref[(*at, _rows(head, D, mixed))].astype(jnp.float32)
                of_head = of_head * of_mixed[_rows(head, D)]
                totals[at, head] = jnp.sum(of_head, 0, keepdims=True)
            of_out += call.dot(kept_ref[(*at, mixed)], given)  # [C, C]
        of_out_ref[...] += of_out
        for pairs in _together(every, heads):
            scores, of_weights, weights, of_scores = {}, {}, {}, {}
            for at, head in pairs:
                rows, lanes = _alone(kept_ref, at, head, D)
                scores[at, head] = call.dot(keys[at][:, lanes], rows)  # [N keys, N queries]
                rows, lanes = _alone(of_kept_ref, at, head, D, mixed)
                of_weights[at, head] = call.dot(values[at][:, lanes], rows)
            for at, head in pairs:
                log_sum = log_sums_ref[(*at, slice(head, head + 1))]
                weight = jnp.exp2(scores[at, head] - log_sum)
                weights[at, head] = weight.astype(dtype)
                of_score = weight * (of_weights[at, head] - totals[at, head])
                of_scores[at, head] = of_score.astype(dtype)
            for at, head in pairs:
                q, k, v, m = (_rows(head, D, part) for part in (query, key, value, mixed))
                of_query = LN2 * call.dot(kept_ref[(*at, k)], of_scores[at, head])  # [D, N]
                of_key = LN2 * call.dot(kept_ref[(*at, q)], of_scores[at, head], call.NT)
                of_value = call.dot(of_kept_ref[(*at, m)], weights[at, head], call.NT)
                for own, gradient in ((q, of_query), (k, of_key), (v, of_value)):
                    of_kept_ref[(*at, own)] = gradient.astype(dtype)
        of_w, of_bias = jnp.zeros((3 * C, C)), jnp.zeros((C, 1))
        for at in every:
            standard, scale = norm.columns(x_ref[at])
            projections = of_kept_ref[(*at, slice(0, 3 * C))]
            of_w += call.dot(projections, standard.astype(dtype), call.NT)  # [3C, C]
            of_bias += jnp.sum(projections[:C].astype(jnp.float32), 1, keepdims=True)
            of_tokens = norm.standardized_gradient(
                standard, scale, call.dot(w_ref[...], projections), 0
            )
            of_x = of_y_ref[at].astype(jnp.float32) + jnp.transpose(of_tokens)
            of_x_ref[at] = of_x.astype(of_x_ref.dtype)
        of_w_ref[...] += of_w
        of_bias_ref[...] += of_bias


def _together(every: list[Block], heads: int) -> list[list[tuple[Block, int]]]:
    """All pairs of block and head, in lots that hide each other's latency."""
    pairs = [(at, head) for head in range(heads) for at in every]
    lot = 8 if len(every) >= 8 else 4
    return [pairs[start : start + lot] for start in range(0, len(pairs), lot)]


def _rows(head: int, D: int, part: slice = slice(0, 0)) -> slice:
    """The rows of a head among the columns of a part."""
    return slice(part.start + head * D, part.start + head * D + D)


def _alone(
    ref: call.Ref, at: Block, head: int, D: int, part: slice = slice(0, 0)
) -> tuple[Array, slice]:
    """A head's rows of a part and zeros for those within 128 around it; and these 128."""
    C = ref.shape[2] // 4
    low = head * D // LANES * LANES
    high = min(low + LANES, C)
    row = jax.lax.broadcasted_iota(jnp.int32, (high - low, 1), 0) + low
    columns = ref[(*at, slice(part.start + low, part.start + high))]
    own = (row >= head * D) & (row < head * D + D)
    return jnp.where(own, columns, jnp.zeros((), columns.dtype)), slice(low, high)
