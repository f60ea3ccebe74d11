"""What a tracker is given, and what becomes of a run whose tracker fails."""

import errno
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import fake_tracker, harness

from nest_dist.base import failures, files
from nest_dist.telemetry import report, trackers
from nest_dist.telemetry.trackers import channel
from nest_dist.telemetry.trackers import mlflow as of_mlflow
from nest_dist.telemetry.trackers import weights_and_biases as of_wandb


@pytest.fixture(autouse=True)
def on_a_slow_machine(monkeypatch):
    for name in ("CLOSE_SECONDS", "STOP_SECONDS"):
        monkeypatch.setattr(channel, name, harness.PATIENCE_SECONDS)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (folder := tmp_path / "fake").mkdir()
    fake_tracker.install(folder, monkeypatch)
    return folder


class Attempt:
    """A channel of a run in a folder, and what it says."""

    def __init__(self, folder, tracker=None, config=None):
        self.said = []
        identity = trackers.Identity(channel.key(folder), "digits", folder)
        tracker = tracker or of_wandb.WeightsAndBiases(project="p", mode="offline")
        self.channel = channel.Channel(tracker, identity, config or {}, self.said.append)


def logged(fake):
    return [note["values"] for note in fake_tracker.notes(fake, "log")]


@pytest.mark.medium
def test_a_tracker_is_given_configuration_scalars_and_pictures(fake, tmp_path, capfd):
    attempt = Attempt(tmp_path, config={"Run.seed": 3, "AdamW.beta_1": 0.9})
    with attempt.channel as opened:
        opened.scalars(1, {"train/loss": 2.5, "nan": float("nan")})
        for lossless in (True, False):
            opened.picture(2, "page", lambda: np.zeros((9, 9, 3), np.uint8), lossless)
    (begun,) = fake_tracker.notes(fake, "init")
    assert begun["config"] == {"Run.seed": 3, "AdamW.beta_1": 0.9}
    assert (begun["name"], begun["project"], begun["mode"]) == ("digits", "p", "offline")
    assert begun["dir"] == str(tmp_path)
    scalars, png, jpeg = logged(fake)
    assert scalars.pop("nan") != scalars["train/loss"]
    assert scalars == {"train/loss": 2.5, "step": 1}
    assert (png["page"], jpeg["page"]) == (b"\x89PNG".hex(), b"\xff\xd8\xff\xe0".hex())
    assert fake_tracker.notes(fake, "finish")[0]["exit_code"] == 0
    assert attempt.said == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.medium
