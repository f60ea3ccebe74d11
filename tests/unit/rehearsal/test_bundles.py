"""Bundles as libtpu 0.0.42 writes them, shortened."""

import pytest

from nest_dist.rehearsal import bundles

PUSH = "%v1 = vmatpush.bf16.msra.mxu0 %v9"
FIRST = "%v2 = vmatmul.bf16.vlgmr.msra.mxu0 %v8"
NEXT = "%v3 = vmatmul.bf16.gmra.mxu0 %v8"
POP = "%v4 = vpop.f32.mrf.mxu0"
ADD = "%v5 = vadd.f32 %v6, %v7"


def written(*bundles, depth=1):
    return "\n".join(
        f"  {hex(number)}   : {'>' * depth} {{ {bundle} }}" for number, bundle in enumerate(bundles)
    )


def test_bundles_of_a_step_are_counted_and_what_comes_before_is_not():
    text = written(ADD, ADD, depth=0) + "\n" + written(ADD, ADD, ADD)
    assert bundles.of_text(text) == bundles.Bundles(issued=3, low=3, high=3)


def test_a_result_is_waited_for():
    counted = bundles.of_text(written(PUSH, FIRST, POP, ADD))
    # The matrix is in after 4 cycles, the result is there 24 later, and two bundles follow.
    assert counted == bundles.Bundles(issued=4, low=4 + 24 + 2, high=8 + 90 + 2)


def test_work_that_hides_a_product_costs_nothing_more():
    hidden = bundles.of_text(written(PUSH, FIRST, *[ADD] * 100, POP))
    assert (hidden.issued, hidden.low) == (103, 103)


def test_a_matrix_unit_takes_one_row_a_cycle():
    products = 40
    counted = bundles.of_text(written(PUSH, FIRST, *[NEXT] * (products - 1), *[POP] * 2 * products))
    assert counted.low == pytest.approx(16 * products + 24, abs=16)


def test_a_grid_of_one_step_has_no_loop():
    assert bundles.of_text(written(ADD, ADD, depth=0)).issued == 2
