"""A step of a run, done again: the same numbers, and what is in its batch."""

import json
import signal

import cv2
import numpy as np
import pytest
from support import commands, harness, program

from nest_dist.experiment import replay

BINDINGS = (
    "Run.num_epochs = 1.5",
    "Run.global_batch = 64",
    "Cadence.log_every_steps = 4",
    "Cadence.save_every_epochs = 0.5",
    "Evaluation.every_epochs = 1",
    "Retention.last = 10",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one device, with a checkpoint every 11 steps."""
    workdir = tmp_path_factory.mktemp("run")
    commands.nest_dist("train", *commands.tiny_flags(workdir, *BINDINGS), succeeds=True)
    return workdir


def replayed(workdir, *flags, devices=1):
    done = commands.nest_dist("replay", str(workdir), *flags, devices=devices, succeeds=True)
    return done.stdout


def test_the_means_of_the_log_come_again_to_the_last_digit(finished, tmp_path):
    flags = ("--step=18", "--format=json", f"--output={tmp_path}")
    found = json.loads(replayed(finished, *flags))
    assert found["restored"] == 11
    assert found["window"] == [17, 20]
    (line,) = [line for line in commands.metrics(finished) if line["step"] == 20]
    assert found["metrics"].keys() >= {"train/loss", "train/accuracy", "train/gradient_norm"}
    for name, values in found["metrics"].items():
        assert values["logged"] == values["again"] == line[name], name
    assert found["differences"] == []


@pytest.mark.slow
def test_the_batch_is_shown_with_the_loss_of_each_example_the_worst_first(finished, tmp_path):
    said = replayed(finished, "--step=2", f"--output={tmp_path}")
    lines = said.splitlines()
    assert lines[0] == "step 2, done again from the beginning"
    assert "means of the steps 1 to 4:" in lines
    assert sum(line.endswith(", to the last digit") for line in lines) >= 5
    assert any(line.split()[0] == "levels_1" for line in lines)
    start = next(
        at for at, line in enumerate(lines) if line.startswith("loss of 64 examples, mean")
    )
    worst = [float(line.split()[0]) for line in lines[start + 1 : -1]]
    assert worst == sorted(worst, reverse=True)
    assert lines[-1] == f"{tmp_path}/step_2.png: the worst of them as the model saw them"
    assert cv2.imread(str(tmp_path / "step_2.png")).ndim == 3


@pytest.mark.slow
def test_on_other_devices_they_agree_within_rounding_and_it_says_so(finished, tmp_path):
    flags = ("--step=30", "--format=json", f"--output={tmp_path}")
    found = json.loads(replayed(finished, *flags, devices=2))
    assert found["restored"] == 22
    assert any(
        line.startswith("devices [1, 'cpu'] then, [2, 'cpu'] now") for line in found["differences"]
    )
    for name, values in found["metrics"].items():
        # 10 steps of Adam on float32 whose sums are in another order.
        assert values["again"] == pytest.approx(values["logged"], rel=1e-2, abs=1e-4), name


@pytest.mark.slow
def test_the_steps_that_saw_an_example_are_listed(finished):
    said = json.loads(replayed(finished, "--example=7", "--format=json"))
    steps = said["steps"]
    assert 1 <= len(steps) <= 2  # in one and a half epochs
    shown = json.loads(replayed(finished, f"--step={steps[0]}", "--format=json"))
    assert "example 7" in [example["key"] for example in shown["examples"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["RUN"], "give --step=N or --example=KEY, one of them."),
        (["RUN", "--step=1", "--example=a"], "give --step=N or --example=KEY, one of them."),
        ([], "replay takes one workdir; give the folder of a run."),
        (["/nowhere", "--step=1"], "--workdir is /nowhere, where no run was started"),
        (
            ["RUN", "--example=7", "--gin_bindings=train/Digits.split = 'train[1:]'"],
            ", the steps of this run saw data of ",
        ),
        (["RUN", "--step=1", "--output=/proc/x"], "--output is /proc/x, which cannot be made ("),
        (["RUN", "--step=1", "--format=jsno"], "--format is 'jsno', which is unknown"),
    ],
)
def test_what_cannot_be_replayed_is_refused(flags, message, finished, monkeypatch):
    flags = [flag.replace("RUN", str(finished)) for flag in flags]
    assert message in program.refuses(monkeypatch, "replay", *flags)


def test_a_step_that_was_not_done_is_refused(finished):
    done = commands.nest_dist("replay", str(finished), "--step=35")
    assert done.returncode == 2
    assert "--step is 35; the run has done the steps 1 to 34." in done.stderr


TEN_WINDOWS = """
import sys
from nest_dist.checkpointing import reader
from nest_dist.commands import replay as command
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build, replay
from nest_dist.experiment import run as runs
from nest_dist.telemetry import records
workdir = workdirs.for_reading(sys.argv[1])
experiment = build.build(runs.load([str(workdir / "config.gin")], []))
checkpoints = reader.Reader(workdir / "checkpoints")
windows = replay.windows_of(records.lines(workdir / "metrics.jsonl"))
for window in windows[:: max(1, len(windows) // 10)][:10]:
    found = replay.replay(experiment, checkpoints, window.last, windows, command._first_state)
    same = all(logged == again for logged, again in replay.compared(found).values())
    print(window.last, len(replay.compared(found)) > 4 and same)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_twice_is_replayed_to_the_last_digit(tmp_path):
    flags = commands.tiny_flags(tmp_path, *BINDINGS[1:], "Run.num_epochs = 3")
    for step in (15, 40):
        with harness.Process(
            [*commands.NEST_DIST, "train", *flags], environment=harness.environment(1)
        ) as running:
            commands.wait_for_step(tmp_path, step, running)
            running.send_signal(signal.SIGKILL)
            running.wait()
    done = commands.nest_dist("train", *flags, succeeds=True)
    done = harness.python(
        "-c", TEN_WINDOWS, str(tmp_path), environment=harness.environment(1), succeeds=True
    )
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["True"] * 10


class Checkpoints:
    """Steps, and the batches that each checkpoint says were left out."""

    def __init__(self, left_out):
        self._left_out = left_out

    def steps(self):
        return sorted(self._left_out)

    def metadata(self, step):
        return {"batches_left_out": self._left_out[step]}


def test_after_a_rewind_a_step_means_the_attempt_that_was_kept():
    """Back to 20 from a bad step 27: the batches 20 to 26 were left out from there on."""
    checkpoints = Checkpoints({10: 0, 20: 0, 30: 7, 40: 7})
    assert [replay.left_out_at(checkpoints, at) for at in (0, 10, 20, 30, 40)] == [0, 0, 7, 7, 7]
    assert replay.left_out_at(Checkpoints({}), 0) == 0


def test_a_window_reaches_from_the_line_before_to_its_own():
    lines = [
        {"step": 4, "train/loss": 1.0},
        {"step": 4, "eval/loss": 2.0},
        {"step": 6, "train/loss": 3.0},
    ]
    windows = replay.windows_of(lines)
    assert [(each.first, each.last) for each in windows] == [(1, 4), (5, 6)]


def test_means_are_those_of_the_loop():
    steps = [{"a": 0.1}, {"a": 0.2}, {"a": 0.4}]
    assert replay._means(steps) == {"a": (0.1 + 0.2 + 0.4) / 3}
    assert replay._means([]) == {}
    assert np.isfinite(replay._means(steps)["a"])
