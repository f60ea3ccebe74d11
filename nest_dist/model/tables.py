"""Which arrays of the official format, and of timm's, hold which of our parameters."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nest_dist.model import nest


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of a foreign format.

    Attributes:
        theirs: its name there.
        ours: the parameters that it holds.
        join: makes it of them.
        split: makes them of it.
    """

    theirs: str
    ours: tuple[str, ...]
    join: Callable[..., np.ndarray]
    split: Callable[[np.ndarray], Sequence[np.ndarray]]


def same(theirs: str, ours: str) -> Entry:
    """An array that differs by its name only."""
    return Entry(theirs, (ours,), lambda x: x, lambda x: (x,))


def official(model: nest.NesT) -> Iterator[Entry]:
    """The tree of the official code, whose layers are counted over all levels."""
    yield from _affine("PatchEmbedding_0/Conv_0", "patch_embedding")
    yield from _norm("LayerNorm_0", "norm")
    if model.num_classes:
        yield from _affine("Dense_0", "head")
    for level in range(model.num_hierarchies):
        yield same(f"PositionEmbedding_{level}/pos_embedding", f"levels_{level}/position_embedding")
    for level in range(model.num_hierarchies - 1):
        theirs, ours = f"ConvPool_{level}", f"aggregations_{level}"
        yield from _affine(f"{theirs}/Conv_0", f"{ours}/convolution")
        yield from _norm(f"{theirs}/LayerNorm_0", f"{ours}/norm")
    for count, (level, layer) in enumerate(_layers(model)):
        theirs, ours = f"EncoderNDBlock_{count}", f"levels_{level}/layers_{layer}"
        yield from _norm(f"{theirs}/LayerNorm_0", f"{ours}/attention_norm")
        yield from _norm(f"{theirs}/LayerNorm_1", f"{ours}/mlp_norm")
        yield from _affine(f"{theirs}/MlpBlock_0/Dense_0", f"{ours}/mlp/hidden")
        yield from _affine(f"{theirs}/MlpBlock_0/Dense_1", f"{ours}/mlp/output")
        yield from _official_attention(theirs, f"{ours}/attention", model.multi_query)


