"""One run on every kind of mesh: the same losses, and no word more between devices than needed."""

import collections
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from support import commands, meshes, ports

from nest_dist.parallel import collectives

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "collectives.json"
# Sums in another order differ in the last of 24 bits, 6e-8 of the loss; twenty steps of Adam
# enlarge that a little.
TOLERANCE = 2e-6


@functools.cache
def wired(name):
    return meshes.wire(meshes.MESHES[name])


@functools.cache
def step(name):
    return meshes.compiled(wired(name))


@functools.cache
def losses(name):
    return meshes.losses(wired(name), step(name), meshes.first_params())


@pytest.mark.parametrize("name", [name for name in meshes.MESHES if name != "1"])
def test_the_losses_of_twenty_steps_do_not_depend_on_the_mesh(name):
    assert len(set(losses("1"))) == meshes.STEPS
    np.testing.assert_allclose(losses(name), losses("1"), rtol=TOLERANCE, atol=0)


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
    port = ports.free()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "4",
        "PYTHONPATH": os.pathsep.join(
            [str(commands.TOP / "tests"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    arguments = [f"127.0.0.1:{port}", "2"]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "support.meshes",
                *arguments,
                str(index),
                tmp_path / "first.npz",
                *names,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=900)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    found = [json.loads(line) for line in re.findall(r"^losses (.*)$", outputs[0], re.MULTILINE)]
    assert [each["mesh"] for each in found] == list(names)
    for each in found:
        np.testing.assert_allclose(
            each["losses"], losses("1"), rtol=TOLERANCE, atol=0, err_msg=each["mesh"]
        )


def exchanged(name):
    """Arrays, and numbers in all of them, by kind of collective and axes of the mesh."""
    arrays, numbers = collections.Counter(), collections.Counter()
    for each in collectives.found(step(name).as_text(), wired(name).layout.mesh):
        key = f"{each.kind} over {' and '.join(each.axes)}"
        arrays[key] += len(each.shapes)
        numbers[key] += each.elements
    return {key: [arrays[key], numbers[key]] for key in sorted(arrays)}


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
