"""One run on every kind of mesh: the same losses, and no word more between devices than needed."""

import collections
import functools
import json
import os
import pathlib
import re
import sys

import numpy as np
import pytest
from support import harness, meshes, ports

from nest_dist.rehearsal import collectives, estimates

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "collectives.json"
# Sums in another order differ in the last of 24 bits, 6e-8 of the loss; twenty steps of Adam
# enlarge that a little.
TOLERANCE = 2e-6


@functools.cache
def wired(name):
    return meshes.built(meshes.MESHES[name])


@functools.cache
def step(name):
    return meshes.compiled(wired(name))


@functools.cache
def losses(name):
    return meshes.losses(wired(name), step(name), meshes.first_params())


OFTEN = ("data=2 fsdp=2 tensor=2", "data=2 rows=4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow)
        for name in meshes.MESHES
        if name != "1"
    ],
)
def test_the_losses_of_twenty_steps_do_not_depend_on_the_mesh(name):
    assert len(set(losses("1"))) == meshes.STEPS
    np.testing.assert_allclose(losses(name), losses("1"), rtol=TOLERANCE, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("data=2 fsdp=2 tensor=2",),
        pytest.param(
            ("data=8", "fsdp=8", "data=2 fsdp=4", "rows=2", "data=2 rows=4"), marks=pytest.mark.slow
        ),
    ],
)
def test_two_processes_of_four_devices_have_the_same_losses(names, tmp_path):
    np.savez(tmp_path / "first.npz", **meshes.first_params())
    environment = harness.environment(4, PYTHONPATH=harness.module_path())
    program = [sys.executable, "-m", "support.meshes", f"127.0.0.1:{ports.free()}", "2"]
    started = [[*program, index, tmp_path / "first.npz", *names] for index in range(2)]
    with harness.Group(started, environment=environment) as group:
        assert group.wait() == [0, 0], group.said()
        said = group.processes[0].said()
    found = [json.loads(line) for line in re.findall(r"^losses (.*)$", said, re.MULTILINE)]
    assert [each["mesh"] for each in found] == list(names)
    for each in found:
        np.testing.assert_allclose(
            each["losses"], losses("1"), rtol=TOLERANCE, atol=0, err_msg=each["mesh"]
        )


def exchanged(name):
    """Arrays, and numbers in all of them, by kind of collective and axes of the mesh."""
    arrays, numbers = collections.Counter(), collections.Counter()
    for each in collectives.read(estimates.read(step(name).as_text()), wired(name).sharding.mesh):
        key = f"{each.kind} over {' and '.join(each.axes)}"
        arrays[key] += len(each.shapes)
        numbers[key] += sum(map(collectives.elements, each.shapes))
    return {key: [arrays[key], numbers[key]] for key in sorted(arrays)}


@pytest.mark.slow
def test_devices_exchange_what_they_must_and_nothing_else():
    """`UPDATE_GOLDEN=1` rewrites the file, for review: [arrays, numbers in them on one device]."""
    found = {name: exchanged(name) for name in meshes.MESHES}
    if os.environ.get("UPDATE_GOLDEN"):
        lines = (
            f"  {json.dumps(name)}: {{\n"
            + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in of_mesh.items())
            + "\n  }"
            for name, of_mesh in found.items()
        )
        GOLDEN.write_text("{\n" + ",\n".join(lines).replace("{\n\n  }", "{}") + "\n}\n")
    assert found == json.loads(GOLDEN.read_text())