def timm(model: nest.NesT) -> Iterator[Entry]:
    """The state dictionary of timm's NesT."""
    yield from _timm_convolution("patch_embed.proj", "patch_embedding")
    yield from _timm_norm("norm", "norm")
    if model.num_classes:
        yield from _timm_linear("head", "head")
    for level in range(model.num_hierarchies):
        yield same(f"levels.{level}.pos_embed", f"levels_{level}/position_embedding")
    for level in range(1, model.num_hierarchies):
        theirs, ours = f"levels.{level}.pool", f"aggregations_{level - 1}"
        yield from _timm_convolution(f"{theirs}.conv", f"{ours}/convolution")
        yield from _timm_norm(f"{theirs}.norm", f"{ours}/norm")
    for level, layer in _layers(model):
        theirs = f"levels.{level}.transformer_encoder.{layer}"
        ours = f"levels_{level}/layers_{layer}"
        yield from _timm_norm(f"{theirs}.norm1", f"{ours}/attention_norm")
        yield from _timm_norm(f"{theirs}.norm2", f"{ours}/mlp_norm")
        yield from _timm_linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/hidden")
        yield from _timm_linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/output")
        C = model.widths()[level]
        K = model.heads * C // model.dim
        yield from _timm_attention(f"{theirs}.attn", f"{ours}/attention", K, C // K)


def _layers(model: nest.NesT) -> Iterator[tuple[int, int]]:
    """Level, and layer within the level."""
    for level, depth in enumerate(model.block_repeats):
        for layer in range(depth):
            yield level, layer


def _affine(theirs: str, ours: str) -> Iterator[Entry]:
    for leaf in ("kernel", "bias"):
        yield same(f"{theirs}/{leaf}", f"{ours}/{leaf}")


def _norm(theirs: str, ours: str) -> Iterator[Entry]:
    for leaf in ("scale", "bias"):
        yield same(f"{theirs}/{leaf}", f"{ours}/{leaf}")


def _official_attention(layer: str, ours: str, multi_query: bool) -> Iterator[Entry]:
    theirs = f"{layer}/{'MultiQueryAttention_0' if multi_query else 'MultiHeadAttention_0'}"
    both = f"{theirs}/{'Dense_0' if multi_query else 'DenseGeneral_1'}"

    # The key comes first in the last axis; one shared head has no axis of its own there.
    def join(key: np.ndarray, value: np.ndarray) -> np.ndarray:
        joined = np.concatenate([key, value], axis=-1)
        return joined.squeeze(axis=-2) if multi_query else joined

    def split(joined: np.ndarray) -> Sequence[np.ndarray]:
        return np.split(joined[..., None, :] if multi_query else joined, 2, axis=-1)

    yield from _affine(f"{theirs}/DenseGeneral_0", f"{ours}/query")
    for leaf in ("kernel", "bias"):
        yield Entry(f"{both}/{leaf}", (f"{ours}/key/{leaf}", f"{ours}/value/{leaf}"), join, split)
    yield same(f"{theirs}/proj_kernel", f"{ours}/output/kernel")
    yield same(f"{theirs}/bias", f"{ours}/output/bias")


def _permuted(theirs: str, ours: str, permutation: tuple[int, ...]) -> Entry:
    """`permutation` leads from our axes to theirs."""
    back = tuple(np.argsort(permutation))
    return Entry(
        theirs, (ours,), lambda x: x.transpose(permutation), lambda x: (x.transpose(back),)
    )


def _timm_convolution(theirs: str, ours: str) -> Iterator[Entry]:
    # [H, W, in, out] -> [out, in, H, W]
    yield _permuted(f"{theirs}.weight", f"{ours}/kernel", (3, 2, 0, 1))
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _timm_linear(theirs: str, ours: str) -> Iterator[Entry]:
    yield _permuted(f"{theirs}.weight", f"{ours}/kernel", (1, 0))
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _timm_norm(theirs: str, ours: str) -> Iterator[Entry]:
    yield same(f"{theirs}.weight", f"{ours}/scale")
    yield same(f"{theirs}.bias", f"{ours}/bias")


def _timm_attention(theirs: str, ours: str, K: int, D: int) -> Iterator[Entry]:
    C = K * D

    def join_kernels(*kernels: np.ndarray) -> np.ndarray:
        return np.concatenate([kernel.reshape(C, C).T for kernel in kernels])

    def split_kernels(joined: np.ndarray) -> Sequence[np.ndarray]:
        return [part.T.reshape(C, K, D) for part in joined.reshape(3, C, C)]

    def join_biases(*biases: np.ndarray) -> np.ndarray:
        return np.concatenate([bias.reshape(C) for bias in biases])

    def split_biases(joined: np.ndarray) -> Sequence[np.ndarray]:
        return list(joined.reshape(3, K, D))

    # timm lays what attention gives out as [D, K], so its output projection expects that order.
    def join_output(kernel: np.ndarray) -> np.ndarray:
        return kernel.transpose(2, 1, 0).reshape(C, C)

    def split_output(joined: np.ndarray) -> Sequence[np.ndarray]:
        return (joined.reshape(C, D, K).transpose(2, 1, 0),)

    def of_all(leaf: str) -> tuple[str, ...]:
        return tuple(f"{ours}/{part}/{leaf}" for part in ("query", "key", "value"))

    yield Entry(f"{theirs}.qkv.weight", of_all("kernel"), join_kernels, split_kernels)
    yield Entry(f"{theirs}.qkv.bias", of_all("bias"), join_biases, split_biases)
    yield Entry(f"{theirs}.proj.weight", (f"{ours}/output/kernel",), join_output, split_output)
    yield same(f"{theirs}.proj.bias", f"{ours}/output/bias")
