"""Logical axes of every parameter, and the parameters without weight decay. Plain data."""

from collections.abc import Mapping

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


def of_model(num_hierarchies: int, num_classes: int) -> dict[str, tuple[str | None, ...]]:
    """`PARAMETER_AXES` without the patterns that no parameter of such a model fits."""
    absent = ("*/convolution/",) * (num_hierarchies == 1) + ("*/head/",) * (num_classes == 0)
    return {
        pattern: axes for pattern, axes in PARAMETER_AXES.items() if not pattern.startswith(absent)
    }
