import contextlib
import json
import math
import os
import resource

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from nest_dist.telemetry import goodput, histograms, pictures, report


def opened(workdir, first_step=0, missing=()):
    return report.Report(workdir, first_step, 9, 1.0, 1.0, missing)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    accumulator = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
    accumulator.Reload()
    return accumulator


def steps(workdir, name):
    return [(event.step, event.value) for event in events(workdir).Scalars(name)]


def test_after_a_resume_no_step_is_recorded_twice(tmp_path):
    first = opened(tmp_path)
    for step in (1, 2, 3):
        first.metrics(step, {"train/loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/')  # as of a killed process

    second = opened(tmp_path, first_step=2)
    second.metrics(3, {"train/loss": 30.0})
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == expected
    assert steps(tmp_path, "train/loss") == expected


def test_metrics_are_on_the_disk_after_a_flush(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), len(lines(tmp_path))))

    monkeypatch.setattr(os, "fsync", fsync)
    written = opened(tmp_path)
    written.flush()  # there is no file yet
    written.metrics(1, {"train/loss": 1.0})
    written.flush()
    written.metrics(2, {"train/loss": 2.0})
    written.close()
    assert (str(tmp_path / "metrics.jsonl"), 2) in synced
    assert len(synced) >= 2


def test_a_restart_without_a_checkpoint_voids_all_of_the_first_attempt(tmp_path):
    for values in ((1.0, 2.0, 3.0), (10.0,)):
        written = opened(tmp_path)
        for step, value in enumerate(values, start=1):
            written.metrics(step, {"train/loss": value})
        written.close()
    assert steps(tmp_path, "train/loss") == [(1, 10.0)]
    assert len(lines(tmp_path)) == 1


def test_after_a_rewind_no_step_is_recorded_twice(tmp_path):
    written = opened(tmp_path)
    for step in (1, 2, 3):
        written.metrics(step, {"train/loss": float(step)})
    written.rewind(1)
    written.metrics(2, {"train/loss": 20.0})
    written.close()
    expected = [(1, 1.0), (2, 20.0)]
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == expected
    assert steps(tmp_path, "train/loss") == expected


def test_histograms_and_pictures_arrive(tmp_path):
    written = opened(tmp_path)
    values = {"parameters": {"head": {"bias": np.float32([-1, 1.5, 1.5, 0])}}}
    written.metrics(7, jax.device_get(histograms.measure(values)))
    for side, name in ((8, "train/images"), (128, "eval/images")):
        images = np.zeros((2, side, side, 1), np.uint8)
        written.page(name, images, [pictures.Caption(["cat"])] * 2, 7)
    written.close()
    recorded = events(tmp_path)
    (histogram,) = recorded.Histograms("parameters/head")
    assert histogram.step == 7
    counts = [count for count in histogram.histogram_value.bucket if count]
    assert (counts, histogram.histogram_value.sum) == ([1, 1, 2], 2)
    (small,), (photograph,) = recorded.Images("train/images"), recorded.Images("eval/images")
    assert small.encoded_image_string.startswith(b"\x89PNG")
    assert photograph.encoded_image_string.startswith(b"\xff\xd8")


