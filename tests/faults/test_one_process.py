"""Signals, lost output and a killed data worker, in runs of one process."""

import os
import pathlib
import signal
import time

import pytest
from support import commands, harness

LONG = (*commands.ONE_LEVEL, "Run.num_epochs = 60", "Cadence.save_every_epochs = 30")
WORKERS = ("TrainingData.workers = 1",)


def started(workdir, *bindings, prefix=()):
    train = [*prefix, *commands.NEST_DIST, "train"]
    return harness.Process(
        [*train, *commands.tiny_flags(workdir, *LONG, *bindings)],
        environment=harness.environment(),
    )


def data_workers(run):
    return [it for it in run.descendants() if "spawn_main" in " ".join(it.cmdline())]


def assert_saved(workdir, run):
    last = commands.metrics(workdir)[-1]["step"]
    assert (pathlib.Path(workdir) / "checkpoints" / str(last)).is_dir(), run.said()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_stop_of_a_group_saves_and_spares_its_data_workers(number, tmp_path):
    with started(tmp_path, *WORKERS) as run:
        commands.wait_for_step(tmp_path, 3, run)
        assert data_workers(run)
        os.killpg(run.pid, number)
        assert run.wait() == 76, run.said()
        assert_saved(tmp_path, run)


@pytest.mark.slow
def test_a_group_that_stops_while_its_data_workers_start_ends_with_76(tmp_path):
    with started(tmp_path, *WORKERS) as run:
        harness.wait_until(lambda: data_workers(run), run.said)
        os.killpg(run.pid, signal.SIGTERM)
        assert run.wait() == 76, run.said()


@pytest.mark.slow
def test_no_thread_of_a_run_takes_a_stop_but_the_one_that_reads_it(tmp_path):
    with started(tmp_path, *WORKERS) as run:
        commands.wait_for_step(tmp_path, 3, run)
        tasks = [it.name for it in pathlib.Path(f"/proc/{run.pid}/task").iterdir()]
        open_threads = [it for it in tasks if not blocked(run, signal.SIGTERM, f"task/{it}/")]
        assert len(open_threads) == 1 < len(tasks), run.said()


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_with_75(tmp_path):
    with started(tmp_path, *WORKERS) as run:
        commands.wait_for_step(tmp_path, 3, run)
        data_workers(run)[0].kill()
        assert run.wait() == 75, run.said()
        assert "a data worker process has ended" in commands.cause(run.said())


@pytest.mark.slow
def test_a_request_for_a_trace_never_ends_a_run(tmp_path):
    with started(tmp_path, *WORKERS) as run:
        for moment in ("importing", "compiling", "steps"):
            if moment == "compiling":
                harness.wait_until(lambda: "compiling" in run.said(), run.said)
            elif moment == "steps":
                commands.wait_for_step(tmp_path, 3, run)
            else:
                harness.wait_until(lambda: blocked(run, signal.SIGUSR1), run.said)
            os.killpg(run.pid, signal.SIGUSR1)  # its data workers, too
        harness.wait_until(lambda: "traced steps" in run.said(), run.said)
        run.terminate()
        assert run.wait() == 76, run.said()


def blocked(run, number, thread=""):
    status = pathlib.Path(f"/proc/{run.pid}/{thread}status").read_text()
    mask = dict(line.split(":", 1) for line in status.splitlines())["SigBlk"]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lost",
    [
        "exec >/dev/full",
        *(
            pytest.param(it, marks=pytest.mark.slow)
            for it in ("exec >&- 2>&- <&-", "exec > >(true)")
        ),
    ],
)
def test_a_run_without_output_goes_on(lost, tmp_path):
    with started(
        tmp_path, "Run.num_epochs = 1", prefix=("bash", "-c", f'{lost}; exec "$@"', "-")
    ) as run:
        assert run.wait() == 0, run.said()
    assert commands.metrics(tmp_path)[-1]["step"] == 45


def stalled_before_training(workdir):
    """A run whose evaluation data never comes."""
    (workdir / "stall").touch()
    source = ("EvaluationData.source = @Stalling()", "Stalling.source = @evaluate/Digits()")
    flags = commands.tiny_flags(workdir / "run", *LONG, *source, "Watch.stuck_seconds = 15")
    train = [*commands.NEST_DIST, "train", "--gin_bindings=import support.stalling", *flags]
    environment = harness.environment(
        PYTHONPATH=harness.module_path(), STALL=str(workdir / "stall")
    )
    return harness.Process(train, environment=environment)


@pytest.mark.slow
def test_evaluation_data_that_never_comes_ends_the_start_with_75(tmp_path):
    with stalled_before_training(tmp_path) as run:
        assert run.wait() == 75, run.said()
        assert "process 0 is stuck: data wait for " in run.said()


@pytest.mark.slow
def test_a_stop_while_the_first_evaluation_batch_stays_away_ends_with_76(tmp_path):
    with stalled_before_training(tmp_path) as run:
        harness.wait_until(lambda: "compiled in" in run.said(), run.said)
        time.sleep(2)
        run.terminate()
        assert run.wait() == 76, run.said()
        assert "nothing to save" in run.said()
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_a_suspended_run_goes_on(tmp_path):
    with started(tmp_path) as run:
        commands.wait_for_step(tmp_path, 3, run)
        run.send_signal(signal.SIGSTOP)
        time.sleep(33)  # longer than a process of several may be silent
        run.send_signal(signal.SIGCONT)
        commands.wait_for_step(tmp_path, commands.metrics(tmp_path)[-1]["step"] + 20, run)
        run.terminate()
        assert run.wait() == 76, run.said()


@pytest.mark.slow
def test_a_thread_that_a_module_leaves_does_not_keep_a_finished_run(tmp_path):
    (tmp_path / "leaves_a_thread.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(1e5,)).start()"
    )
    flags = commands.tiny_flags(tmp_path / "run", *LONG, "Run.num_epochs = 0.2")
    train = [*commands.NEST_DIST, "train", *flags, "--gin_bindings=import leaves_a_thread"]
    environment = harness.environment(PYTHONPATH=harness.module_path(tmp_path))
    assert harness.run(train, environment=environment).returncode == 0
