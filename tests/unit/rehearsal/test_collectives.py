"""Collectives in HLO as libtpu 0.0.42 writes it, shortened."""

import pytest
from support import layouts

from nest_dist.rehearsal import collectives, estimates

PROGRAM = """HloModule jit_step
%body (p: f32[8]) -> f32[8] {
  %reduced = (f32[8,4]{1,0}, bf16[6]{0}) all-reduce(%a, %b), channel_id=1, replica_groups=GROUPS
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %all-gather.2 = f32[16]{0} all-gather(%c), channel_id=2, replica_groups=GROUPS, dimensions={0}
}
"""


def test_bytes_on_the_wire_are_those_of_a_ring():
    def wire(kind):
        shapes = ("bf16[8,10]", "f32[4]", "pred[24]")
        return collectives.Collective(kind, ("data",), shapes, "main", "").wire_bytes(4)

    assert wire("collective-permute") == 160 + 16 + 24
    assert wire("all-gather") == wire("reduce-scatter") == 150
    assert wire("all-reduce") == 300


def test_operations_of_one_channel_are_told_apart_by_their_shapes():
    again = "\n".join(
        f"%copy{number} (a: f32[8]) -> f32[8] {{\n  %reduced.{number} = f32[8]{{0}} "
        "all-reduce(%a), channel_id=1, replica_groups=GROUPS\n}"
        for number in range(2)
    )
    text = PROGRAM.replace("ENTRY", f"{again}\nENTRY").replace("GROUPS", "{{0,1}}")
    program = estimates.read(text)
    read = collectives.read(program, layouts.layout(data=2).mesh)
    reduced = [each.shapes for each in read if each.kind == "all-reduce"]
    assert reduced == [("f32[8,4]", "bf16[6]"), ("f32[8]",)]


@pytest.mark.parametrize(
    ("shape", "slices", "groups", "axes"),
    [
        ({"data": 8}, 1, "{{0,1,2,3,4,5,6,7}}", ["data"]),
        ({"data": 2, "fsdp": 4}, 1, "{{0,1,2,3},{4,5,6,7}}", ["fsdp"]),
        ({"data": 2, "fsdp": 4}, 1, "[1,8]<=[8]", ["data", "fsdp"]),
        ({"data": 2, "fsdp": 4}, 1, "{{0,1},{2,3},{4,5},{6,7}}", ["?"]),
        # Of two slices, the program is that of one.
        ({"data": 8}, 2, "{{0,1,2,3}}", ["data"]),
        ({"data": 2, "fsdp": 4}, 2, "[1,4]<=[4]", ["fsdp"]),
    ],
)
def test_collectives_are_added_up_by_axis_and_as_often_as_they_run(shape, slices, groups, axes):
    mesh = layouts.layout(**shape).mesh
    program = estimates.read(PROGRAM.replace("GROUPS", groups))
    read = collectives.read(program, mesh, slices)
    reduced, gathered = collectives.totals(read, mesh, {"main": 1, "body": 5}, slices)
    assert (reduced["kind"], reduced["axes"]) == ("all-reduce", axes)
    assert (gathered["kind"], gathered["axes"]) == ("all-gather", axes)
    assert (reduced["operations"], reduced["bytes"]) == (5, 5 * (4 * 32 + 2 * 6))
    assert (gathered["operations"], gathered["bytes"]) == (1, 64)
