"""The mean of several weights of one model: of checkpoints of a run, or of runs."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from nest_dist.base import failures
from nest_dist.pretrained import stored as stored_weights
from nest_dist.pretrained import weights

# Runs may differ in what they drop, or how they compute.
_SHARED = (*weights.ARCHITECTURE, "image_size", "block_side", "num_classes", "gelu")


def mean(by_path: Mapping[str, stored_weights.StoredWeights]) -> stored_weights.StoredWeights:
    """Weights whose parameters are the means, added in float64; all else is as of the first.

    Raises:
        BadInput: if their models or classes differ.
    Source: arXiv 2203.05482, section 2, the uniform soup.
    """
    (first_path, first), *others = by_path.items()
    for path, stored in others:
        for field in _SHARED:
            one, other = getattr(first.model, field), getattr(stored.model, field)
            if one != other:
                raise failures.BadInput(
                    f"NesT.{field} is {one} in {first_path} and {other} in {path}; average only "
                    "weights of one model."
                )
        if stored.class_names != first.class_names:
            raise failures.BadInput(
                f"{path} has other classes than {first_path}, or in another order; average only "
                "weights of the same classes."
            )
    return dataclasses.replace(
        first,
        params={
            name: np.mean([np.float64(it.params[name]) for it in by_path.values()], axis=0).astype(
                leaf.dtype
            )
            for name, leaf in first.params.items()
        },
    )
