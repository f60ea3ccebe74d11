"""The state dictionary of timm's NesT."""

import typing
from collections.abc import Iterator

import numpy as np

from nest_dist.base import failures
from nest_dist.model import linen, nest
from nest_dist.pretrained.formats import naming

MARK = "patch_embed.proj.weight"
GELU: linen.Gelu = "exact"


def entries(model: nest.NesT) -> Iterator[naming.Entry]:
    """See `naming.Naming`."""
    _require_known(model)
    yield from _layer("patch_embed.proj", "patch_embedding")
    yield from _norm("norm", "norm")
    if model.num_classes:
        yield from _layer("head", "head")
    for level in range(model.num_hierarchies):
        yield naming.same(f"levels.{level}.pos_embed", f"levels_{level}/position_embedding")
    for level in range(1, model.num_hierarchies):
        name, param = f"levels.{level}.pool", f"aggregations_{level - 1}"
        yield from _layer(f"{name}.conv", f"{param}/convolution")
        yield from _norm(f"{name}.norm", f"{param}/norm")
    for level, layer in naming.layers(model):
        name = f"levels.{level}.transformer_encoder.{layer}"
        param = f"levels_{level}/layers_{layer}"
        yield from _norm(f"{name}.norm1", f"{param}/attention_norm")
        yield from _norm(f"{name}.norm2", f"{param}/mlp_norm")
        yield from _layer(f"{name}.mlp.fc1", f"{param}/mlp/hidden")
        yield from _layer(f"{name}.mlp.fc2", f"{param}/mlp/output")
        yield from _attention(f"{name}.attn", f"{param}/attention")


def fields(shapes: naming.Shapes) -> dict[str, typing.Any]:
    """See `naming.Naming`."""
    positions = naming.numbered(shapes, "levels.{}.pos_embed")
    depths = [
        len(naming.numbered(shapes, f"levels.{level}.transformer_encoder.{{}}.norm1.weight"))
        for level in range(len(positions))
    ]
    dim, num_channels, *patch = shapes[MARK]
    return naming.fields(
        (*patch, num_channels, dim),
        positions,
        shapes["levels.0.transformer_encoder.0.mlp.fc1.bias"],
        block_repeats=tuple(depths),
        num_layers=sum(depths),
        heads=None,
        multi_query=False,
        num_classes=shapes.get("head.bias", (0,))[0],
    )


def _require_known(model: nest.NesT) -> None:
    if model.multi_query:
        raise failures.BadInput(
            "the model has multi-query attention, which timm's NesT has not; convert it to "
            "official or nest_dist."
        )
    if model.geometry().grids[-1] != (1, 1):
        raise failures.BadInput(
            f"the model ends with {model.geometry().grids[-1]} blocks, timm's NesT always with "
            "one; convert it to nest_dist, or fine-tune it with block_side = None on a square "
            "image."
        )


def _layer(name: str, param: str) -> Iterator[naming.Entry]:
    """Kernel and bias of a linear layer or a convolution."""
    yield naming.Entry(f"{name}.weight", (f"{param}/kernel",), _outputs_first)
    yield naming.same(f"{name}.bias", f"{param}/bias")


def _outputs_first(kernel: np.ndarray) -> np.ndarray:
    """[in, out] -> [out, in], or [H, W, in, out] -> [out, in, H, W]."""
    return kernel.transpose((1, 0) if kernel.ndim == 2 else (3, 2, 0, 1))


def _norm(name: str, param: str) -> Iterator[naming.Entry]:
    yield naming.same(f"{name}.weight", f"{param}/scale")
    yield naming.same(f"{name}.bias", f"{param}/bias")


def _attention(name: str, param: str) -> Iterator[naming.Entry]:
    def join(*leaves: np.ndarray) -> np.ndarray:
        # Kernels are [C, K, D], biases [K, D].
        return np.concatenate([leaf.reshape(*leaf.shape[:-2], -1).T for leaf in leaves])

    for leaf, ours in (("weight", "kernel"), ("bias", "bias")):
        params = tuple(f"{param}/{projection}/{ours}" for projection in ("query", "key", "value"))
        yield naming.Entry(f"{name}.qkv.{leaf}", params, join)
    # timm gives the outputs of attention as [D, K], so its output projection expects that order.
    yield naming.Entry(
        f"{name}.proj.weight",
        (f"{param}/output/kernel",),
        lambda kernel: kernel.transpose(2, 1, 0).reshape(kernel.shape[-1], -1),
    )
    yield naming.same(f"{name}.proj.bias", f"{param}/output/bias")
