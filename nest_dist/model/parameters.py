"""What the names of parameters say: logical axes, weight decay, inputs, and depth."""

from collections.abc import Mapping, Sequence

from nest_dist.base import tree_paths

# `sharding.rules.Rules` maps them to mesh axes; None is never sharded. A pattern fits "/" + name,
# so it also fits the moments that an optimizer keeps under the same name.
PARAMETER_AXES: Mapping[str, tuple[str | None, ...]] = {
    "*/patch_embedding/kernel": (None, None, None, "embed"),
    "*/patch_embedding/bias": ("embed",),
    "*/position_embedding": (None, "rows", None, "embed"),
    "*/attention/query/kernel": ("embed", "heads", "head_dim"),
    "*/attention/query/bias": ("heads", "head_dim"),
    "*/attention/key/kernel": ("embed", "heads", "head_dim"),
    "*/attention/key/bias": ("heads", "head_dim"),
    "*/attention/value/kernel": ("embed", "heads", "head_dim"),
    "*/attention/value/bias": ("heads", "head_dim"),
    "*/attention/output/kernel": ("heads", "head_dim", "embed"),
    "*/attention/output/bias": ("embed",),
    "*/mlp/hidden/kernel": ("embed", "mlp"),
    "*/mlp/hidden/bias": ("mlp",),
    "*/mlp/output/kernel": ("mlp", "embed"),
    "*/mlp/output/bias": ("embed",),
    "*/convolution/kernel": (None, None, None, "embed"),
    "*/convolution/bias": ("embed",),
    "*norm/scale": ("embed",),
    "*norm/bias": ("embed",),
    "*/head/kernel": ("embed", "classes"),
    "*/head/bias": ("classes",),
}

# Biases and norms do decay, as in the official configuration.
NO_WEIGHT_DECAY: tuple[str, ...] = ("*/position_embedding",)

_TO_HEADS = ("*attention/query/*", "*attention/key/*", "*attention/value/*")


def of_model(num_hierarchies: int, num_classes: int) -> dict[str, tuple[str | None, ...]]:
    """`PARAMETER_AXES` without the patterns that no parameter of such a model fits."""
    absent = ("*/convolution/",) * (num_hierarchies == 1) + ("*/head/",) * (num_classes == 0)
    return {
        pattern: axes for pattern, axes in PARAMETER_AXES.items() if not pattern.startswith(absent)
    }


def num_input_axes(name: str, ndim: int) -> int:
    """The number of leading axes of a parameter over which each of its outputs sums.

    All of them for a bias or a scale, which is one unit as a whole.
    """
    if name.endswith(("bias", "scale")):
        return ndim
    to_heads = tree_paths.matches(name, _TO_HEADS)
    return 1 if to_heads else max(1, ndim - 1)


def layers_above(name: str, block_repeats: Sequence[int]) -> int:
    """How many layers follow a parameter on its way to the head.

    An aggregation, and the position embedding behind it, counts with the layer before it. Norm and
    head, and what is none of the model's, have none above them.

    Source: the layer-wise decay of SimMIM for Swin, arXiv 2111.09886.
    """
    module, *below = name.split("/")
    before = 0  # layers up to this parameter's
    if module.startswith(("levels_", "aggregations_")):
        number = int(module.rpartition("_")[2])
        if module.startswith("aggregations_"):
            before = sum(block_repeats[: number + 1])
        else:
            before = sum(block_repeats[:number])
            if below[0].startswith("layers_"):
                before += int(below[0].removeprefix("layers_")) + 1
    elif module != "patch_embedding":
        return 0
    return sum(block_repeats) + 1 - before
