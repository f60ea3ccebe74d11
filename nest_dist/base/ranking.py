"""Orders measurements, of which some may be NaN or infinite."""

import math
from collections.abc import Mapping


def merit(value: float, more_is_better: bool = True) -> float:
    """A number that is higher for a better measurement, and lowest for one that is not finite.

    Comparisons with NaN are false, so `sorted` and `max` misplace it and its neighbours. An
    infinite measurement also comes from a broken model.
    """
    if not math.isfinite(value):
        return -math.inf
    return value if more_is_better else -value


def without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which has no NaN and no infinity: None takes their place."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
