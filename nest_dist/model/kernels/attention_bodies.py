"""What the kernels of the attention branch do at each step of their grid.

    tokens as rows    x [N, C]                                       y = x + factor * transposed
                         | transpose                                             ^ transpose
    as columns        norm [C, N] -> q, k, v [C, N]           mixed [C, N] -> projected [C, N]
                                       | k as rows                ^
    for each head        scores [N keys, N queries] -> softmax -> v @ weights [D, N queries]

Keys lie along sublanes, so the sums of a softmax are additions of registers, and heads are slices
of sublanes. The matrix units take a head's keys from lanes, where a slice would need rotations: so
keys of 128 lanes meet queries in which the rows of other heads are 0. Several heads go together
through each stage, which hides the latency of one behind the others. Scores are powers of 2.

Of `several` small blocks that come as one, scores between two blocks are minus infinity.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from nest_dist.model.kernels import border, call, norm

Block = tuple[int, int]  # of a step: image and block

LANES = 128
LN2 = math.log(2)


def forward(*refs: call.Ref, heads: int, several: int = 1) -> None:
    """`kept`: queries, keys, values and mixed values of each block as columns [4C, N]."""
    factor_ref, x_ref, w_ref, bias_ref, out_ref, out_bias_ref, y_ref, kept_ref, log_sums_ref = refs
    *_, N, C = x_ref.shape
    D, every, dtype = C // heads, call.every_block(x_ref), w_ref.dtype
    within = _within_blocks(N, several)
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
                scores[at, head] = within(call.dot(keys[at][:, lanes], rows))  # [N keys, N queries]
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


def forward_from_image(*refs: call.Ref, heads: int) -> None:
    """`forward` of the tokens of an image, which meet their positions first."""
    factor_ref, image_ref, position_ref, *rest, tokens_ref = refs
    border.read(image_ref, position_ref, tokens_ref)
    forward(factor_ref, tokens_ref, *rest, heads=heads)


def backward_to_image(*refs: call.Ref, heads: int) -> None:
    """`backward` to an image, and to the positions."""
    factor_ref, image_ref, position_ref, *rest = refs
    *inputs, of_image_ref, of_w, of_bias, of_out, of_out_bias, of_position_ref = rest[:-3]
    of_kept_ref, tokens_ref, of_tokens_ref = rest[-3:]
    border.read(image_ref, position_ref, tokens_ref)
    sums = of_w, of_bias, of_out, of_out_bias
    backward(factor_ref, tokens_ref, *inputs, of_tokens_ref, *sums, of_kept_ref, heads=heads)
    border.join(of_tokens_ref, of_image_ref)

    @pl.when(call.first_turn())
    def begin() -> None:
        of_position_ref[...] = jnp.zeros_like(of_position_ref)

    for at in call.every_block(of_tokens_ref):
        of_position_ref[at[1]] += of_tokens_ref[at].astype(jnp.float32)


def backward(*refs: call.Ref, heads: int, several: int = 1) -> None:
    """`of_kept`: the gradient of `kept`; of its mixed values it is that of the projection."""
    factor_ref, x_ref, of_y_ref, kept_ref, log_sums_ref, w_ref, out_ref, of_x_ref, *sums = refs
    of_w_ref, of_bias_ref, of_out_ref, of_out_bias_ref, of_kept_ref = sums
    *_, N, C = x_ref.shape
    D, every, dtype = C // heads, call.every_block(x_ref), w_ref.dtype
    within = _within_blocks(N, several)
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
                scores[at, head] = within(call.dot(keys[at][:, lanes], rows))  # [N keys, N queries]
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


def _within_blocks(N: int, several: int) -> Callable[[Array], Array]:
    """Makes scores [N, N] between two of several blocks minus infinity."""
    if several == 1:
        return lambda scores: scores

    def block(shape: tuple[int, int], axis: int) -> Array:
        token = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        begun = [token >= start for start in range(N // several, N, N // several)]
        return sum(each.astype(jnp.int32) for each in begun)

    same = block((N, 1), 0) == block((1, N), 1)
    return lambda scores: jnp.where(same, scores, -jnp.inf)


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
