"""Self-attention inside each block, with many heads or with one key and value for all of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import chance
from nest_dist.model import affine, on_cpu


class BlockAttention(nn.Module):
    """Every token attends to the tokens of its own block.

    Attributes:
        heads: query heads; divides the width.
        multi_query: one key and value head serves all query heads (arXiv 1911.02150).
        dropout: rate of the attention weights set to zero when training.
        compute_dtype: of activations and products; softmax is float32 in any case.
    """

    heads: int
    multi_query: bool
    dropout: float
    compute_dtype: affine.ComputeDtype

    @nn.compact
    def __call__(self, blocks: Array, keys: Array | None) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C]; without keys [B] nothing is dropped."""
        *_, C = blocks.shape
        K, D = self.heads, C // self.heads
        shared = 1 if self.multi_query else K
        query_kernel, query_bias = self._affine("query", (C, K, D), (K, D))
        key_kernel, key_bias = self._affine("key", (C, shared, D), (shared, D))
        value_kernel, value_bias = self._affine("value", (C, shared, D), (shared, D))
        output_kernel, output_bias = self._affine("output", (K, D, C), (C,))

        query, key, value = affine.contract_each(blocks, query_kernel, key_kernel, value_kernel)
        query, key, value = query + query_bias, key + key_bias, value + value_bias
        mixed = self._attend(query * D**-0.5, key, value, keys)  # [B, T, N, K, D]
        return affine.contract(mixed, output_kernel, 2) + output_bias

    def _affine(
        self, name: str, kernel_shape: affine.Shape, bias_shape: affine.Shape
    ) -> tuple[Array, Array]:
        return affine.Affine(kernel_shape, bias_shape, self.compute_dtype, name=name)()

    def _attend(self, query: Array, key: Array, value: Array, keys: Array | None) -> Array:
        dropped = None if keys is None or self.dropout == 0 else chance.fold(keys, 0)
        if self.multi_query:
            key, value = key.squeeze(-2), value.squeeze(-2)  # [B, T, N, D]
        elif dropped is None:
            # Each is the faster one where it is used.
            mixed: Array = jax.lax.platform_dependent(
                query, key, value, cpu=on_cpu.mix, default=mix
            )
            return mixed
        return mix(query, key, value, dropped, self.dropout)


def mix(
    query: Array, key: Array, value: Array, keys: Array | None = None, dropout: float = 0.0
) -> Array:
    """The values [B, T, N, K, D] that each query attends to, mixed by the softmax of its scores.

    Args:
        query: scaled, [B, T, N, K, D].
        key: [B, T, N, K, D], or [B, T, N, D] for all heads.
        value: as `key`.
        keys: of random numbers, [B]; without them nothing is dropped.
        dropout: rate of the weights set to zero.
    """
    heads = "k" if key.ndim == query.ndim else ""
    # bfloat16 has 8 significant bits; a sum of 196 exponentials would lose the small ones.
    scores = jnp.einsum(f"btnkd,btm{heads}d->btknm", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    if keys is not None:
        weights = chance.drop(weights, dropout, keys)
    return jnp.einsum(f"btknm,btm{heads}d->btnkd", weights, value)
