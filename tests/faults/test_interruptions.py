"""Runs that are killed, stopped or interrupted, and go on as if nothing had been."""

import signal

import pytest
from support import commands, harness

LONG = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 3",
    "Cadence.save_every_epochs = 0.5",
    "Run.checkpoints = @Retention()",
    "Retention.last = 100",
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
        status, output = again.wait(), again.said()
    assert status == 0, output
    assert "resuming after step" in output
    commands.assert_same_bits(commands.arrays(workdir), undisturbed)
    steps = [line["step"] for line in commands.metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, 136))


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_the_same_command_resumes(victim, undisturbed, tmp_path):
    with started(tmp_path) as launcher:
        commands.wait_for_step(tmp_path, 50, launcher)
        processes = launcher.processes()
        assert len(processes) == 2
        processes[victim].kill()
        status, output = launcher.wait(), launcher.said()
        assert not any(process.is_running() for process in processes)
    assert status == 137
    assert f"local.sh: process {victim} ended with status 137: signal KILL" in output
    assert_finishes_like(undisturbed, tmp_path)


@pytest.mark.slow
def test_a_terminated_process_lets_all_save_and_stop(undisturbed, tmp_path):
    with started(tmp_path) as launcher:
        commands.wait_for_step(tmp_path, 50, launcher)
        launcher.processes()[1].terminate()
        status, output = launcher.wait(), launcher.said()
    assert status == 76
    assert "saved a checkpoint and stopped; the same command goes on from there" in output
    last = commands.metrics(tmp_path)[-1]["step"]
    assert f"stopped after step {last} of 135, saved" in output
    assert (tmp_path / "checkpoints" / str(last)).is_dir()
    assert_finishes_like(undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_the_end_of_the_launcher_saves_and_stops(number, tmp_path):
    with started(tmp_path) as launcher:
        commands.wait_for_step(tmp_path, 50, launcher)
        processes = launcher.processes()
        launcher.send_signal(number)
        status, output = launcher.wait(), launcher.said()
        harness.wait_until(lambda: not any(it.is_running() for it in processes), launcher.said)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 76), output
    last = commands.metrics(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / str(last)).is_dir()


@pytest.mark.slow
@pytest.mark.medium
@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_checkpoint_is_left_by_all_processes_together(damage, tmp_path):
    flags = commands.tiny_flags(tmp_path, *LONG, "Cadence.save_every_epochs = 0.2")
    status, output = commands.local(2, 1, *flags, "--gin_bindings=Run.num_epochs = 0.4")
    assert status == 0, output
    before = commands.arrays(tmp_path)
    # Orbax has copied the small arrays of both processes to this file.
    (victim,) = (tmp_path / "checkpoints" / "18" / "state" / "d").iterdir()
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.unlink()
    if damage == "changed":
        victim.write_bytes(content)
    status, output = commands.local(2, 1, *flags, "--gin_bindings=Run.num_epochs = 0.4")
    assert status == 0, output
    assert "resuming after step 9" in output
    assert "checkpoint 18 is corrupt (" in output
    assert (tmp_path / "checkpoints" / "18.damaged").is_dir()
    commands.assert_same_bits(commands.arrays(tmp_path), before)
