"""The parameters of the official code, whose layers are counted over all levels."""

import typing
from collections.abc import Iterator

import numpy as np

from nest_dist.model import linen, nest
from nest_dist.pretrained.formats import naming

MARK = "PatchEmbedding_0/Conv_0/kernel"
GELU: linen.Gelu = "tanh"


def entries(model: nest.NesT) -> Iterator[naming.Entry]:
    """See `naming.Naming`."""
    yield from naming.layer("PatchEmbedding_0/Conv_0", "patch_embedding")
    yield from naming.layer("LayerNorm_0", "norm", "scale", "bias")
    if model.num_classes:
        yield from naming.layer("Dense_0", "head")
    for level in range(model.num_hierarchies):
        yield naming.same(
            f"PositionEmbedding_{level}/pos_embedding", f"levels_{level}/position_embedding"
        )
    for level in range(model.num_hierarchies - 1):
        name, param = f"ConvPool_{level}", f"aggregations_{level}"
        yield from naming.layer(f"{name}/Conv_0", f"{param}/convolution")
        yield from naming.layer(f"{name}/LayerNorm_0", f"{param}/norm", "scale", "bias")
    for index, (level, number) in enumerate(naming.layers(model)):
        name, param = f"EncoderNDBlock_{index}", f"levels_{level}/layers_{number}"
        yield from naming.layer(f"{name}/LayerNorm_0", f"{param}/attention_norm", "scale", "bias")
        yield from naming.layer(f"{name}/LayerNorm_1", f"{param}/mlp_norm", "scale", "bias")
        yield from naming.layer(f"{name}/MlpBlock_0/Dense_0", f"{param}/mlp/hidden")
        yield from naming.layer(f"{name}/MlpBlock_0/Dense_1", f"{param}/mlp/output")
        yield from _attention(name, f"{param}/attention", model.multi_query)


def fields(shapes: naming.Shapes) -> dict[str, typing.Any]:
    """See `naming.Naming`."""
    positions = naming.numbered(shapes, "PositionEmbedding_{}/pos_embedding")
    norms = naming.numbered(shapes, "EncoderNDBlock_{}/LayerNorm_0/scale")
    widths = [C for _, _, _, C in positions]
    depths = tuple(norms.count((C,)) for C in widths)
    multi_query = "EncoderNDBlock_0/MultiQueryAttention_0/bias" in shapes
    attention = "MultiQueryAttention_0" if multi_query else "MultiHeadAttention_0"
    heads, _ = shapes[f"EncoderNDBlock_0/{attention}/DenseGeneral_0/bias"]
    return naming.fields(
        shapes[MARK],
        positions,
        shapes["EncoderNDBlock_0/MlpBlock_0/Dense_0/bias"],
        block_repeats=depths if len(set(widths)) == len(widths) else None,
        num_layers=len(norms),
        heads=heads,
        multi_query=multi_query,
        num_classes=shapes.get("Dense_0/bias", (0,))[0],
    )


def _attention(layer: str, param: str, multi_query: bool) -> Iterator[naming.Entry]:
    name = f"{layer}/{'MultiQueryAttention_0' if multi_query else 'MultiHeadAttention_0'}"
    key_value = f"{name}/{'Dense_0' if multi_query else 'DenseGeneral_1'}"

    # The key comes first in the last axis; one shared head has no axis of its own.
    def join(key: np.ndarray, value: np.ndarray) -> np.ndarray:
        joined = np.concatenate([key, value], axis=-1)
        return joined.squeeze(axis=-2) if multi_query else joined

    yield from naming.layer(f"{name}/DenseGeneral_0", f"{param}/query")
    for leaf in ("kernel", "bias"):
        params = (f"{param}/key/{leaf}", f"{param}/value/{leaf}")
        yield naming.Entry(f"{key_value}/{leaf}", params, join)
    yield naming.same(f"{name}/proj_kernel", f"{param}/output/kernel")
    yield naming.same(f"{name}/bias", f"{param}/output/bias")
