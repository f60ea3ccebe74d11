"""Self-attention inside each block, with many heads or with one key and value for all of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from nest_dist.base import rng
from nest_dist.model import linen, on_cpu, on_gpu


class BlockAttention(nn.Module):
    """Every token attends to the tokens of its own block.

    Attributes:
        heads: query heads; divides the width.
        multi_query: one key and value head serves all query heads (arXiv 1911.02150).
        dropout: rate of the attention weights set to zero when training.
        compute_dtype: of activations and products; softmax is always float32.
        cudnn: whether cuDNN attends, see `on_gpu.attend`.
    """

    heads: int
    multi_query: bool
    dropout: float
    compute_dtype: linen.ComputeDtype
    cudnn: bool = False

    @nn.compact
    def __call__(self, blocks: Array, keys: Array | None) -> Array:
        """New tokens [B, T, N, C] from tokens [B, T, N, C]; without keys [B] nothing is dropped."""
        *_, C = blocks.shape
        K, D = self.heads, C // self.heads
        key_heads = 1 if self.multi_query else K
        # On a CPU, one product for all three is faster than three `nn.DenseGeneral`; its gradient
        # sums in another order, too.
        query_kernel, query_bias = self._params("query", (C, K, D))
        key_kernel, key_bias = self._params("key", (C, key_heads, D))
        value_kernel, value_bias = self._params("value", (C, key_heads, D))
        query, key, value = linen.projections(blocks, query_kernel, key_kernel, value_kernel)
        query, key, value = query + query_bias, key + key_bias, value + value_bias
        attended = self._attend(query * D**-0.5, key, value, keys)  # [B, T, N, K, D]
        return linen.DenseGeneral(C, (-2, -1), dtype=self.compute_dtype, name="output")(attended)

    def _params(self, name: str, kernel_shape: tuple[int, int, int]) -> tuple[Array, Array]:
        return linen.Params(kernel_shape, kernel_shape[1:], self.compute_dtype, name=name)()

    def _attend(self, query: Array, key: Array, value: Array, keys: Array | None) -> Array:
        dropout_keys = None if keys is None or self.dropout == 0 else rng.fold(keys, 0)
        if self.cudnn and not self.is_initializing():
            return on_gpu.attend(query, key, value)
        if self.multi_query:
            key, value = key.squeeze(-2), value.squeeze(-2)  # [B, T, N, D]
        elif dropout_keys is None:
            return on_cpu.instead(query, key, value, cpu=on_cpu.attend, default=attend)
        return attend(query, key, value, dropout_keys, self.dropout)


def attend(
    query: Array, key: Array, value: Array, keys: Array | None = None, dropout: float = 0.0
) -> Array:
    """The mean of the values for each query [B, T, N, K, D], weighted by softmax of its scores.

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
        weights = rng.dropout(weights, dropout, keys)
    return jnp.einsum(f"btknm,btm{heads}d->btnkd", weights, value)
