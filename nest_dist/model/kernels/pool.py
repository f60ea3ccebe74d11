"""Behind the convolution of an aggregation: LayerNorm and max-pool, one kernel each way.

A step takes an image and goes down its rows. Three rows of norms make a row of the pool: their
largest values meet in memory, from which every second column is read. The backward kernel makes the
norms again and looks for the largest value of each window; of equal ones the first in reading order
takes the gradient, as it does by XLA.
"""

import functools
import math
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from nest_dist.model.kernels import call, norm

Params = Mapping[str, typing.Any]

# Every second row of a matrix in memory can be read if it has as many columns.
LANES = 128
SUBLANES = 8
# Bytes on the chip: two images of the widest level, and two gradients.
MEMORY = 64 * 2**20


def plain(x: Array, bias: Array, of_norm: Params) -> Array:
    """What the kernels compute; the arguments are those of `pooled`."""
    tokens = norm.plain(x + bias, of_norm)
    return jax.lax.reduce_window(
        tokens, -math.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))
    )


def serves(shape: tuple[int, ...]) -> bool:
    """Whether the kernels take images [B, H, W, C]."""
    _, H, W, _ = shape
    return H % 2 == 0 and W % 4 == 0


def pooled(x: Array, bias: Array, of_norm: Params) -> Array:
    """The largest norm of each 3x3 window, every second pixel: [B, H / 2, W / 2, C].

    Args:
        x: images [B, H, W, C] that `serves` takes.
        bias: [C], of the convolution, yet to be added.
        of_norm: "scale" and "bias" [C].
    """
    rows = (each.astype(jnp.float32)[None] for each in (of_norm["scale"], of_norm["bias"]))
    return _pooled(x, bias, *rows)


@jax.custom_vjp
def _pooled(x: Array, bias: Array, scale: Array, shift: Array) -> Array:
    return _with_residuals(x, bias, scale, shift)[0]


