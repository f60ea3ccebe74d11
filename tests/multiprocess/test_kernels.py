"""Runs whose layers are computed by kernels, interpreted on a CPU."""

import functools
import shutil
import sys

import numpy as np
import pytest
from support import changing, commands, harness, meshes

from nest_dist.model.kernels import call

# What the kernels serve: heads of 16 channels, and no dropout inside of branches. Blocks are so
# small that several are computed as one.
SERVED = {"dim": 32, "attention_dropout": 0.0, "projection_dropout": 0.0, "multi_query": True}
# The same sums in another order, 6e-8 of each number; Adam enlarges that. Twenty steps stay within
# it, too, but take twelve minutes.
TOLERANCE = 2e-5
STEPS = 8


def losses(kernels, steps, **shape):
    """Of some steps on a mesh."""
    run = meshes.tiny()
    run = changing.changed(run, {"model": run.model.clone(kernels=kernels, **SERVED)})
    with call.interpreted():
        experiment = meshes.built(shape, base=run)
        return meshes.losses(experiment, meshes.compiled(experiment), steps=steps)


@functools.cache
def plain():
    return losses("plain", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        (STEPS, {}),
        (4, {"data": 4}),  # interpreted, twenty steps take each device minutes
        (4, {"data": 2, "fsdp": 2}),
        (4, {"rows": 2}),
    ],
)
def test_kernels_train_as_the_plain_layers_do(steps, shape):
    found, expected = losses("fused", steps, **shape), plain()[:steps]
    assert len(set(found)) == steps
    assert found != expected  # in the last bits, or nothing would have been compared
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=0)


# `nest-dist`, with kernels interpreted.
PROGRAM = """
import sys
from nest_dist.commands import cli
from nest_dist.model.kernels import call
with call.interpreted():
    cli.main(sys.argv[1:])
"""


def trained(workdir):
    """What is said by a run of eight steps on a mesh, or by what is left of it."""
    flags = commands.tiny_flags(
        workdir,
        *commands.ONE_LEVEL,
        "NesT.dim = 16",
        "NesT.kernels = 'fused'",
        "NesT.stochastic_depth = 0.3",
        "MeshShape.data = 2",
        "MeshShape.fsdp = 2",
        "Run.num_epochs = '8 steps'",
        "Cadence.save_every_epochs = '4 steps'",
        "Evaluation.every_epochs = '8 steps'",
        "Cosine.warmup_epochs = '1 steps'",
    )
    command = [sys.executable, "-c", PROGRAM, "train", *flags]
    done = harness.run(command, environment=harness.environment(4))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_by_kernels_goes_on_after_its_middle_with_the_same_bits(tmp_path):
    assert "kernels: fused, since" in trained(tmp_path)
    unbroken = commands.arrays(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    trained(tmp_path)
    assert sorted(commands.losses(tmp_path)) == list(range(1, 9))
    commands.assert_same_bits(commands.arrays(tmp_path), unbroken)
