import json

import numpy as np

from nest_dist.telemetry import writer


def test_a_grid_shows_every_image_in_its_place():
    images = np.stack([np.full((4, 6, 1), value, np.uint8) for value in (10, 20, 30)])
    page = writer.grid(images, gap=1)
    assert page.shape == (2 * 5 + 1, 2 * 7 + 1, 3)
    assert (page[1:5, 1:7] == 10).all()
    assert (page[1:5, 8:14] == 20).all()
    assert (page[6:10, 1:7] == 30).all()
    assert (page[6:10, 8:14] == 128).all()


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
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 30.0)]
