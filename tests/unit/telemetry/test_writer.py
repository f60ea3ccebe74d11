import json

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from nest_dist.telemetry import histograms, pictures, writer


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    found = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
    found.Reload()
    return found


def steps(workdir, name):
    return [(event.step, event.value) for event in events(workdir).Scalars(name)]


def test_after_a_resume_no_step_stands_twice(tmp_path):
    first = writer.Writer(tmp_path, first_step=0)
    for step in (1, 2, 3):
        first.scalars(step, {"train/loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/')  # what a killed process leaves

    second = writer.Writer(tmp_path, first_step=2)
    second.scalars(3, {"train/loss": 30.0})
    second.close()
    expected = [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == expected
    assert steps(tmp_path, "train/loss") == expected


def test_a_run_that_starts_anew_without_a_checkpoint_leaves_nothing_of_its_first_try(tmp_path):
    for values in ((1.0, 2.0, 3.0), (10.0,)):
        opened = writer.Writer(tmp_path, first_step=0)
        for step, value in enumerate(values, start=1):
            opened.scalars(step, {"train/loss": value})
        opened.close()
    assert steps(tmp_path, "train/loss") == [(1, 10.0)]
    assert len(lines(tmp_path)) == 1


def test_after_a_rewind_no_step_stands_twice(tmp_path):
    opened = writer.Writer(tmp_path, first_step=0)
    for step in (1, 2, 3):
        opened.scalars(step, {"train/loss": float(step)})
    opened.rewind(1)
    opened.scalars(2, {"train/loss": 20.0})
    opened.close()
    expected = [(1, 1.0), (2, 20.0)]
    assert [(line["step"], line["train/loss"]) for line in lines(tmp_path)] == expected
    assert steps(tmp_path, "train/loss") == expected


def test_histograms_and_pictures_arrive(tmp_path):
    opened = writer.Writer(tmp_path, first_step=0)
    limits = [0.0, 1.0, 2.0]
    opened.histogram(
        "parameters/head", histograms.Histogram(-1.0, 1.5, 3.0, 1.0, 3.5, limits, [1, 0, 2]), 7
    )
    for side, name in ((8, "train/images"), (128, "eval/images")):
        images = np.zeros((2, side, side, 1), np.uint8)
        opened.page(name, images, [pictures.Caption(["cat"])] * 2, 7)
    opened.close()
    found = events(tmp_path)
    (histogram,) = found.Histograms("parameters/head")
    assert histogram.step == 7
    assert histogram.histogram_value.bucket == [1, 0, 2]
    (small,), (photograph,) = found.Images("train/images"), found.Images("eval/images")
    assert small.encoded_image_string.startswith(b"\x89PNG")
    assert photograph.encoded_image_string.startswith(b"\xff\xd8")


def test_a_disk_that_takes_no_events_is_told_at_once(tmp_path):
    full = writer.Writer(tmp_path, first_step=0)
    full.scalars(1, {"train/loss": 1.0})
    (events_file,) = (tmp_path / "tensorboard").iterdir()
    record = full._events.file_writer.event_writer._ev_writer._py_recordio_writer
    assert record.path == str(events_file)
    record._writer.close()
    with (
        open("/dev/full", "wb", buffering=0) as record._writer,
        pytest.raises(OSError, match="No space left on device"),
    ):
        full.scalars(2, {"train/loss": 1.0})
