"""One run of two processes that is watched, traced, killed and resumed: all that it records."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.request
import venv

import jax
import pytest
from support import commands, harness, ports
from tensorboard.backend.event_processing import event_accumulator

pytestmark = pytest.mark.slow

FLAGS = (
    "Run.num_epochs = 6",
    "Cadence.save_every_epochs = 1",
    "Evaluation.every_epochs = 2",
    "Cadence.log_every_steps = 10",
    "Cadence.histograms_every_steps = 50",
    "Cadence.profile_first_step = 21",
    "Cadence.profile_num_steps = 4",
)
NUM_STEPS, SAVE_EVERY = 270, 45


class Watched:
    """The folder of the run and the output of both attempts."""

    def __init__(self, workdir):
        self.workdir = workdir
        self.seconds = 0.0
        self.outputs = []
        self.ledger_when_killed = None

    def traces(self):
        folder = self.workdir / "tensorboard" / "plugins" / "profile"
        return {path.name: sorted(path.iterdir()) for path in folder.iterdir()}

    def attempt(self):
        return commands.Local(2, 1, *commands.tiny_flags(self.workdir, *FLAGS))

    def ledger(self):
        return json.loads((self.workdir / "goodput.json").read_text())

    def halts_after_unsaved_steps(self, process):
        """Halts the run; whether its ledger knows of steps that a restart would repeat.

        If not, the run goes on. One stopped process halts all at their next step, so that no save
        comes between this check and the kill.
        """
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        ledger = self.ledger()
        saved = ledger["saved"][max(ledger["saved"], key=int)]
        if any(ledger["seconds"][cause] > seconds for cause, seconds in saved.items()):
            return True
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
        return False

    def wait_for_trace_beside(self, names, launcher):
        def whole():
            return any(
                len(files) == 2 for name, files in self.traces().items() if name not in names
            )

        harness.wait_until(whole, launcher.said)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Compiled programs go to the cache of the user, as they do by default.
        patch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return watch(Watched(tmp_path_factory.mktemp("watched")))


def watch(run):
    """Both attempts, with requests for traces and the kill."""
    started = time.monotonic()
    with run.attempt() as launcher:
        commands.wait_for_step(run.workdir, 50, launcher)
        (run.workdir / "profile").touch()
        run.wait_for_trace_beside(set(run.traces()), launcher)
        commands.wait_for_step(run.workdir, 2 * SAVE_EVERY + 10, launcher)
        victim = launcher.processes()[1]
        harness.wait_until(lambda: run.halts_after_unsaved_steps(victim), launcher.said)
        victim.kill()
        launcher.wait()
        run.outputs.append(launcher.said())
    run.ledger_when_killed = run.ledger()
    # A kill in the middle of writing may leave such an entry.
    cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])
    for program in cache.rglob("jit_step-*"):  # of each process
        program.write_bytes(program.read_bytes()[:1000])
    with run.attempt() as launcher:
        first = len(commands.metrics(run.workdir))
        harness.wait_until(lambda: len(commands.metrics(run.workdir)) > first + 2, launcher.said)
        before = set(run.traces())
        launcher.processes()[1].send_signal(signal.SIGUSR1)
        run.wait_for_trace_beside(before, launcher)
        status, output = launcher.wait(), launcher.said()
        run.outputs.append(output)
    run.seconds = time.monotonic() - started
    assert status == 0, output
    return run


@pytest.fixture(scope="module")
def events(watched):
    everything = dict.fromkeys(event_accumulator.DEFAULT_SIZE_GUIDANCE, 0)
    folder = str(watched.workdir / "tensorboard")
    accumulator = event_accumulator.EventAccumulator(folder, size_guidance=everything)
    accumulator.Reload()
    return accumulator


def test_all_processes_trace_the_steps_that_were_planned_and_asked_for(watched):
    spans = sorted(
        tuple(map(int, name.removeprefix("steps_").split("_to_"))) for name in watched.traces()
    )
    planned, by_file, by_signal = spans
    assert planned == (21, 24)
    assert all(last - first == 3 for first, last in (by_file, by_signal))
    assert 50 < by_file[0] < by_signal[0]
    for files in watched.traces().values():
        assert [path.name.rpartition("_")[2] for path in files] == ["0.xplane.pb", "1.xplane.pb"]


def test_a_trace_knows_its_steps(watched):
    for path in watched.traces()["steps_21_to_24"]:
        trace = jax.profiler.ProfileData.from_file(str(path))
        steps = {
            dict(event.stats)["step_num"]
            for plane in trace.planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        }
        assert steps == {21, 22, 23, 24}


def test_no_step_is_recorded_twice(watched, events):
    lines = commands.metrics(watched.workdir)
    for name in ("train/loss", "eval/top_1", "goodput/fraction", "speed/images_per_second"):
        steps = [line["step"] for line in lines if name in line]
        assert steps == sorted(set(steps))
        assert [event.step for event in events.Scalars(name)] == steps
    evaluated = [line["step"] for line in lines if "eval/top_1" in line]
    assert evaluated == [90, 180, NUM_STEPS]
    assert [event.step for event in events.Images("eval/images")] == evaluated


def test_histograms_of_each_level_come_when_asked_for(events):
    names = events.Tags()["histograms"]
    for tree in ("parameters", "gradients"):
        for module in ("patch_embedding", "levels_0", "aggregations_0", "levels_1", "head"):
            assert f"{tree}/{module}" in names
    for name in names:
        assert [event.step for event in events.Histograms(name)] == list(range(50, NUM_STEPS, 50))
    (*_, last) = events.Histograms("gradients/head")
    assert last.histogram_value.num == 16 * 10 + 10
    assert last.histogram_value.min < 0 < last.histogram_value.max


def test_the_second_start_reuses_compiled_programs_and_survives_a_corrupt_one(watched):
    first, second = watched.outputs
    assert "an earlier start" not in first
    assert "programs from the cache of an earlier start:" in second
    assert "compiled/" in second
    assert "was corrupt and is now empty" in second


def test_the_ledger_knows_what_the_kill_cost(watched):
    seconds = watched.ledger()["seconds"]
    assert all(
        seconds[cause] > 0
        for cause in ("start", "restore", "compile", "step", "evaluation", "save", "profile")
    )
    # Both attempts, but for the moments between the last entry and the kill.
    assert sum(seconds.values()) < watched.seconds
    before = watched.ledger_when_killed
    (resumed,) = {
        int(line.split("resuming after step ")[1].split(",")[0])
        for line in watched.outputs[1].splitlines()
        if "resuming after step" in line
    }
    saved = before["saved"][str(resumed)]
    repeated = sum(before["seconds"][cause] - saved[cause] for cause in saved)
    assert seconds["lost"] == pytest.approx(repeated)
    assert seconds["lost"] > 0


def test_a_finished_run_sums_up(watched):
    output = watched.outputs[1]
    assert f"done: {NUM_STEPS} steps, {32 * NUM_STEPS:,} examples" in output
    accuracies = {
        line["step"]: line["eval/top_1"]
        for line in commands.metrics(watched.workdir)
        if "eval/top_1" in line
    }
    best = max(accuracies, key=accuracies.get)
    assert (
        f"test top-1: best {accuracies[best]:.2%} at step {best}, "
        f"last {accuracies[NUM_STEPS]:.2%} at step {NUM_STEPS}"
    ) in output
    (summary,) = [line for line in output.splitlines() if "over all attempts" in line]
    for cause in ("start", "compile", "data wait", "step", "evaluation", "save", "restore", "lost"):
        assert f" {cause} " in summary


def test_only_the_primary_process_prints(watched):
    said = [line for line in watched.outputs[1].splitlines() if f"step 260/{NUM_STEPS}" in line]
    assert [line.split()[0] for line in said] == ["[0]"]


def test_the_profiler_of_tensorboard_opens_a_trace(watched, tmp_path):
    """With the packages tensorboard and xprof, in an environment of their own."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", "tensorboard", "xprof"], check=True)
    port = ports.free()
    address = f"http://127.0.0.1:{port}/data/plugin/profile"

    def answer(question):
        with urllib.request.urlopen(f"{address}/{question}", timeout=60) as response:
            data = response.read()
        zipped = data.startswith(b"\x1f\x8b")
        return json.loads(gzip.decompress(data) if zipped else data)

    with harness.Process(
        [programs / "tensorboard", f"--logdir={watched.workdir}/tensorboard", f"--port={port}"]
    ) as server:
        runs = harness.wait_until(lambda: answer("runs"), server.said, errors=(OSError,))
        assert set(runs) == set(watched.traces())
        run = "run=steps_21_to_24"
        hosts = [host["hostname"] for host in answer(f"hosts?{run}&tag=trace_viewer")]
        assert [name[-2:] for name in hosts] == ["_0", "_1"]
        for host in hosts:
            trace = answer(f"data?{run}&tag=trace_viewer@&host={host}")
            names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
            assert {f"train {step}" for step in (21, 22, 23, 24)} <= names
