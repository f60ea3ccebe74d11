"""Cycles in programs that the compiler for TPUs has made just now."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nest_dist.rehearsal import estimates, topology

SIDE = 256


@functools.cache
def compiled(function, *shapes):
    device = topology.devices("v5e:2x2")[0]
    sharding = NamedSharding(Mesh(np.array([device]), ("all",)), PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


def product(x, w):
    with jax.named_scope("product"):
        return jnp.tanh(x @ w)


def once(x, w):
    return product(product(x, w[0]), w[1])


def nested(x, w, trips=3):
    def inner(x, w):
        return product(x, w), None

    def outer(x, _):
        return jax.lax.scan(inner, x, w)[0], None

    return jax.lax.scan(outer, x, None, length=trips)[0]


def chosen(x, w):
    return jax.lax.cond(x[0, 0] > 0, lambda x: product(x, w), lambda x: x + 1, x)


def group(instruction):
    return "product" if "/product/" in instruction.source else "rest"


def test_a_loop_in_a_loop_counts_as_often_as_it_runs():
    shapes = (SIDE, SIDE), (7, SIDE, SIDE)
    program = estimates.read(compiled(nested, *shapes))
    assert program.uncounted == ()
    assert {3, 21} <= set(program.executions.values())
    longer = estimates.read(compiled(functools.partial(nested, trips=6), *shapes))
    assert longer.cycles(group)["product"] == 2 * program.cycles(group)["product"] > 0


def test_the_branches_of_a_conditional_count_as_equally_likely():
    shapes = (SIDE, SIDE), (SIDE, SIDE)
    program = estimates.read(compiled(chosen, *shapes))
    always = estimates.read(compiled(product, *shapes))
    assert 0.5 in program.executions.values()
    # A copy of the operands, at most, besides.
    half = always.cycles(group)["product"] / 2
    assert half <= program.cycles(group)["product"] < 1.2 * half


def test_a_loop_without_a_constant_in_its_condition_is_named():
    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 100, lambda x: 2 * x, x)

    program = estimates.read(compiled(until, (SIDE, SIDE)))
    assert len(program.uncounted) == 1
    assert program.uncounted[0].startswith("while")


def test_work_without_an_estimate_is_counted():
    def pooled(x):
        window = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))
        return jnp.sum(jax.lax.reduce_window(x, -np.inf, jax.lax.max, *window))

    def without(function, *shapes):
        program = estimates.read(compiled(function, *shapes))
        return [each.opcode for _, each in program.work() if each.cycles is None]

    assert without(jax.grad(pooled), (8, 16, 16, 128)) == ["select-and-scatter"]
    assert without(once, (SIDE, SIDE), (2, SIDE, SIDE)) == []


@pytest.mark.parametrize("trips", [1, 40])
def test_the_trip_count_is_that_of_the_condition(trips):
    # As libtpu 0.0.42 writes it, shortened.
    program = estimates.read(f"""HloModule jit_f
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p.0 = (s32[], f32[8]) parameter(0)
  ROOT %fusion.1 = (s32[]{{:T(128)}}, f32[8]{{0:T(256)}}) fusion(%p.0), kind=kLoop, calls=%fused, \
metadata={{op_name="jit(f)/while/body/add"}}, backend_config={{"estimated_cycles":"100"}}
}}
%fused (q: f32[8]) -> f32[8] {{
  ROOT %q.0 = f32[8]{{0}} parameter(0)
}}
%condition (p: (s32[], f32[8])) -> pred[] {{
  %p.1 = (s32[], f32[8]) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%p.1), index=0
  %limit = s32[]{{:T(128)}} constant({trips})
  ROOT %less = pred[]{{:T(512)}} compare(%i, %limit), direction=LT
}}
ENTRY %main (a: f32[8]) -> f32[8] {{
  %a.0 = f32[8]{{0:T(256)}} parameter(0)
  %start = (s32[], f32[8]) tuple(%a.0)
  %while.2 = (s32[]{{:T(128)}}, /*index=1*/f32[8]{{0:T(256)}}) while(%start), \
condition=%condition, body=%body
  ROOT %copy.3 = f32[8]{{0:T(256)}} copy(%while.2), backend_config={{"estimated_cycles":"7"}}
}}
""")
    assert program.cycles(lambda i: i.opcode) == {"fusion": 100 * trips, "copy": 7}
    assert program.fused == {"fused"}


def test_instructions_that_are_alike_have_one_form_whatever_their_names():
    program = estimates.read("""HloModule jit_f
%one (p: f32[8]) -> f32[8] {
  %p.0 = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p.0, %p.0), metadata={op_name="one"}
}
%two (p: f32[8]) -> f32[8] {
  %p.2 = f32[8]{0} parameter(0)
  ROOT %add.3 = f32[8]{0} add(%p.2, %p.2), metadata={op_name="two"}
}
%three (p: f32[8]) -> f32[8] {
  %p.4 = f32[8]{0} parameter(0)
  ROOT %multiply.5 = f32[8]{0} multiply(%p.4, %p.4)
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %a = f32[8]{0} fusion(%x.1), kind=kLoop, calls=%one, metadata={op_name="a"}
  %b = f32[8]{0} fusion(%a), kind=kLoop, calls=%two
  ROOT %c = f32[8]{0} fusion(%b), kind=kLoop, calls=%three
}
""")
    a, b, c = (program.form(each) for _, each in program.work())
    assert a == b != c