def _with_residuals(
    x: Array, bias: Array, scale: Array, shift: Array
) -> tuple[Array, tuple[Array, ...]]:
    B, H, W, C = x.shape
    x = x + bias  # in the convolution, by XLA
    grid = call.grid(1, B, 1)
    small = jax.ShapeDtypeStruct((B, 1, H // 2, W // 2, C), x.dtype)
    (y,) = call.run(
        _forward,
        "pool_forward",
        grid,
        [grid.by_block(x[:, None]), grid.whole(scale), grid.whole(shift)],
        [grid.by_block(small)],
        [jax.ShapeDtypeStruct((len(_tiles(C)), W + SUBLANES, LANES), jnp.float32)],
        MEMORY,
    )
    return y[:, 0], (x, bias, scale, shift)


def _gradients(residuals: tuple[Array, ...], of_y: Array) -> tuple[Array, ...]:
    x, bias, scale, shift = residuals
    B, _, W, C = x.shape
    grid = call.grid(1, B, 1)
    rows = jax.ShapeDtypeStruct((3, len(_tiles(C)), W + SUBLANES, LANES), jnp.float32)
    of_x, *totals = call.run(
        _backward,
        "pool_backward",
        grid,
        [*map(grid.by_block, (x[:, None], of_y[:, None])), grid.whole(scale), grid.whole(shift)],
        [grid.by_block(jax.ShapeDtypeStruct(x[:, None].shape, x.dtype)), *[grid.total(1, C)] * 3],
        [rows, rows],
        MEMORY,
    )
    of_bias, of_scale, of_shift = (total.sum(0) for total in totals)
    return of_x[:, 0], of_bias[0].astype(bias.dtype), of_scale, of_shift


_pooled.defvjp(_with_residuals, _gradients)


def _tiles(C: int) -> list[slice]:
    return [slice(start, min(start + LANES, C)) for start in range(0, C, LANES)]


def _columns(W: int) -> list[typing.Any]:
    """The first, second and third columns of all windows of a row."""
    return [pl.ds(start, W // 2, stride=2) for start in range(3)]


def _forward(*refs: call.Ref) -> None:
    """`rows`: the largest of three rows [tiles, W + 8, 128], with -inf to its right."""
    x_ref, scale_ref, shift_ref, y_ref, rows_ref = refs
    _, H, W, C = x_ref.shape
    rows_ref[...] = jnp.full(rows_ref.shape, -jnp.inf)

    def normed(row: Array | int) -> Array:
        standard, _ = norm.standardized(x_ref[0, row].astype(jnp.float32), 1)
        return standard * scale_ref[...] + shift_ref[...]

    def pool(row: Array, first: Array) -> Array:
        # Below the image the last row stands once more, which changes no maximum.
        third = normed(jnp.minimum(2 * row + 2, H - 1))
        largest = jnp.maximum(jnp.maximum(first, normed(2 * row + 1)), third)
        for tile, lanes in enumerate(_tiles(C)):
            width = lanes.stop - lanes.start
            rows_ref[tile, :W, :width] = largest[:, lanes]
            of_windows = functools.reduce(
                jnp.maximum, [rows_ref[tile, columns] for columns in _columns(W)]
            )
            y_ref[0, row, :, lanes] = of_windows[:, :width].astype(y_ref.dtype)
        return third

    jax.lax.fori_loop(0, H // 2, pool, normed(0), unroll=4)


def _backward(*refs: call.Ref) -> None:
    """`rows` and `of_rows`: three rows of norms and their gradients [3, tiles, W + 8, 128]."""
    x_ref, of_y_ref, scale_ref, shift_ref, of_x_ref, *totals, rows_ref, of_rows_ref = refs
    of_bias_ref, of_scale_ref, of_shift_ref = totals
    _, H, W, C = x_ref.shape

    @pl.when(call.first_step())
    def begin() -> None:
        for ref in totals:
            ref[...] = jnp.zeros_like(ref)

    rows_ref[...] = jnp.full(rows_ref.shape, -jnp.inf)
    of_rows_ref[...] = jnp.zeros(of_rows_ref.shape)

    def standardized(row: Array | int) -> tuple[Array, Array]:
        return norm.standardized(x_ref[0, row].astype(jnp.float32), 1)

    def finish(row: Array, standard: Array, scale: Array, of_norm: Array) -> None:
        of_scale_ref[...] += jnp.sum(of_norm * standard, 0, keepdims=True)
        of_shift_ref[...] += jnp.sum(of_norm, 0, keepdims=True)
        of_row = norm.standardized_gradient(standard, scale, of_norm * scale_ref[...], 1)
        of_bias_ref[...] += jnp.sum(of_row, 0, keepdims=True)
        of_x_ref[0, row] = of_row.astype(of_x_ref.dtype)

    def give(row: Array, norms: list[Array], tile: int, lanes: slice) -> list[Array]:
        """The gradients of three rows [W, lanes] from those of a row of windows."""
        width = lanes.stop - lanes.start
        for each in range(3):
            rows_ref[each, tile, :W, :width] = norms[each][:, lanes]
        windows = [[rows_ref[each, tile, columns] for columns in _columns(W)] for each in range(3)]
        largest = functools.reduce(jnp.maximum, [value for line in windows for value in line])
        left = of_y_ref[0, row, :, lanes].astype(jnp.float32)  # what nothing has taken yet
        if width < LANES:
            left = jnp.concatenate([left, jnp.zeros((W // 2, LANES - width))], 1)
        for each, line in enumerate(windows):
            taken = []
            for value in line:
                taken.append(jnp.where(value == largest, left, 0.0))
                left = jnp.where(value == largest, 0.0, left)
            first, second, third = _columns(W)
            of_rows_ref[each, tile, first] = taken[0]
            of_rows_ref[each, tile, second] = taken[1]
            of_rows_ref[each, tile, W:] = jnp.zeros((SUBLANES, LANES))
            of_rows_ref[each, tile, third] += taken[2]  # first columns of the next windows
        return [of_rows_ref[each, tile, :W, :width] for each in range(3)]

    def pool(row: Array, above: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Takes and gives the row between two windows, and its gradient by the upper one."""
        standard, scale, of_first = above
        first = standard, scale
        second = standardized(2 * row + 1)
        third = standardized(jnp.minimum(2 * row + 2, H - 1))
        norms = [each * scale_ref[...] + shift_ref[...] for each, _ in (first, second, third)]
        norms[2] = jnp.where(row < H // 2 - 1, norms[2], -jnp.inf)
        given = [give(row, norms, tile, lanes) for tile, lanes in enumerate(_tiles(C))]
        of_norms = [jnp.concatenate(of_tiles, 1) for of_tiles in zip(*given, strict=True)]
        finish(2 * row, *first, of_first + of_norms[0])
        finish(2 * row + 1, *second, of_norms[1])
        return *third, of_norms[2]

    jax.lax.fori_loop(0, H // 2, pool, (*standardized(0), jnp.zeros((W, C))))
