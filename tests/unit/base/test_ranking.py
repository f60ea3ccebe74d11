import itertools
import math

import pytest

from nest_dist.base import ranking

BROKEN = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("more_is_better", [True, False])
@pytest.mark.parametrize("broken", BROKEN)
def test_the_best_finite_measurement_wins_in_any_order(more_is_better, broken):
    best = 0.9 if more_is_better else -0.9
    for order in itertools.permutations([0.9, -0.9, 0.0, broken]):
        assert max(order, key=lambda value: ranking.merit(value, more_is_better)) == best


@pytest.mark.parametrize("more_is_better", [True, False])
@pytest.mark.parametrize("broken", BROKEN)
def test_even_the_worst_finite_measurement_is_better_than_a_broken_one(more_is_better, broken):
    worst = -1.7e308 if more_is_better else 1.7e308
    merits = [ranking.merit(value, more_is_better) for value in (broken, worst)]
    assert merits[0] < merits[1]
