"""TensorBoard on finished runs, as a person sees it in a browser."""

import base64
import json
import os
import pathlib
import urllib.parse
import urllib.request

import cv2
import numpy as np
import pytest
from support import browser, commands, harness, ports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.MISSING is not None, reason=str(browser.MISSING)),
]

SCALARS = {
    "train": ("loss", "accuracy", "learning_rate", "gradient_norm", "update_norm"),
    "eval": ("loss", "top_1", "top_5", "examples"),
    "speed": ("images_per_second", "images_per_second_per_device", "step_seconds"),
    "time": ("data_wait_fraction",),
    "memory": ("device_bytes", "host_bytes"),
    "goodput": ("fraction", "step_seconds", "compile_seconds", "lost_seconds"),
}


@pytest.fixture(scope="module")
def board(quick_start, other_run, copy):
    """The address of TensorBoard on both runs."""
    port = ports.free()
    address = f"http://127.0.0.1:{port}"

    def has_both_runs():
        with urllib.request.urlopen(f"{address}/data/runs", timeout=30) as answer:
            runs = answer.read()
        return b"quickstart/tensorboard" in runs and b"other/tensorboard" in runs

    command = [".venv/bin/tensorboard", "--logdir=workdirs", f"--port={port}"]
    with harness.Process(command, folder=copy) as server:
        browser.eventually(has_both_runs, server.said)
        yield address


@pytest.fixture(scope="module")
def page(board):
    with browser.Browser() as opened:
        opened.board = board
        yield opened


def show(page, tab, *texts):
    """Opens a tab and waits until it shows the texts; gives all that it shows."""
    page.open("about:blank")
    page.open(f"{page.board}/#{tab}")

    def all_there():
        text = page.text()
        return text if all(wanted in text for wanted in texts) else None

    return browser.eventually(all_there, f"{texts} on {tab}")


def last_accuracy(workdir):
    return commands.evaluations(workdir)[-1]["eval/top_1"]


def test_scalars_are_there_with_the_last_values_of_both_runs(page, quick_start, other_run):
    show(page, "timeseries", *SCALARS)
    for group in SCALARS:
        if f"{group}\n/" not in page.text():
            page.click(group)

    def missing():
        text = page.text()
        wanted = [f"{group}\n/{name}\n" for group in SCALARS for name in SCALARS[group]]
        return [title for title in wanted if title not in text]

    def titles():
        assert missing() == []
        return True

    browser.eventually(titles, "titles of all scalars")
    for workdir, _ in (quick_start, other_run):
        accuracy = last_accuracy(workdir)
        browser.eventually(
            lambda accuracy=accuracy: f"\n{accuracy:.4g}\n" in page.text(), f"top-1 of {workdir}"
        )
    if picture := os.environ.get("TENSORBOARD_PICTURE"):
        take_picture(page, pathlib.Path(picture))


def take_picture(page, path):
    """A screenshot for documents."""
    page.click("Close")
    shot = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    cv2.imwrite(
        str(path), cv2.resize(shot[:900], None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    )


def picture_of(source):
    """The run and the tag of a picture, which TensorBoard writes into its address."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(source).query)
    key = query["blob_key"][0]
    _, run, tag, *_ = json.loads(base64.urlsafe_b64decode(key + "=" * (-len(key) % 4)))
    return run, tag


def test_pictures_are_drawn(page):
    wanted = {
        (f"{run}/tensorboard", f"{split}/images")
        for run in ("quickstart", "other")
        for split in ("train", "eval")
    }
    show(page, "images", "train/images", "eval/images", "quickstart/tensorboard")

    def pictures():
        drawn = page.run(
            # One canvas for each picture; how wide it is, and how many colours it has.
            "const images = all(document).filter((e) => e.tagName == 'IMG' && e.complete &&"
            " e.naturalWidth > 0 && e.src.includes('individualImage'));"
            "return images.map((image) => {"
            "  const canvas = document.createElement('canvas');"
            "  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;"
            "  const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
            "  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;"
            "  const colours = new Set();"
            "  for (let i = 0; i < data.length; i += 4)"
            "    colours.add(data[i] * 65536 + data[i + 1] * 256 + data[i + 2]);"
            "  return [image.src, canvas.width, colours.size];"
            "});"
        )
        # Other tests may have left more runs beside these two.
        return drawn if wanted <= {picture_of(source) for source, _, _ in drawn} else None

    for source, width, colours in browser.eventually(pictures, wanted):
        if picture_of(source) not in wanted:
            continue
        # 32 pictures, six in a row, each enlarged from 32 to 96 pixels.
        assert width == 6 * (96 + 4) + 4, source
        assert colours > 100, source


def test_the_configuration_stands_under_text(page):
    show(
        page,
        "text",
        "configuration/text_summary",
        "Run.global_batch = 32",
        "AdamW.peak_learning_rate = 0.002",
        "AdamW.peak_learning_rate = 0.004",
    )


def test_runs_are_compared_by_their_values(page):
    text = show(page, "hparams", "quickstart/tensorboard", "other/tensorboard", "eval/top_1")
    column = [line for line in text.splitlines() if line.startswith("0.00")]
    assert {"0.0020000", "0.0040000"} <= set(column), text
