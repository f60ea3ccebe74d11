"""The shipped table of rules, and layouts over some of this process's devices."""

import functools

import jax

from nest_dist.experiment import run as runs
from nest_dist.sharding import mesh, rules

AXES = ("data", "fsdp", "rows", "tensor")


@functools.cache
def shipped_rules() -> rules.Rules:
    """What `gin/mesh/rules.gin` says."""
    return runs.load(["runs/quickstart.gin"], []).rules


def layout(**shape: int) -> rules.ShardingContext:
    """A layout over as many devices as the numbers multiply to, `layout(data=2, rows=2)`."""
    whole = mesh.MeshShape(**{"data": 1, "fsdp": 1, **shape})
    count = 1
    for size in shape.values():
        count *= size
    return rules.ShardingContext(whole.build(jax.devices()[:count]), shipped_rules())
