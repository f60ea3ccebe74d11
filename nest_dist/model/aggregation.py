"""Between levels: in the image plane, neighbours meet and four blocks become one."""

import functools
import math
import typing

import flax.linen as nn
import jax
import numpy as np
from jax import Array

from nest_dist.model import encoder, linen, on_cpu, patching
from nest_dist.model.kernels import pool
from nest_dist.sharding import halo, rules


class Aggregation(nn.Module):
    """Convolution to the next width, LayerNorm and max-pool, all across the borders of blocks.

    Attributes:
        grid: rows and columns of the blocks that come in; both even.
        width: channels of the next level.
        compute_dtype: of activations and products.
        kernels: "fused" computes norm and pool by one kernel for TPUs.
    Source: arXiv 2105.12723, section 3 and table A3.
    """

    grid: patching.Grid
    width: int
    compute_dtype: linen.ComputeDtype
    kernels: encoder.Kernels = "plain"

    @nn.compact
    def __call__(self, blocks: Array) -> Array:
        """Tokens [B, T / 4, N, width] from tokens [B, T, N, C]."""
        *_, N, C = blocks.shape
        rows, _ = self.grid
        block_side = math.isqrt(N)
        # A device needs complete rows of blocks, and complete pairs of rows of tokens to pool.
        axis = rules.if_divided("rows", math.gcd(rows, rows * block_side // 2))
        axis_after = axis and rules.if_divided("rows", rows // 2)

        blocks = rules.constrain(blocks, "batch", axis, None, None)
        image = patching.to_image(blocks, self.grid)  # [B, H, W, C]
        kernel, bias = linen.Params(
            (3, 3, C, self.width), (self.width,), self.compute_dtype, name="convolution"
        )()
        if self._fused(image):
            image = self._pooled(convolve(image, kernel, None, axis), bias)
        else:
            image = convolve(image, kernel, bias, axis)
            image = linen.LayerNorm(self.compute_dtype, name="norm")(image)
            image = max_pool(image, axis)
        image = rules.constrain(image, "batch", axis_after, None, None)
        return patching.to_blocks(image, block_side)

    def _fused(self, image: Array) -> bool:
        """Whether a kernel computes norm and pool; it needs complete images."""
        context = rules.active()
        complete = context is None or context.shards("rows") == 1
        fused = self.kernels == "fused" and not self.is_initializing()
        return fused and complete and pool.serves(image.shape)

    def _pooled(self, image: Array, bias: Array) -> Array:
        def on_device(params: typing.Any, image: Array) -> Array:
            return pool.pooled(image, params["bias"], params["norm"])

        params = {"bias": bias, "norm": self.variables["params"]["norm"]}
        axes = ("batch", None, None, None)
        B, H, W, C = image.shape
        result = (B, H // 2, W // 2, C), axes
        return rules.on_each_device(on_device, params, [(image, axes)], result)


def convolve(image: Array, kernel: Array, bias: Array | None, axis: str | None) -> Array:
    """3x3 convolution with zeros around the image: [B, H, W, width].

    `nn.Conv` adds its bias outside of `over_rows`; with rows on several devices, the bias's
    gradient is then summed in another order, and its last bits differ.

    Args:
        image: [B, H, W, C].
        kernel: [3, 3, C, width].
        bias: [width]; None adds none.
        axis: logical axis of the rows; None if every device has all of them.
    """

    def of_rows(
        image: Array, kernel: Array, bias: Array | None = None, *, padding: halo.Padding
    ) -> Array:
        product = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), (padding, (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return product if bias is None else product + bias

    operands = (kernel,) if bias is None else (kernel, bias)
    return halo.over_rows(of_rows, image, *operands, axis=axis, reach=(1, 1), border=0)


def max_pool(image: Array, axis: str | None) -> Array:
    """Largest value of each 3x3 window, every second pixel: [B, H / 2, W / 2, C].

    The sides are even, so windows reach over the lower and right edge only ("SAME").

    Args:
        image: [B, H, W, C].
        axis: logical axis of the rows; None if every device has all of them.
    """

    def of_rows(image: Array, padding: halo.Padding) -> Array:
        return on_cpu.instead(
            image,
            cpu=functools.partial(on_cpu.max_pool, padding=padding),
            default=lambda image: nn.max_pool(image, (3, 3), (2, 2), (padding, (0, 1))),
        )

    return halo.over_rows(of_rows, image, axis=axis, reach=(0, 1), border=-np.inf)
