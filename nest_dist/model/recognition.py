"""Which NesT weights belong to, told from their names and shapes."""

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence

from nest_dist.base import failures
from nest_dist.model import nest, weights


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What the names and shapes of a format tell.

    Attributes:
        patch: [height, width, channels of the image, channels of a token].
        places: [T, N, C] of each level's position embedding.
        depths: layers of each level; None if the format counts layers over all levels and the
            widths do not tell them apart.
        num_layers: over all levels.
        heads: of the first level; None if the format does not tell.
        multi_query: whether key and value have one head.
        hidden: width of the first MLP.
        num_classes: 0 without a head.
    """

    patch: tuple[int, ...]
    places: Sequence[tuple[int, ...]]
    depths: tuple[int, ...] | None
    num_layers: int
    heads: int | None
    multi_query: bool
    hidden: int
    num_classes: int


def recognise(
    shapes: weights.Shapes,
    known: Mapping[str, nest.NesT],
    hints: Mapping[str, typing.Any] | None = None,
) -> nest.NesT:
    """The model that weights of these names and shapes belong to.

    GELU has no parameters: it is the one of the format's own code, unless `hints` say otherwise.

    Args:
        shapes: of any of the formats.
        known: models by name, for what a format does not tell: heads in timm's, and the depths
            in the official one where all levels have the same width.
        hints: fields of `NesT` that are known otherwise, and win.
    Raises:
        BadInput: if they belong to no NesT, or do not tell enough.
    """
    form = weights.format_of(shapes)
    try:
        seen = {"nest_dist": _ours, "official": _official, "timm": _timm}[form](shapes)
        told = _fields(seen)
    # A name that is missing, or a shape of another rank.
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise failures.BadInput(
            f"the {form} weights are incomplete: {len(shapes)} names, without all parts of a "
            "first level; give the whole checkpoint of one NesT."
        ) from None
    fields = {**told, "gelu": weights.GELU[form], **(hints or {})}
    for name in ("heads", "block_repeats"):
        if fields[name] is None:
            fields[name] = _from_known(name, seen, fields, known)
    return nest.NesT(**fields)


def name_of(model: nest.NesT, known: Mapping[str, nest.NesT]) -> str | None:
    """The published name of a model, whatever its image and classes; None if it has none."""
    for name, candidate in known.items():
        if all(
            getattr(model, field) == getattr(candidate, field) for field in weights.ARCHITECTURE
        ):
            return name
    return None


def _fields(seen: _Seen) -> dict[str, typing.Any]:
    """The fields of `NesT`, those that are not told being None."""
    patch_size, _, num_channels, dim = seen.patch
    *_, (T, N, _) = seen.places
    block_side, top_side = math.isqrt(N), math.isqrt(T)
    widths = [C for _, _, C in seen.places]
    halvings = 2 ** (len(widths) - 1)
    return {
        "image_size": patch_size * block_side * top_side * halvings,
        "patch_size": patch_size,
        "dim": dim,
        "heads": seen.heads,
        "num_hierarchies": len(widths),
        "block_repeats": seen.depths,
        "num_classes": seen.num_classes,
        "num_channels": num_channels,
        "block_side": None if T == 1 else block_side,
        "mlp_ratio": max(seen.hidden // dim, 1),
        "widen": len(widths) == 1 or widths[1] != widths[0],
        "multi_query": seen.multi_query,
    }


def _from_known(
    name: str, seen: _Seen, fields: Mapping[str, typing.Any], known: Mapping[str, nest.NesT]
) -> typing.Any:
    told = [field for field in weights.ARCHITECTURE if fields[field] is not None]
    for model in known.values():
        alike = all(getattr(model, field) == fields[field] for field in told)
        if alike and sum(model.block_repeats) == seen.num_layers:
            return getattr(model, name)
    raise failures.BadInput(
        f"the weights do not tell NesT.{name}, and their shapes are those of none of the known "
        f"models ({', '.join(known)}); give it, as in NesT.{name} = "
        f"{'(3, 3)' if name == 'block_repeats' else 3}."
    )


def _ours(shapes: weights.Shapes) -> _Seen:
    num_levels = _count(shapes, r"levels_(\d+)/position_embedding")
    depths = tuple(
        _count(shapes, rf"levels_{level}/layers_(\d+)/mlp_norm/scale")
        for level in range(num_levels)
    )
    layer = "levels_0/layers_0"
    heads, shared = (shapes[f"{layer}/attention/{part}/kernel"][1] for part in ("query", "key"))
    return _Seen(
        patch=shapes["patch_embedding/kernel"],
        places=[shapes[f"levels_{level}/position_embedding"][1:] for level in range(num_levels)],
        depths=depths,
        num_layers=sum(depths),
        heads=heads,
        multi_query=shared < heads,
        hidden=shapes[f"{layer}/mlp/hidden/kernel"][1],
        num_classes=shapes.get("head/bias", (0,))[0],
    )


def _official(shapes: weights.Shapes) -> _Seen:
    num_levels = _count(shapes, r"PositionEmbedding_(\d+)/pos_embedding")
    num_layers = _count(shapes, r"EncoderNDBlock_(\d+)/LayerNorm_0/scale")
    places = [shapes[f"PositionEmbedding_{level}/pos_embedding"][1:] for level in range(num_levels)]
    widths = [C for _, _, C in places]
    found = [shapes[f"EncoderNDBlock_{count}/LayerNorm_0/scale"][0] for count in range(num_layers)]
    told_apart = len(set(widths)) == num_levels
    multi_query = "EncoderNDBlock_0/MultiQueryAttention_0/bias" in shapes
    attention = "MultiQueryAttention_0" if multi_query else "MultiHeadAttention_0"
    return _Seen(
        patch=shapes["PatchEmbedding_0/Conv_0/kernel"],
        places=places,
        depths=tuple(found.count(width) for width in widths) if told_apart else None,
        num_layers=num_layers,
        heads=shapes[f"EncoderNDBlock_0/{attention}/DenseGeneral_0/kernel"][1],
        multi_query=multi_query,
        hidden=shapes["EncoderNDBlock_0/MlpBlock_0/Dense_0/kernel"][1],
        num_classes=shapes.get("Dense_0/bias", (0,))[0],
    )


def _timm(shapes: weights.Shapes) -> _Seen:
    num_levels = _count(shapes, r"levels\.(\d+)\.pos_embed")
    depths = tuple(
        _count(shapes, rf"levels\.{level}\.transformer_encoder\.(\d+)\.norm1\.weight")
        for level in range(num_levels)
    )
    dim, num_channels, *patch = shapes["patch_embed.proj.weight"]
    return _Seen(
        patch=(*patch, num_channels, dim),
        places=[shapes[f"levels.{level}.pos_embed"][1:] for level in range(num_levels)],
        depths=depths,
        num_layers=sum(depths),
        heads=None,
        multi_query=False,
        hidden=shapes["levels.0.transformer_encoder.0.mlp.fc1.weight"][0],
        num_classes=shapes.get("head.bias", (0,))[0],
    )


def _count(shapes: weights.Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)
