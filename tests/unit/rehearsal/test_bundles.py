"""Bundles as libtpu 0.0.42 writes them, shortened."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nest_dist.base import chips
from nest_dist.rehearsal import bundles, estimates, kernels, topology

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
    assert bundles.of_step(text) == bundles.Bundles(issued=3, low=3, high=3)


def test_a_result_is_waited_for():
    counted = bundles.of_step(written(PUSH, FIRST, POP, ADD))
    # The matrix is in after 4 cycles, the result is there 24 later, and two bundles follow.
    assert counted == bundles.Bundles(issued=4, low=4 + 24 + 2, high=8 + 90 + 2)


def test_work_that_hides_a_product_costs_nothing_more():
    hidden = bundles.of_step(written(PUSH, FIRST, *[ADD] * 100, POP))
    assert (hidden.issued, hidden.low) == (103, 103)


def test_a_matrix_unit_takes_one_row_a_cycle():
    products = 40
    counted = bundles.of_step(written(PUSH, FIRST, *[NEXT] * (products - 1), *[POP] * 2 * products))
    assert counted.low == pytest.approx(16 * products + 24, abs=16)


def test_a_grid_of_one_step_has_no_loop():
    assert bundles.of_step(written(ADD, ADD, depth=0)).issued == 2


def loop(depth, turns, *rest):
    """A loop of one bundle, with other bundles behind it."""
    test = f"%p1 = scmp.ge.s32.totalorder %s2, {turns} /* loop exit test */"
    return f"  0x1 LB: {'>' * depth} {{ {test} }}\n" + "".join(rest)


def test_loops_of_an_instruction_of_xla_turn_as_often_as_their_exit_tests_say():
    once = written(ADD, ADD, depth=0) + "\n"
    assert bundles.of_instruction(once) == 2
    assert bundles.of_instruction(once + loop(1, 10)) == 2 + 10
    assert bundles.of_instruction(once + loop(1, 10, loop(2, 3))) == 2 + 10 * (1 + 3)
    assert bundles.of_instruction(once + loop(1, 10) + loop(1, 7)) == 2 + 10 + 7
    assert bundles.of_instruction(once + loop(1, 10) + once) == 2 + 10 + 2


def test_a_loop_in_stages_turns_twice_to_fill_and_to_empty_them():
    begin = "  0x0 LB: > { %s1 = sadd.s32 1, %s2 /* iteration index, stage = 1 */ }\n"
    assert bundles.of_instruction(begin + loop(1, 10).replace("LB", "  ")) == 8 * 2


def test_a_loop_with_a_computed_end_counts_once():
    assert bundles.of_instruction(written(ADD, ADD, ADD)) == 3


@pytest.mark.medium
def test_what_has_no_estimate_is_counted_by_the_bundles_of_its_program():
    pytest.importorskip("libtpu")

    def pooled(x):
        window = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))
        return jnp.sum(jax.lax.reduce_window(x, -np.inf, jax.lax.max, *window))

    here = jax.sharding.SingleDeviceSharding(topology.devices("v5e:2x2")[0])
    x = jax.ShapeDtypeStruct((8, 32, 32, 128), jnp.float32, sharding=here)
    bundles.forget()
    program = estimates.read(jax.jit(jax.grad(pooled)).lower(x).compile().as_text())

    def opcode(instruction):
        return instruction.opcode if instruction.cycles is None else None

    def counted():
        return kernels.cycles(program, (), bundles.written(), chips.CHIPS["TPU v5 lite"], opcode)

    found = counted()
    assert found.missing == {}
    # A bundle adds four registers of 1,024 numbers at most, of 9 in each window.
    assert found.cycles["select-and-scatter"] > 9 * 8 * 16 * 16 * 128 / 4096
    bundles.forget()
    assert counted().missing == {"select-and-scatter": 1}
