"""Runs that are killed, stopped or interrupted, and go on as if nothing had been."""

import pytest
from support import commands

LONG = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 3",
    "Run.save_every_epochs = 0.5",
    "Run.keep = @Keep()",
    "Keep.last = 100",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The state after the last step of a run of two processes that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    status, output = commands.local(2, 1, *commands.tiny_flags(workdir, *LONG))
    assert status == 0, output
    return commands.arrays(workdir)


def started(workdir):
    return commands.Local(2, 1, *commands.tiny_flags(workdir, *LONG))


def assert_finishes_like(undisturbed, workdir):
    """The same command once more: resumes, ends well, with the same bits and no step twice."""
    with started(workdir) as again:
        status, output = again.wait()
    assert status == 0, output
    assert "resuming after step" in output
    commands.assert_same_bits(commands.arrays(workdir), undisturbed)
    steps = [line["step"] for line in commands.metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, 136))


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_the_same_command_resumes(victim, undisturbed, tmp_path):
    with started(tmp_path) as launcher:
        commands.wait_for_step(tmp_path, 50, launcher)
        launcher.processes()[victim].kill()
        status, output = launcher.wait(timeout=120)
        assert launcher.processes() == []
    assert status == 137
    assert f"local.sh: process {victim} ended with status 137: signal KILL" in output
    assert_finishes_like(undisturbed, tmp_path)


def test_a_terminated_process_lets_all_save_and_stop(undisturbed, tmp_path):
    with started(tmp_path) as launcher:
        commands.wait_for_step(tmp_path, 50, launcher)
        launcher.processes()[1].terminate()
        status, output = launcher.wait(timeout=120)
    assert status == 76
    assert "saved a checkpoint and stopped; the same command goes on from there" in output
    last = commands.metrics(tmp_path)[-1]["step"]
    assert f"stopped after step {last} of 135, saved" in output
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
    assert_finishes_like(undisturbed, tmp_path)


def test_ctrl_c_at_the_launcher_saves_and_stops(tmp_path):
    with started(tmp_path) as launcher:
        commands.wait_for_step(tmp_path, 50, launcher)
        launcher.send(commands.SIGNALS["INT"])
        status, output = launcher.wait(timeout=120)
    assert status == 76
    assert "the processes save a checkpoint and stop" in output
    last = commands.metrics(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
