"""Between levels: in the image plane, neighbours meet and four blocks become one."""

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from nest_dist.model import affine, layout


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
        *_, C = blocks.shape
        image = layout.to_image(blocks, self.grid)  # [B, H, W, C]
        kernel, bias = affine.Affine(
            (3, 3, C, self.width), (self.width,), self.compute_dtype, name="convolution"
        )()
        image = affine.norm(self.compute_dtype, "norm")(convolve(image, kernel, bias))
        block_side = image.shape[1] // self.grid[0]
        return layout.to_blocks(max_pool(image), block_side)


def convolve(image: Array, kernel: Array, bias: Array) -> Array:
    """3x3 convolution with zeros around the image: [B, H, W, width] from [B, H, W, C]."""
    product = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return product + bias


def max_pool(image: Array) -> Array:
    """Largest value of each 3x3 window, every second pixel: [B, H / 2, W / 2, C].

    The sides are even, so windows reach over the lower and right edge only ("SAME").
    """
    # Were this a traced value, JAX would not know the window's maximum and could not derive it.
    lowest = np.array(-np.inf, image.dtype)
    return jax.lax.reduce_window(image, lowest, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
