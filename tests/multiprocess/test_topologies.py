"""One run on several numbers of processes and devices: the same batches, the same losses."""

import json
import re
import sys

import numpy as np
import pytest
from support import commands, harness

# Processes, devices of each, and other ways to lay a run out and to load for it.
LAYOUTS = [
    (2, 2, None),
    (2, 1, "TrainingData.workers = 2"),
    *(
        pytest.param(*layout, marks=pytest.mark.slow)
        for layout in (
            (1, 4, None),
            (4, 1, None),
            (1, 4, "MeshShape.rows = 2"),
            (1, 4, "MeshShape.fsdp = 4"),
            (2, 2, "MeshShape.fsdp = 2"),
        )
    ),
]
SHORT = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 0.2",
    "Cadence.save_every_epochs = 0.1",
    "Evaluation.every_epochs = 0.2",
)


def batch_digests(processes, devices, *flags):
    """sha256 of global batches by step, as process 0 of a run sees them."""
    program = [
        *(sys.executable, "-m", "support.batch_digests", "--gin_file=runs/quickstart.gin"),
        *(f"--gin_bindings={binding}" for binding in commands.TINY),
        *flags,
    ]
    environment = harness.environment(devices, PYTHONPATH=harness.module_path())
    with harness.Group.of(processes, program, environment=environment) as group:
        assert group.wait() == [0] * processes, group.said()
        said = group.processes[0].said()
    return dict(re.findall(r"^batch (\d+) (\w{64})$", said, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def reference_batches():
    return batch_digests(1, 1)


@pytest.mark.parametrize(("processes", "devices", "binding"), LAYOUTS)
def test_global_batches_do_not_depend_on_the_topology(
    processes, devices, binding, reference_batches
):
    assert len(set(reference_batches.values())) == 60
    flags = [] if binding is None else [f"--gin_bindings={binding}"]
    assert batch_digests(processes, devices, *flags) == reference_batches


@pytest.mark.slow
def test_a_resumed_sequence_of_batches_goes_on_as_the_unbroken_one(reference_batches):
    # With another number of processes than the beginning had.
    resumed = batch_digests(2, 1, "--first_step=47", "--num_steps=3")
    assert resumed == {step: reference_batches[step] for step in ("47", "48", "49")}


@pytest.mark.slow
def test_another_seed_gives_other_batches(reference_batches):
    other = batch_digests(1, 1, "--gin_bindings=Run.seed = 1", "--num_steps=1")
    assert other["0"] != reference_batches["0"]


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    commands.nest_dist("train", *commands.tiny_flags(workdir, *SHORT), succeeds=True)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices"),
    [(2, 1), *(pytest.param(*it, marks=pytest.mark.slow) for it in ((1, 1), (1, 4), (4, 1)))],
)
def test_evaluation_counts_each_example_once_on_any_number_of_processes(
    processes, devices, reference_run
):
    program = [*commands.NEST_DIST, "evaluate", f"--workdir={reference_run}", "--format=json"]
    environment = harness.environment(devices)
    with harness.Group.of(processes, program, environment=environment) as group:
        assert set(group.wait()) == {0}, group.said()
        (line,) = re.findall(r"^\{.*\}$", group.said(), flags=re.MULTILINE)
    found, (during,) = json.loads(line), commands.evaluations(reference_run)
    # 359 examples are no multiple of 32: the last batch is filled up.
    assert found["eval/examples"] == 359
    for name in ("eval/top_1", "eval/top_5"):
        assert found[name] == during[name]
    # Of a single example, by a program that was compiled for another number of them.
    np.testing.assert_allclose(found["eval/loss"], during["eval/loss"], rtol=1e-6, atol=0)


# Summation in another order changes the last of 24 bits; ten steps of Adam enlarge that a little.
TOLERANCE = 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "bindings"),
    [
        (2, 2, ("MeshShape.fsdp = 2",)),
        *(pytest.param(*it, (), marks=pytest.mark.slow) for it in ((1, 4), (2, 2), (4, 1))),
    ],
)
def test_losses_agree_on_every_topology(processes, devices, bindings, reference_run, tmp_path):
    flags = commands.tiny_flags(tmp_path, *SHORT, *bindings)
    status, output = commands.local(processes, devices, *flags)
    assert status == 0, output
    expected, found = commands.losses(reference_run), commands.losses(tmp_path)
    assert len(expected) == 9
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        list(found.values()), list(expected.values()), rtol=TOLERANCE, atol=0
    )
    # Evaluation counts, so there is nothing to round.
    counts = [
        [line["eval/examples"] for line in commands.metrics(workdir) if "eval/examples" in line]
        for workdir in (reference_run, tmp_path)
    ]
    assert counts[0] == counts[1] == [359]