@contextlib.contextmanager
def full_disk(largest):
    """No file may grow beyond `largest` bytes."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@pytest.mark.parametrize("room", [0, 7, 60])
def test_a_full_disk_costs_a_line_each_and_never_a_step(room, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "FLUSH_SECONDS", 0)
    written = opened(tmp_path)
    written.metrics(1, {"train/loss": 1.0})
    capsys.readouterr()
    with full_disk((tmp_path / "metrics.jsonl").stat().st_size + room):
        for step in range(2, 7):
            written.metrics(step, {"train/loss": float(step)})
    told = [line for line in capsys.readouterr().out.splitlines() if "cannot be" in line]
    assert len(told) == 2, told
    for line, name in zip(sorted(told), ("metrics.jsonl", "tensorboard"), strict=True):
        assert f"{tmp_path}/{name} cannot be written (" in line
        assert line.endswith("); the run goes on without it")
    written.metrics(7, {"train/loss": 7.0})
    written.close()
    steps_written = [line["step"] for line in lines(tmp_path)]
    assert steps_written == [*range(1, 2 + room // len('{"step": 1, "train/loss": 1.0}\n')), 7]
    assert steps(tmp_path, "train/loss")[-1] == (7, 7.0)


DAMAGE = {
    "half a line": lambda text: (text[:-20], [1, 2]),
    "zeros at the end": lambda text: (text + bytes(4096), [1, 2, 3]),
    "zeros in a line": lambda text: (text + bytes(99) + b"\n", [1, 2, 3]),
    "not UTF-8": lambda text: (text + b"\xff\xff\n", [1, 2, 3]),
    "a blank line": lambda text: (b"\n" + text, [1, 2, 3]),
    "two halves": lambda text: (text[:9] + text, [2, 3]),
    "no step": lambda text: (b'{"note": 1}\n[]\n7\n{"step": "x"}\n' + text, [1, 2, 3]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_parses_of_damaged_lines_is_kept_and_the_old_file_laid_aside(damage, tmp_path, capsys):
    written = opened(tmp_path)
    for step in (1, 2, 3):
        written.metrics(step, {"train/loss": float(step)})
    written.close()
    path = tmp_path / "metrics.jsonl"
    damaged, kept = DAMAGE[damage](path.read_bytes())
    path.write_bytes(damaged)
    opened(tmp_path, first_step=9).close()
    assert [line["step"] for line in lines(tmp_path)] == kept
    if damage == "half a line" or damage == "zeros at the end":  # as every kill may leave it
        assert not (tmp_path / "metrics.jsonl.damaged").exists()
    else:
        assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == damaged
        assert "has damaged lines, which are left out" in capsys.readouterr().out


def test_records_that_vanish_are_begun_anew(tmp_path, capsys):
    first = opened(tmp_path)
    first.metrics(1, {"eval/top_1": 0.5})
    (tmp_path / "metrics.jsonl").unlink()
    first.metrics(2, {"eval/top_1": math.nan, "eval/loss": math.inf})
    first.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 2, "eval/top_1": null, "eval/loss": null}\n'
    second = opened(tmp_path, first_step=2)
    second.metrics(3, {"eval/top_1": 0.25})
    second.summary(3, 1, goodput.Ledger())
    assert "best 25.00% at step 3, last 25.00% at step 3" in capsys.readouterr().out
    opened(tmp_path, first_step=2).summary(2, 1, goodput.Ledger())
    assert "best nan% at step 2, last nan% at step 2" in capsys.readouterr().out


def test_an_evaluation_that_is_repeated_is_recorded_once(tmp_path):
    for first_step, missing in ((0, ()), (1, ("eval/loss",))):
        written = opened(tmp_path, first_step, missing)
        if first_step == 0:
            written.metrics(1, {"train/loss": 2.0})
        written.metrics(1, {"eval/top_1": 0.5, "eval/loss": 1.0})
        written.close()
    assert len(lines(tmp_path)) == 2
    opened(tmp_path, 1).close()
    assert len(lines(tmp_path)) == 2


@pytest.mark.parametrize("broken_at", [1, 2, 3, 4])
def test_the_summary_names_the_best_finite_evaluation(broken_at, tmp_path, capsys):
    shown = opened(tmp_path)
    measured = {step: 0.1 * step for step in range(1, 5)} | {broken_at: math.nan}
    for step, top_1 in measured.items():
        shown.metrics(step, {"eval/top_1": top_1})
    shown.summary(4, 8, goodput.Ledger())
    shown.close()
    best = 3 if broken_at == 4 else 4
    assert f"best {0.1 * best:.2%} at step {best}, last" in capsys.readouterr().out


def test_curves_are_drawn_anew_after_each_evaluation(tmp_path, capsys):
    written = opened(tmp_path)
    written.metrics(1, {"train/loss": 1.0})
    written.close()
    assert not (tmp_path / report.CURVES).exists()
    written = opened(tmp_path, first_step=1)
    written.metrics(1, {"eval/loss": 1.0, "eval/top_1": 0.5})
    written.close()
    first = (tmp_path / report.CURVES).read_bytes()
    assert first.startswith(b"\x89PNG")
    written = opened(tmp_path, first_step=1)
    (tmp_path / report.CURVES).unlink()
    (tmp_path / report.CURVES).mkdir()  # it cannot be written: a line, and the run goes on
    written.metrics(2, {"eval/loss": 0.5, "eval/top_1": 0.6})
    written.close()
    assert f"{report.CURVES} cannot be written" in capsys.readouterr().out


def test_waiting_for_data_is_said_once_after_two_windows(tmp_path, capsys):
    written = opened(tmp_path)
    for step, share in enumerate((0.5, 0.1, 0.3, 0.38, 0.5), 1):
        written.metrics(step, {"train/loss": 1.0, "time/data_wait_fraction": share})
    written.close()
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "waiting for" in line)
    assert said.startswith("waiting for data takes 38% of a step: `nest-dist inspect-data` shows")
