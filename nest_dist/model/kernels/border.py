"""The border of a level, inside a kernel: blocks from rows of an image, and rows from blocks."""

import math

from jax import Array

from nest_dist.model.kernels import call


def shape(x: Array) -> tuple[tuple[int, int, int, int], int | None]:
    """B, T, N and C of blocks [B, T, N, C] or of an image [B, R, S, W, C], and its columns."""
    if x.ndim == 4:
        B, T, N, C = x.shape
        return (B, T, N, C), None
    B, R, S, W, C = x.shape
    return (B, R * (W // S), S * S, C), W // S


def result(x: Array, columns: int | None) -> tuple[int, ...]:
    """The shape of blocks [B, T, N, C], or of the image of so many columns that they make."""
    B, T, N, C = x.shape
    if columns is None:
        return x.shape
    side = math.isqrt(N)
    return B, T // columns, side, columns * side, C


def rows_of_blocks(images: Array, side: int) -> Array:
    """Images [B, H, W, C] as [B, R, S, W, C]."""
    B, H, W, C = images.shape
    return images.reshape(B, H // side, side, W, C)


def read(image_ref: call.Ref, position_ref: call.Ref, blocks_ref: call.Ref) -> None:
    """Blocks [images, blocks, N, C] from rows [images, S, W, C], plus positions [blocks, N, C]."""
    cut(image_ref, blocks_ref)
    for at in call.every_block(blocks_ref):
        tokens = blocks_ref[at] + position_ref[at[1]].astype(blocks_ref.dtype)
        blocks_ref[at] = tokens


def cut(image_ref: call.Ref, blocks_ref: call.Ref) -> None:
    """Blocks [images, blocks, N, C] from rows of an image [images, S, W, C]."""
    side = image_ref.shape[1]
    for image, block in call.every_block(blocks_ref):
        columns = slice(block * side, block * side + side)
        for row in range(side):
            tokens = slice(row * side, row * side + side)
            blocks_ref[image, block, tokens] = image_ref[image, row, columns]


def join(blocks_ref: call.Ref, image_ref: call.Ref) -> None:
    """Rows of an image [images, S, W, C] from blocks [images, blocks, N, C]."""
    side = image_ref.shape[1]
    for image, block in call.every_block(blocks_ref):
        columns = slice(block * side, block * side + side)
        for row in range(side):
            tokens = slice(row * side, row * side + side)
            image_ref[image, row, columns] = blocks_ref[image, block, tokens]