def test_all_attempts_of_a_run_have_one_identity(fake, tmp_path):
    for error in (failures.Preempted, None):
        attempt = Attempt(tmp_path)
        attempt.channel.scalars(1, {"train/loss": 1.0})
        harness.wait_until(lambda: logged(fake), "the first record")
        attempt.channel.__exit__(error)
    one, other = fake_tracker.notes(fake, "init")
    assert one["id"] == other["id"] == json.loads((tmp_path / "tracker.json").read_text())["key"]
    assert other["resume"] == "allow"
    assert [it["exit_code"] for it in fake_tracker.notes(fake, "finish")] == [1, 0]
    assert len(fake_tracker.notes(fake, "preempting")) == 1
    (elsewhere := tmp_path / "elsewhere").mkdir()
    assert channel.key(elsewhere) != one["id"]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (fake_tracker.OFFLINE, "ConnectionError: no route to host"),
        (fake_tracker.FULL, r"OSError: \[Errno 28\] No space left on device"),
        (fake_tracker.DIES, "its process ended with 3|Broken pipe"),
    ],
)
def test_a_tracker_that_fails_costs_a_warning(wrong, cause, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB", wrong)
    attempt = Attempt(tmp_path)
    with attempt.channel as opened:
        for step in range(5):
            opened.scalars(step, {"train/loss": 1.0})
        harness.wait_until(lambda: attempt.said, "a warning")
    first, last = attempt.said
    assert first.startswith("WeightsAndBiases fails (")
    assert first.endswith("); the run goes on without it, and tries again")
    assert re.search(cause, first)
    assert last.startswith("WeightsAndBiases failed or was slow: ")
    assert last.endswith(" records were left out")


@pytest.mark.medium
def test_a_tracker_that_failed_is_started_again(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(channel, "RETRY_SECONDS", 0.05)
    monkeypatch.setenv("FAKE_WANDB", fake_tracker.OFFLINE)
    attempt = Attempt(tmp_path)
    with attempt.channel as opened:
        opened.scalars(1, {"train/loss": 1.0})
        harness.wait_until(lambda: attempt.said, "a warning")
        monkeypatch.delenv("FAKE_WANDB")
        harness.wait_until(lambda: logged(fake), "what waited since")
    assert [values["step"] for values in logged(fake)] == [1]
    assert len(attempt.said) == 1


@pytest.mark.medium
def test_a_tracker_that_hangs_delays_neither_steps_nor_the_end(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB", fake_tracker.HANGS)
    monkeypatch.setattr(channel, "QUEUE_BYTES", 10 * channel.SCALAR_BYTES)
    monkeypatch.setattr(channel, "CLOSE_SECONDS", 0.5)  # then its process is killed
    attempt = Attempt(tmp_path)
    with attempt.channel as opened:
        harness.wait_until(lambda: fake_tracker.notes(fake, "init"), "the beginning")
        started = time.monotonic()
        for step in range(10_000):
            opened.scalars(step, {"train/loss": 1.0})
        assert time.monotonic() - started < 5
    (line,) = attempt.said
    assert line.startswith("WeightsAndBiases did not end in time: ")
    assert int(line.split()[-5]) > 1000


@pytest.mark.medium
def test_the_process_of_a_tracker_ends_with_that_of_its_run(fake, tmp_path):
    program = (
        "import sys, pathlib, time\n"
        "from nest_dist.telemetry import trackers\n"
        "from nest_dist.telemetry.trackers import channel, weights_and_biases as w\n"
        "identity = trackers.Identity('k', 'n', pathlib.Path(sys.argv[1]))\n"
        "opened = channel.Channel(w.WeightsAndBiases(), identity, {})\n"
        "opened.scalars(1, {'a': 1.0})\n"
        "time.sleep(600)\n"
    )
    with harness.Process([sys.executable, "-c", program, tmp_path]) as process:
        harness.wait_until(lambda: logged(fake), process.said)
        (note,) = fake_tracker.notes(fake, "init")
        os.kill(process.pid, signal.SIGKILL)
        harness.wait_until(lambda: fake_tracker.notes(fake, "finish"), "the end of its process")
        harness.wait_until(lambda: not _lives(note["process"]), "no process")


def _lives(process):
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True)
    return bool(status.stdout.strip()) and not status.stdout.startswith(b"Z")


def test_a_report_gives_its_tracker_what_it_records(tmp_path):
    class Recorder:
        def __init__(self):
            self.records = []

        def scalars(self, step, values):
            self.records.append((step, dict(values)))

        def picture(self, step, name, sheet, lossless):
            self.records.append((step, name, sheet().shape, lossless))

    recorder = Recorder()
    written = report.Report(tmp_path, 0, 9, 1.0, 1.0, tracker=recorder)
    written.metrics(1, {"train/loss": 2.0, "histogram/x": np.zeros((4,))})
    written.page("page", np.zeros((1, 8, 8, 3), np.uint8), [report.pictures.Caption(["a"])], 2)
    written.close()
    scalars, (step, name, shape, lossless) = recorder.records
    assert scalars == (1, {"train/loss": 2.0})
    assert (step, name, len(shape), lossless) == (2, "page", 3, True)


def test_a_key_that_cannot_be_kept_costs_a_warning(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_text_durably", full)
    assert channel.key(tmp_path) is None
    assert (
        "tracker.json cannot be written (No space left on device); the run goes"
        in capsys.readouterr().out
    )


def test_a_missing_library_is_told_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = (
        r"^Run.tracker is @MLflow\(\), and mlflow is not installed; pip install "
        r"'nest_dist\[mlflow\]', or bind Run.tracker = None.$"
    )
    with pytest.raises(failures.BadInput, match=message):
        channel.require(of_mlflow.MLflow(), in_bucket=False)


def test_a_data_base_in_a_bucket_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(failures.BadInput, match=r"MLflow writes .* bind MLflow.uri to a server\.$"):
        channel.require(of_mlflow.MLflow(), in_bucket=True)
    channel.require(of_mlflow.MLflow(uri="http://here:5000"), in_bucket=True)
    channel.require(of_wandb.WeightsAndBiases(), in_bucket=True)


@pytest.mark.medium
def test_weights_and_biases_itself_writes_one_run_without_a_network(tmp_path):
    pytest.importorskip("wandb", reason="needs nest_dist[wandb]")
    for step in (1, 2):
        attempt = Attempt(tmp_path, config={"Run.seed": step})
        with attempt.channel as opened:
            opened.scalars(step, {"train/loss": 1.0})
            opened.picture(step, "page", lambda: np.zeros((9, 9, 3), np.uint8), True)
        assert attempt.said == []
    key = channel.key(tmp_path)
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{key}/run-{key}.wandb"))) == 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/page_*.png"))) == 2


@pytest.mark.medium
def test_mlflow_itself_has_one_run_for_all_attempts(tmp_path):
    library = pytest.importorskip("mlflow", reason="needs nest_dist[mlflow]")
    for step in (1, 2):
        attempt = Attempt(tmp_path, of_mlflow.MLflow(), {"Run.evaluations[0].x": step})
        with attempt.channel as opened:
            opened.scalars(step, {"train/loss": 1.0 / step})
            opened.picture(step, "page", lambda: np.zeros((9, 9, 3), np.uint8), True)
        assert attempt.said == []
    client = library.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [it for it in client.search_experiments() if it.name == "nest_dist"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    assert run.data.params == {"Run.evaluations_0_.x": "1"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(it.step, it.value) for it in history] == [(1, 1.0), (2, 0.5)]
    assert [it.path for it in client.list_artifacts(run.info.run_id, "page")] == [
        "page/step_000000001.png",
        "page/step_000000002.png",
    ]
