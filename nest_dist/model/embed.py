"""From pixels to tokens."""

import flax.linen as nn
from jax import Array

from nest_dist.model import affine, layout


class PatchEmbedding(nn.Module):
    """One token for each patch: a convolution whose stride is its size."""

    patch_size: int
    width: int
    compute_dtype: affine.ComputeDtype

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Tokens [B, H / patch_size, W / patch_size, width] of an image [B, H, W, C]."""
        *_, C = image.shape
        kernel, bias = affine.declare(
            self,
            (self.patch_size, self.patch_size, C, self.width),
            (self.width,),
            self.compute_dtype,
        )
        patches = layout.to_patches(image.astype(self.compute_dtype), self.patch_size)
        return patches @ kernel.reshape(-1, self.width) + bias
