"""Runs with a tracker that fails: killed, gone on with, and the bits of an undisturbed one."""

import json
import signal

import pytest
from support import commands, fake_tracker, harness

from nest_dist.telemetry.trackers import channel

STEPS = 12
FLAGS = (
    f"Run.num_epochs = '{STEPS} steps'",
    "Cadence.save_every_epochs = '4 steps'",
    "Evaluation.every_epochs = '6 steps'",
    *commands.ONE_LEVEL,
)
WITHOUT_MLFLOW = """
import importlib.util
from nest_dist.__main__ import main
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "mlflow" else find(name, *more)
main()
"""
TRACKED = ("Run.tracker = @WeightsAndBiases()", "WeightsAndBiases.project = 'digits'")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (folder := tmp_path / "fake").mkdir()
    fake_tracker.install(folder, monkeypatch)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The last checkpoint of the run without a tracker."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    commands.nest_dist("train", *commands.tiny_flags(workdir, *FLAGS), succeeds=True)
    assert not (workdir / channel.NAME).exists()
    return commands.arrays(workdir)


def kill_after(step, workdir, flags, **variables):
    environment = harness.environment(**variables)
    command = [*commands.NEST_DIST, "train", *flags]
    with harness.Process(command, environment=environment) as run:
        commands.wait_for_step(workdir, step, run)
        run.send_signal(signal.SIGKILL)


# Each fails in another way before it is killed; the second attempt has a tracker that works.
@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        fake_tracker.FULL,
        pytest.param(fake_tracker.HANGS, marks=pytest.mark.slow),
        pytest.param(fake_tracker.OFFLINE, marks=pytest.mark.slow),
        pytest.param(fake_tracker.DIES, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_goes_on_as_one_run_with_the_same_bits(
    wrong, fake, undisturbed, tmp_path
):
    workdir = tmp_path / "digits"
    flags = commands.tiny_flags(workdir, *FLAGS, *TRACKED)
    kill_after(5, workdir, flags, FAKE_WANDB=wrong)
    done = commands.nest_dist("train", *flags, succeeds=True)
    assert "WeightsAndBiases" not in done.stdout + done.stderr
    commands.assert_same_bits(commands.arrays(workdir), undisturbed)

    key = json.loads((workdir / channel.NAME).read_text())["key"]
    begun = fake_tracker.notes(fake, "init")
    assert {(note["id"], note["name"]) for note in begun} == {(key, "digits")}
    assert begun[-1]["config"]["AdamW.peak_learning_rate"] == 2e-3
    logged = [note["values"] for note in fake_tracker.notes(fake, "log")]
    losses = {it["step"]: it["train/loss"] for it in logged if "train/loss" in it}
    assert losses.items() <= commands.losses(workdir).items()
    assert losses.keys() >= set(range(9, STEPS + 1))
    assert STEPS in {it["step"] for it in logged if "eval/top_1" in it}
    assert any("train/images" in it for it in logged)
    assert fake_tracker.notes(fake, "finish")[-1]["exit_code"] == 0


@pytest.mark.slow
def test_a_run_says_what_its_tracker_lacks_before_it_compiles(tmp_path):
    flags = commands.tiny_flags(tmp_path / "run", *FLAGS, "Run.tracker = @MLflow()")
    done = harness.python("-c", WITHOUT_MLFLOW, "train", *flags, environment=harness.environment())
    assert done.returncode == 2
    assert "Run.tracker is @MLflow(), and mlflow is not installed; pip install" in done.stderr
    assert "parameters" not in done.stdout
