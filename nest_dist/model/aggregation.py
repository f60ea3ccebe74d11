"""Between levels: in the image plane, neighbours meet and four blocks become one."""

import math

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from nest_dist.model import affine, layout, on_cpu
from nest_dist.parallel import halo, rules


class Aggregation(nn.Module):
    """Convolution to the next width, LayerNorm and max-pool, all across the borders of blocks.

    Attributes:
        grid: rows and columns of the blocks that come in; both even.
        width: channels of the next level.
        compute_dtype: of activations and products.
    Source: arXiv 2105.12723, section 3 and table A3.
    """

    grid: layout.Grid
    width: int
    compute_dtype: affine.ComputeDtype

    @nn.compact
    def __call__(self, blocks: Array) -> Array:
        """Tokens [B, T / 4, N, width] from tokens [B, T, N, C]."""
        *_, N, C = blocks.shape
        rows, _ = self.grid
        block_side = math.isqrt(N)
        # Whole rows of blocks on each device, and whole pairs of rows of tokens for the pool.
        shared = rules.if_divided("rows", math.gcd(rows, rows * block_side // 2))
        shared_after = shared and rules.if_divided("rows", rows // 2)

        blocks = rules.constrain(blocks, "batch", shared, None, None)
        image = layout.to_image(blocks, self.grid)  # [B, H, W, C]
        kernel, bias = affine.Affine(
            (3, 3, C, self.width), (self.width,), self.compute_dtype, name="convolution"
        )()
        image = halo.over_rows(convolve, image, kernel, bias, axis=shared, reach=(1, 1), border=0)
        image = affine.Norm(self.compute_dtype, name="norm")(image)
        image = halo.over_rows(max_pool, image, axis=shared, reach=(0, 1), border=-np.inf)
        image = rules.constrain(image, "batch", shared_after, None, None)
        return layout.to_blocks(image, block_side)


def convolve(image: Array, kernel: Array, bias: Array, padding: halo.Padding = (1, 1)) -> Array:
    """3x3 convolution with zeros around the image: [B, H, W, width] from [B, H, W, C].

    Args:
        image: where it has rows of its neighbours above and below, they are used up.
        kernel: [3, 3, C, width].
        bias: [width].
        padding: rows of zeros added above and below.
    """
    product = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), (padding, (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return product + bias


def max_pool(image: Array, padding: halo.Padding = (0, 1)) -> Array:
    """Largest value of each 3x3 window, every second pixel: [B, H / 2, W / 2, C].

    The sides are even, so windows reach over the lower and right edge only ("SAME").

    Args:
        image: where it has a row of its neighbour below, that is used up.
        padding: rows of minus infinity added above and below.
    """
    # Were this a traced value, JAX would not know the window's maximum and could not derive it.
    lowest = np.array(-np.inf, image.dtype)
    edges = ((0, 0), padding, (0, 1), (0, 0))
    largest: Array = jax.lax.platform_dependent(
        image,
        cpu=lambda image: on_cpu.max_pool(image, padding),
        default=lambda image: jax.lax.reduce_window(
            image, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges
        ),
    )
    return largest
