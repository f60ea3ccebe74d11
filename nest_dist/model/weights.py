"""The table of names and shapes: official, timm's and our parameters, one for one.

Weights are flat here: {"levels_0/position_embedding": array}. Nothing is computed with them; they
are only moved, split and joined, so that going there and back gives the same bytes.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import failures, names
from nest_dist.model import nest

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
Format = typing.Literal["nest_dist", "official", "timm"]
FORMATS: tuple[Format, ...] = typing.get_args(Format)

# A name that every model of a format has, and no other format.
_MARKS: Mapping[Format, str] = {
    "nest_dist": "patch_embedding/kernel",
    "official": "PatchEmbedding_0/Conv_0/kernel",
    "timm": "patch_embed.proj.weight",
}
_LISTED_NAMES = 5

# What two models have to share for the weights of one to serve the other; the image, the blocks
# and the classes may differ.
ARCHITECTURE = (
    "patch_size",
    "dim",
    "heads",
    "num_hierarchies",
    "block_repeats",
    "num_channels",
    "mlp_ratio",
    "widen",
    "multi_query",
)


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


def format_of(arrays: Mapping[str, typing.Any]) -> Format:
    """The format that these names belong to.

    Raises:
        BadInput: if they belong to none.
    """
    for form, mark in _MARKS.items():
        if mark in arrays:
            return form
    first = next(iter(arrays), "nothing")
    raise failures.BadInput(
        f"the weights are not those of a NesT: there is no {' or '.join(_MARKS.values())} among "
        f"their {len(arrays)} names, the first of which is {first}; give a NesT checkpoint."
    )


def architecture(model: nest.NesT) -> tuple[typing.Any, ...]:
    """The values of the fields in `ARCHITECTURE`."""
    return tuple(getattr(model, field) for field in ARCHITECTURE)


@functools.lru_cache(maxsize=8)
def shapes_of(model: nest.NesT) -> Shapes:
    """Name and shape of every parameter of a model."""
    H, W = model.geometry().image_sides
    images = jax.ShapeDtypeStruct((1, H, W, model.num_channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes = {name: leaf.shape for name, leaf in names.flatten(variables["params"]).items()}
    return types.MappingProxyType(shapes)


def to_ours(form: Format, arrays: Arrays, model: nest.NesT) -> dict[str, np.ndarray]:
    """Our parameters, of those of another format.

    Raises:
        BadInput: listing what is missing, extra or misshaped; or not of floating point.
    """
    table = entries(form, model)
    _require_same_shapes(form, {name: leaf.shape for name, leaf in arrays.items()}, table, model)
    found: dict[str, np.ndarray] = {}
    for entry in table:
        parts = entry.split(_as_float32(entry.theirs, arrays[entry.theirs]))
        found.update(zip(entry.ours, map(np.ascontiguousarray, parts), strict=True))
    return {name: found[name] for name in sorted(found)}


def from_ours(form: Format, params: Arrays, model: nest.NesT) -> dict[str, np.ndarray]:
    """The parameters of another format, of ours; in the order of their names.

    Raises:
        BadInput: listing what is missing, extra or misshaped; or if timm has no such model.
    """
    own = entries("nest_dist", model)
    shapes = {name: leaf.shape for name, leaf in params.items()}
    _require_same_shapes("nest_dist", shapes, own, model)
    joined = {
        entry.theirs: np.ascontiguousarray(entry.join(*(params[name] for name in entry.ours)))
        for entry in entries(form, model)
    }
    return {name: joined[name] for name in sorted(joined)}


def entries(form: Format, model: nest.NesT) -> list[Entry]:
    """The table of one format, for one model.

    Raises:
        BadInput: if the format cannot hold such a model.
    """
    if form == "timm":
        _require_known_to_timm(model)
        table = list(_timm(model))
    elif form == "official":
        table = list(_official(model))
    else:
        table = [_same(name, name) for name in shapes_of(model)]
    return table


def _same(theirs: str, ours: str) -> Entry:
    return Entry(theirs, (ours,), lambda x: x, lambda x: (x,))


def _permuted(theirs: str, ours: str, permutation: tuple[int, ...]) -> Entry:
    """`permutation` leads from our axes to theirs."""
    back = tuple(np.argsort(permutation))
    return Entry(
        theirs, (ours,), lambda x: x.transpose(permutation), lambda x: (x.transpose(back),)
    )


def _layers(model: nest.NesT) -> Iterator[tuple[int, int, int]]:
    """Level, layer within the level, and layer counted over all levels."""
    count = 0
    for level, depth in enumerate(model.block_repeats):
        for layer in range(depth):
            yield level, layer, count
            count += 1


def _official(model: nest.NesT) -> Iterator[Entry]:
    attention = "MultiQueryAttention_0" if model.multi_query else "MultiHeadAttention_0"
    key_and_value = f"{attention}/{'Dense_0' if model.multi_query else 'DenseGeneral_1'}"
    for leaf in ("kernel", "bias"):
        yield _same(f"PatchEmbedding_0/Conv_0/{leaf}", f"patch_embedding/{leaf}")
        if model.num_classes:
            yield _same(f"Dense_0/{leaf}", f"head/{leaf}")
    for leaf in ("scale", "bias"):
        yield _same(f"LayerNorm_0/{leaf}", f"norm/{leaf}")
    for level in range(model.num_hierarchies):
        yield _same(
            f"PositionEmbedding_{level}/pos_embedding", f"levels_{level}/position_embedding"
        )
    for level in range(model.num_hierarchies - 1):
        for leaf in ("kernel", "bias"):
            theirs, ours = f"ConvPool_{level}/Conv_0", f"aggregations_{level}/convolution"
            yield _same(f"{theirs}/{leaf}", f"{ours}/{leaf}")
        for leaf in ("scale", "bias"):
            yield _same(f"ConvPool_{level}/LayerNorm_0/{leaf}", f"aggregations_{level}/norm/{leaf}")
    for level, layer, count in _layers(model):
        ours, theirs = f"levels_{level}/layers_{layer}", f"EncoderNDBlock_{count}"
        for leaf in ("scale", "bias"):
            yield _same(f"{theirs}/LayerNorm_0/{leaf}", f"{ours}/attention_norm/{leaf}")
            yield _same(f"{theirs}/LayerNorm_1/{leaf}", f"{ours}/mlp_norm/{leaf}")
        for leaf in ("kernel", "bias"):
            yield _same(f"{theirs}/MlpBlock_0/Dense_0/{leaf}", f"{ours}/mlp/hidden/{leaf}")
            yield _same(f"{theirs}/MlpBlock_0/Dense_1/{leaf}", f"{ours}/mlp/output/{leaf}")
            yield _same(
                f"{theirs}/{attention}/DenseGeneral_0/{leaf}", f"{ours}/attention/query/{leaf}"
            )
            yield Entry(
                f"{theirs}/{key_and_value}/{leaf}",
                (f"{ours}/attention/key/{leaf}", f"{ours}/attention/value/{leaf}"),
                *(_SHARED_KEY_AND_VALUE if model.multi_query else _KEY_AND_VALUE),
            )
        yield _same(f"{theirs}/{attention}/proj_kernel", f"{ours}/attention/output/kernel")
        yield _same(f"{theirs}/{attention}/bias", f"{ours}/attention/output/bias")


# The key comes first in the last axis; the shared head of multi-query attention has no axis there.
_KEY_AND_VALUE = (
    lambda key, value: np.concatenate([key, value], axis=-1),
    lambda both: np.split(both, 2, axis=-1),
)
_SHARED_KEY_AND_VALUE = (
    lambda key, value: np.concatenate([key, value], axis=-1).squeeze(axis=-2),
    lambda both: np.split(both[..., None, :], 2, axis=-1),
)


def _timm(model: nest.NesT) -> Iterator[Entry]:
    to_torch_convolution = (3, 2, 0, 1)  # [H, W, in, out] -> [out, in, H, W]
    yield _permuted("patch_embed.proj.weight", "patch_embedding/kernel", to_torch_convolution)
    yield _same("patch_embed.proj.bias", "patch_embedding/bias")
    yield from _timm_norm("norm", "norm")
    if model.num_classes:
        yield from _timm_linear("head", "head")
    for level in range(model.num_hierarchies):
        yield _same(f"levels.{level}.pos_embed", f"levels_{level}/position_embedding")
    for level in range(1, model.num_hierarchies):
        theirs, ours = f"levels.{level}.pool", f"aggregations_{level - 1}"
        yield _permuted(f"{theirs}.conv.weight", f"{ours}/convolution/kernel", to_torch_convolution)
        yield _same(f"{theirs}.conv.bias", f"{ours}/convolution/bias")
        yield from _timm_norm(f"{theirs}.norm", f"{ours}/norm")
    for level, layer, _ in _layers(model):
        ours = f"levels_{level}/layers_{layer}"
        theirs = f"levels.{level}.transformer_encoder.{layer}"
        yield from _timm_norm(f"{theirs}.norm1", f"{ours}/attention_norm")
        yield from _timm_norm(f"{theirs}.norm2", f"{ours}/mlp_norm")
        yield from _timm_linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/hidden")
        yield from _timm_linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/output")
        C = model.widths()[level]
        K = model.heads * C // model.dim
        yield from _timm_attention(f"{theirs}.attn", f"{ours}/attention", K, C // K)


def _timm_norm(theirs: str, ours: str) -> Iterator[Entry]:
    yield _same(f"{theirs}.weight", f"{ours}/scale")
    yield _same(f"{theirs}.bias", f"{ours}/bias")


def _timm_linear(theirs: str, ours: str) -> Iterator[Entry]:
    yield _permuted(f"{theirs}.weight", f"{ours}/kernel", (1, 0))
    yield _same(f"{theirs}.bias", f"{ours}/bias")


def _timm_attention(theirs: str, ours: str, K: int, D: int) -> Iterator[Entry]:
    def join_kernels(*kernels: np.ndarray) -> np.ndarray:
        return np.stack([kernel.reshape(-1, K * D).T for kernel in kernels]).reshape(-1, K * D)

    def split_kernels(joined: np.ndarray) -> Sequence[np.ndarray]:
        return [part.T.reshape(K * D, K, D) for part in joined.reshape(3, K * D, K * D)]

    # timm lays what attention gives out as [D, K], so its output projection expects that order.
    def join_output(kernel: np.ndarray) -> np.ndarray:
        return kernel.transpose(2, 1, 0).reshape(K * D, D * K)

    def split_output(joined: np.ndarray) -> Sequence[np.ndarray]:
        return (joined.reshape(K * D, D, K).transpose(2, 1, 0),)

    def of_all(leaf: str) -> tuple[str, ...]:
        return tuple(f"{ours}/{part}/{leaf}" for part in ("query", "key", "value"))

    yield Entry(f"{theirs}.qkv.weight", of_all("kernel"), join_kernels, split_kernels)
    yield Entry(
        f"{theirs}.qkv.bias",
        of_all("bias"),
        lambda *biases: np.stack(biases).reshape(-1),
        lambda joined: list(joined.reshape(3, K, D)),
    )
    yield Entry(f"{theirs}.proj.weight", (f"{ours}/output/kernel",), join_output, split_output)
    yield _same(f"{theirs}.proj.bias", f"{ours}/output/bias")


def _require_known_to_timm(model: nest.NesT) -> None:
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


def _require_same_shapes(
    form: Format, found: Shapes, table: Sequence[Entry], model: nest.NesT
) -> None:
    ours = shapes_of(model)
    wanted: dict[str, tuple[int, ...]] = {}
    for entry in table:
        # Arrays of no memory: one zero, seen everywhere.
        parts = [np.broadcast_to(np.int8(0), ours[name]) for name in entry.ours]
        wanted[entry.theirs] = entry.join(*parts).shape
    faults = {
        "missing": [name for name in wanted if name not in found],
        "extra": [name for name in found if name not in wanted],
        "misshaped": [
            f"{name} {list(found[name])} instead of {list(wanted[name])}"
            for name in wanted
            if name in found and tuple(found[name]) != tuple(wanted[name])
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_some(named)}" for kind, named in faults.items() if named)
        raise failures.BadInput(
            f"the {form} weights are not those of {describe(model)}: {listed}; give the whole "
            "checkpoint of one NesT."
        )


def _some(named: Sequence[str]) -> str:
    rest = len(named) - _LISTED_NAMES
    return ", ".join(named[:_LISTED_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _as_float32(name: str, leaf: np.ndarray) -> np.ndarray:
    if leaf.dtype == np.float32:
        return leaf
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
        return leaf.astype(np.float32)  # exact
    raise failures.BadInput(
        f"{name} has the type {leaf.dtype}; weights must be float32, or shorter floats, which "
        "float32 holds exactly."
    )


def describe(model: nest.NesT) -> str:
    """A model in a few words."""
    H, W = model.geometry().image_sides
    return (
        f"a NesT of {model.num_hierarchies} levels with {model.block_repeats} layers, width "
        f"{model.dim}, {model.heads} {'query ' if model.multi_query else ''}heads and "
        f"{model.num_classes} classes for {H} x {W} pixels"
    )
