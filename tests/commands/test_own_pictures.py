"""From one's own pictures to an exported model: README's commands, word for word."""

import shlex

import cv2
import numpy as np
import pytest
from support import commands, harness, photographs, readme

from nest_dist.data.transforms import decode

CLASSES = ("chelsea", "coffee", "rocket")
SPLITS = {"train": 40, "validation": 10}


def make_pictures(folder, splits=SPLITS):
    """Rectangles of three photographs, at FOLDER/SPLIT/CLASS/NAME."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for name in CLASSES:
            H, W, _ = photographs.photograph(name).shape
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(120, 200, 2)
                top, left = rng.integers(H - height), rng.integers(W - width)
                cut = photographs.photograph(name)[top : top + height, left : left + width]
                picture = decode.encode(np.ascontiguousarray(cut), "jpeg")
                (folder / split / name / f"{number:03d}.jpg").write_bytes(picture)


@pytest.mark.slow
def test_the_commands_of_readme_lead_from_pictures_to_an_exported_model(tmp_path):
    make_pictures(tmp_path / "pictures")
    said = {}
    for line in readme.PICTURES:
        _, command, *arguments = shlex.split(line)
        program = [*commands.NEST_DIST, command, *arguments]
        environment = harness.environment(PYTHONPATH=str(commands.TOP))
        done = harness.run(program, folder=tmp_path, environment=environment, succeeds=True)
        said[command] = done.stdout
    assert "120 training and 30 evaluation examples of 3 classes" in said["train"]
    title, *rows = said["evaluate"].splitlines()
    assert title.endswith(", split validation")
    top_1 = next(row.split()[1] for row in rows if row.split()[0] == "top-1")
    assert float(top_1.rstrip("%")) >= 90
    assert len(said["predict"].splitlines()) == 31  # the last one names the sheet
    for name in ("sheets/batch_0.png", "sheets/least_certain.png"):
        assert cv2.imread(str(tmp_path / name)) is not None
    assert (tmp_path / "pictures.stablehlo").stat().st_size > 1_000_000
