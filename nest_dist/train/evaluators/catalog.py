"""All measures by the names that `nest-dist evaluate --measures` takes."""

from collections.abc import Mapping

from nest_dist.train import evaluators
from nest_dist.train.evaluators import (
    among_classes,
    confusion,
    few_shot,
    linear_probe,
    neighbours,
    right_labels,
    top_k,
)

MEASURES: Mapping[str, type[evaluators.Measure]] = {
    "top_k": top_k.TopK,
    "knn": neighbours.KNearest,
    "few_shot": few_shot.FewShot,
    "linear_probe": linear_probe.LinearProbe,
    "among_classes": among_classes.AmongClasses,
    "right_labels": right_labels.RightLabels,
    "confusion": confusion.Confusion,
}
