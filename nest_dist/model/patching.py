"""Cuts images into patches and blocks, and puts blocks back together. Pure."""

import dataclasses
import math

from jax import Array

from nest_dist.base import checks, failures

Grid = tuple[int, int]  # rows, columns


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The grids into which an image is cut."""

    image_sides: Grid  # height and width in pixels
    block_side: int  # tokens along each side of a block, the same at every level
    grids: tuple[Grid, ...]  # rows and columns of blocks at each level, first level first


def geometry(
    image_size: int | Grid, patch_size: int, num_levels: int, block_side: int | None = None
) -> Geometry:
    """Cuts an image into patches, and the patches into blocks whose grid halves at each level.

    Args:
        image_size: side, or height and width, in pixels.
        patch_size: side of a patch in pixels.
        num_levels: at least 1.
        block_side: tokens along the side of a block; without it the blocks are as large as
            possible, so that a square image ends as one block.
    Raises:
        BadInput: if the sides cannot be cut, with the nearest sides that can.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    halvings = 2 ** (num_levels - 1)
    step = patch_size * halvings * (block_side or 1)
    step_name = "patch_size x 2^(num_hierarchies - 1)" + (" x block_side" if block_side else "")
    top = tuple(
        checks.divides(
            f"NesT.image_size {side_name}", side, step, step_name, "change it or that product"
        )
        for side_name, side in zip(("height", "width"), sides, strict=True)
    )
    if block_side is None:
        block_side = math.gcd(*top)
        if block_side == 1 < max(top):
            raise failures.BadInput(
                f"NesT.image_size is {sides}: the last level would have {top} tokens, which only "
                f"blocks of one token cut; give sides that are multiples of {2 * step}, or set "
                "NesT.block_side."
            )
        top = tuple(tokens // block_side for tokens in top)
    rows, columns = top
    grids = tuple((rows * 2**level, columns * 2**level) for level in reversed(range(num_levels)))
    return Geometry((sides[0], sides[1]), block_side, grids)


def to_patches(image: Array, patch_size: int) -> Array:
    """Makes the pixels of each patch, row by row, the channels of one token.

    Args:
        image: [B, H, W, C].
        patch_size: side of a patch in pixels; divides both sides.
    Returns:
        [B, H / patch_size, W / patch_size, patch_size * patch_size * C].
    """
    B, H, W, C = image.shape
    rows, columns = H // patch_size, W // patch_size
    x = image.reshape(B, rows, patch_size, columns, patch_size, C)
    return x.swapaxes(2, 3).reshape(B, rows, columns, patch_size * patch_size * C)


def to_blocks(image: Array, block_side: int) -> Array:
    """Cuts an image [B, H, W, C] into blocks [B, T, N, C], row by row in T and in N."""
    B, H, W, C = image.shape
    rows, columns = H // block_side, W // block_side
    x = image.reshape(B, rows, block_side, columns, block_side, C)
    return x.swapaxes(2, 3).reshape(B, rows * columns, block_side * block_side, C)


def to_image(blocks: Array, grid: Grid) -> Array:
    """Puts blocks [B, T, N, C] together to an image [B, H, W, C]: inverts `to_blocks`."""
    B, _, N, C = blocks.shape
    rows, columns = grid
    block_side = math.isqrt(N)
    x = blocks.reshape(B, rows, columns, block_side, block_side, C)
    return x.swapaxes(2, 3).reshape(B, rows * block_side, columns * block_side, C)


def to_map(values: Array, grid: Grid) -> Array:
    """Puts a value of each token [..., T, N] together to a map [..., H, W]."""
    *lead, T, N = values.shape
    image = to_image(values.reshape(-1, T, N, 1), grid)
    return image.reshape(*lead, *image.shape[1:3])
