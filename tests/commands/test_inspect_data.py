"""`nest-dist inspect-data`, as a user runs it."""

import re

import cv2
import jax
import numpy as np
import pytest
from support import commands, datasets, program

from nest_dist.base import picture_grid
from nest_dist.commands import inspect_data
from nest_dist.data import contact_sheet
from nest_dist.experiment import run as runs
from nest_dist.train import step

BINDINGS = (
    "num_classes = 3",
    "evaluation_split = 'train'",
    "Run.global_batch = 4",
    "RandomResizedCrop.side = 16",
    "ResizedCentreCrop.side = 16",
)


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data, "MEASURED_SECONDS", 0.2)
    datasets.image_folder(tmp_path / "photos")
    bindings = (*BINDINGS, f"data_folder = '{tmp_path}/photos'")
    return [
        "--gin_file=runs/nest_tiny_imagenet.gin",
        "--gin_file=data/image_folder.gin",
        *(f"--gin_bindings={binding}" for binding in bindings),
    ]


def test_a_sheet_and_a_table_show_every_stage(flags, tmp_path):
    printed = program.succeeds(
        "inspect-data", *flags, f"--output={tmp_path}/sheets", "--images=3", "--batch_step=7"
    )
    assert f"{tmp_path}/sheets/batch_7.png" in printed
    sheet = cv2.imread(f"{tmp_path}/sheets/batch_7.png")
    side, gap, line = contact_sheet.SIDE, picture_grid.GAP, picture_grid.LINE_HEIGHT
    assert sheet.shape[:2] == (
        gap + line + 3 * (side + line + gap),
        gap + 7 * (side + gap),  # the picture, three transforms of the host, three of the device
    )
    for column in range(7):
        left = gap + column * (side + gap)
        assert np.std(sheet[gap + line + 20 : gap + line + side - 20, left : left + side]) > 5
    stages = re.findall(r"^(\S.*?)\s+[\d.]+\s+\d+\s+\d+%  (.+)$", printed, flags=re.MULTILINE)
    made = "uint8 [16, 16, 3]"
    assert stages == [
        ("read", "encoded pictures"),
        ("RandomResizedCrop", made),
        ("Flip", made),
        ("RandAugment", made),
    ]
    assert re.search(r"^one thread, in all +[\d.]+ +\d+$", printed, flags=re.MULTILINE)
    assert re.search(r"^2 threads, 0 workers +[\d.]+ +\d+$", printed, flags=re.MULTILINE)
    assert re.search(r"^on cpu +[\d.]+ +\d+$", printed, flags=re.MULTILINE)


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_a_speed_that_other_work_distorted_says_so(share, flags, monkeypatch):
    given = [flag.split("=", 1)[1] for flag in flags]
    run = runs.load(given[:2], given[2:])
    waited = iter([1.0, 1.0 + share])
    monkeypatch.setattr(inspect_data, "_waiting_seconds", lambda: next(waited))
    monkeypatch.setattr(inspect_data, "_stage_seconds", lambda *_: ({"read": 1.0}, 9))
    for name in ("_pipeline_speed", "_device_speed"):
        monkeypatch.setattr(inspect_data, name, lambda *_: 1.0)
    monkeypatch.setattr(type(run.data), "specs", lambda *_: ["encoded pictures"])
    *_, last = inspect_data._table(run, run.data.source.open())
    assert (last.startswith("other work held the cores for 40% of the time")) == (share > 0.1)


def test_the_sheet_shows_the_very_batch_that_a_step_is_given(flags):
    given = [flag.split("=", 1)[1] for flag in flags]
    run = runs.load(given[:2], given[2:])
    source = run.data.source.open()
    _, rows = inspect_data._seen(run, source, at=2, images=4)
    loaded = run.data.batches(
        source, seed=run.seed, global_batch=4, rows=np.arange(4), first_step=2
    )
    batch = next(loaded)
    loaded.close()
    np.testing.assert_array_equal(np.stack([cells[3].image for cells in rows]), batch["image"])
    key, _ = step.keys(run.seed, 2)
    given = (batch["image"], np.eye(3)[batch["label"]], key, np.arange(4))
    inputs = jax.jit(run.step.inputs).lower(*given)
    images, _ = inputs.compile({"xla_backend_optimization_level": "0"})(*given)
    # What lies in [0, 255] is shown rounded.
    normalize = run.step.inputs.normalize
    seen = 255 * (np.asarray(images) * normalize.std + normalize.mean)
    shown = np.stack([cells[-1].image for cells in rows])
    np.testing.assert_allclose(shown, np.clip(seen, 0, 255), atol=0.51)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ((), "--output is not given; give a folder for the contact sheet"),
        (("--output=/proc/none",), "--output is /proc/none, which cannot be made"),
        (("--output=/tmp", "--images=0"), "--images is 0; it must be at least 1"),
        (("--output=/tmp", "--batch_step=-1"), "--batch_step is -1; it must be in [0, 2147483647]"),
        (("--output=/tmp", f"--batch_step={10**17}"), "is 100000000000000000; it must be in [0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flag, message, flags, monkeypatch):
    assert message in program.refuses(monkeypatch, "inspect-data", *flags, *flag)


def test_a_caption_that_is_too_long_is_cut():
    cell = picture_grid.Cell(np.zeros((4, 9, 1), np.uint8), ["ä very long name " * 9])
    sheet = contact_sheet.draw(["column"], [[cell]])
    assert (sheet[:, -picture_grid.GAP :] == picture_grid.GREY).all()


def test_help_names_the_command():
    assert "inspect-data" in commands.nest_dist("--help").stdout


def test_each_view_has_a_row_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data, "MEASURED_SECONDS", 0.2)
    bindings = (
        *commands.TINY,
        "Step.objective = @TwoViews()",
        "TwoViews.width = 8",
        "TrainingData.views = 2",
    )
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    printed = program.succeeds(
        "inspect-data",
        "--gin_file=runs/quickstart.gin",
        *flags,
        f"--output={tmp_path}",
        "--images=3",
    )
    assert "batch of step 0, 2 views of each, left to right" in printed
    assert re.search(r"^PaddedCrop .*2 views of uint8 \[16, 16, 1\]$", printed, flags=re.MULTILINE)
    sheet = cv2.imread(f"{tmp_path}/batch_0.png")
    side, gap, line = contact_sheet.SIDE, picture_grid.GAP, picture_grid.LINE_HEIGHT
    assert sheet.shape[:2] == (gap + line + 6 * (side + line + gap), gap + 2 * (side + gap))
    top, below = (gap + line + row * (side + line + gap) for row in (0, 1))
    pictures, crops = (slice(gap + at * (side + gap), at * (side + gap) + side) for at in (0, 1))
    first, second = (sheet[start : start + side] for start in (top, below))
    np.testing.assert_array_equal(first[:, pictures], second[:, pictures])
    assert not np.array_equal(first[:, crops], second[:, crops])
