"""Runs with sets of classes or a teacher: resumed to the bit, and alike on several processes."""

import json
import shutil

import pytest
from support import commands, harness

pytestmark = pytest.mark.slow

SHORT = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = '8 steps'",
    "Cadence.save_every_epochs = '4 steps'",
    "Evaluation.every_epochs = '8 steps'",
    "Cosine.warmup_epochs = '1 steps'",
)
SETS = (
    *("Step.objective = @MultiLabel()", "MultiLabel.head_bias = -3.0"),
    *("MultiLabel.class_weights = @ClassWeights()", "ClassWeights.by_counts = 0.5"),
    *("Inputs.mixing = @Mixing()", "Mixing.mixup_alpha = 0.8", "Mixing.cutmix_alpha = 1.0"),
)


def train(workdir, *bindings, flags=(), refused=False):
    command = ("train", *commands.tiny_flags(workdir, *SHORT, *bindings), *flags)
    done = commands.nest_dist(*command, devices=2)
    assert done.returncode == (2 if refused else 0), done.stdout + done.stderr
    return done.stderr if refused else done.stdout


def distilled(teacher):
    return (
        "Step.objective = @Distillation()",
        f"Distillation.teacher = '{teacher}'",
        "Distillation.teacher_dtype = 'bfloat16'",
        "Distillation.label_weight = 0.5",
        "Normalize.mean = (0.3,)",
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of another width."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(workdir, "NesT.dim = 16")
    return workdir


@pytest.fixture(params=["sets", "teacher"])
def objective(request):
    return SETS if request.param == "sets" else distilled(request.getfixturevalue("teacher"))


def evaluated(workdir, processes):
    command = (*commands.NEST_DIST, "evaluate", f"--workdir={workdir}", "--format=json")
    environment = harness.environment(2 // processes)
    with harness.Group.of(processes, command, environment=environment) as group:
        assert group.wait() == [0] * processes, group.said()
        said = group.processes[0].said()
    return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


def test_a_resumed_run_is_the_unbroken_one_on_any_number_of_processes(objective, tmp_path):
    train(tmp_path / "whole", *objective)
    expected = commands.arrays(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "8")
    train(tmp_path / "resumed", *objective)
    commands.assert_same_bits(commands.arrays(tmp_path / "resumed"), expected)
    assert not any("teacher" in name for name in expected)
    one, two = (evaluated(tmp_path / "whole", processes) for processes in (1, 2))
    assert one == two
    last = commands.metrics(tmp_path / "whole")[-1]
    assert {name: last[name] for name in one if name.startswith("eval/")} == {
        name: value for name, value in one.items() if name.startswith("eval/")
    }
    status, said = commands.local(
        2, 1, "train", *commands.tiny_flags(tmp_path / "two", *SHORT, *objective)
    )
    assert status == 0, said
    commands.assert_same_bits(commands.arrays(tmp_path / "two"), expected)


def test_a_run_goes_on_with_its_own_teacher_alone(teacher, tmp_path):
    train(tmp_path / "run", *distilled(teacher))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["teacher"]
    shutil.copytree(teacher, tmp_path / "moved")
    train(tmp_path / "run", *distilled(tmp_path / "moved"))
    other = distilled(f"{teacher}/checkpoints/4")
    said = train(tmp_path / "run", *other, refused=True)
    assert "the digest of the weights of Distillation.teacher is " in said
    assert "the checkpoint of this workdir was made with " in said
    said = train(tmp_path / "run", *other, flags=["--allow_config_change"])
    assert "the teacher is another: the run goes on differently" in said
