"""README and its pages word for word: each command, in a fresh copy, in order."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
import urllib.request

import cv2
import numpy as np
import pytest
from support import cloud, commands, harness, ports, readme, rehearsals
from support.readme import BINDINGS, QUICK_START, shell

from nest_dist.data.sources import digits
from nest_dist.experiment import run as runs
from nest_dist.pretrained import weight_files

TESTS = "bash tests/run.sh"
TENSORBOARD = ".venv/bin/tensorboard --logdir=workdirs/quickstart/tensorboard"
EVALUATE = ".venv/bin/nest-dist evaluate --workdir=workdirs/quickstart"
LONGER = (
    "bash launch/local.sh -- --gin_file=runs/quickstart.gin --workdir=workdirs/quickstart "
    '--gin_bindings="Run.num_epochs = 14"'
)
FASHION_MNIST = (
    ".venv/bin/nest-dist train --gin_file=runs/fashion_mnist.gin --workdir=workdirs/fashion_mnist"
)
PREDICT = ".venv/bin/nest-dist predict picture.png --checkpoint=workdirs/quickstart"
EXPORT = ".venv/bin/nest-dist export digits.stablehlo --checkpoint=workdirs/quickstart"
CONVERT = (
    ".venv/bin/nest-dist convert --from=nest_dist --to=timm workdirs/quickstart digits.safetensors"
)
FINE_TUNE = (
    ".venv/bin/nest-dist train --gin_file=runs/quickstart.gin --workdir=workdirs/larger "
    """--gin_bindings="Run.init_from = 'workdirs/quickstart'" """
    '--gin_bindings="NesT.image_size = 48" --gin_bindings="Digits.image_side = 48" '
    '--gin_bindings="PaddedCrop.side = 48" --gin_bindings="Run.num_epochs = 3"'
)
INSTALL = "pip install ."
INSTALLED = "nest-dist train --gin_file=runs/quickstart.gin --workdir=digits"
KNOWN = {
    "README.md": [
        *(QUICK_START, TESTS, TENSORBOARD, EVALUATE, LONGER),
        *readme.PICTURES,
        BINDINGS,
        *readme.IMAGENET,  # tried in faults/test_prepared.py
        *cloud.README,  # tried in launch/test_pod_run.py
        *readme.GPUS,
        rehearsals.README,  # tried in commands/test_rehearse.py
        *(PREDICT, EXPORT, CONVERT, FINE_TUNE, INSTALL, INSTALLED),
    ],
    "BUILD.md": [],
    "CHANGELOG.md": [],
    "gin/README.md": [FASHION_MNIST],
    "launch/README.md": [],
    "tests/benchmarks/README.md": [],
    "tests/faults/README.md": [readme.CHAOS],  # tried in faults/test_chaos.py
}


@pytest.mark.parametrize("page", KNOWN)
def test_every_command_of_a_page_is_tried_here(page):
    assert readme.shell_commands(page) == KNOWN[page]


def test_the_test_command_is_the_one_that_must_pass_before_a_change_lands():
    assert TESTS in (commands.TOP / ".ci" / "run").read_text().splitlines()


def test_the_quick_start_learns_digits_and_says_what_is_next(quick_start, last_step):
    workdir, done = quick_start
    accuracy = commands.evaluations(workdir)[-1]["eval/top_1"]
    assert accuracy >= 0.97
    assert f"step {last_step}/{last_step}" in done.stdout
    assert f"test top-1 {accuracy:.2%}" in done.stdout
    said = " ".join(done.stdout.replace("\\\n", " ").split())
    for following in (TENSORBOARD, EVALUATE, "Run.num_epochs", "AdamW.peak_learning_rate"):
        assert following in said


def test_nothing_is_left_outside_the_folder(quick_start, home):
    # pip asks rustc for its version, and where rustup stands in for rustc it makes its own folder.
    assert {path.name for path in home.iterdir()} - {".rustup"} == {".cache"}
    assert [path.name for path in (home / ".cache").iterdir()] == ["nest_dist"]  # compiled programs


def test_tensorboard_and_json_lines_say_the_same(quick_start):
    from tensorboard.backend.event_processing import event_accumulator

    workdir, _ = quick_start
    events = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    of_lines = {}
    for line in commands.metrics(workdir):
        for name, value in line.items():
            if name != "step":
                of_lines.setdefault(name, []).append((line["step"], np.float32(value)))
    of_events = {
        name: [(event.step, np.float32(event.value)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert of_events == of_lines
    assert {"train/loss", "train/learning_rate", "eval/top_1"} <= of_events.keys()
    (image,) = events.Images("train/images")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert "Run.global_batch = 32" in str(events.Tensors("configuration/text_summary")[0])


def test_checkpoints_and_configuration_belong_to_the_run(quick_start, last_step):
    workdir, _ = quick_start
    state = commands.arrays(workdir)
    assert state["step"] == last_step
    assert max(int(path.name) for path in (workdir / "checkpoints").iterdir()) == last_step
    run = runs.load([str(workdir / "config.gin")], [])
    assert run == runs.load(["runs/quickstart.gin"], [])
    assert round(run.num_epochs * 1438 / run.global_batch) == last_step


def test_evaluating_measures_what_the_run_measured(quick_start, copy, last_step):
    workdir, _ = quick_start
    done = shell(EVALUATE, copy, JAX_PLATFORMS="cpu", succeeds=True)
    expected = commands.evaluations(workdir)[-1]
    title, *rows = done.stdout.splitlines()
    found = dict(row.split() for row in rows)
    assert title == f"step {last_step}, split test"
    assert found["top-1"] == f"{expected['eval/top_1']:.2%}"
    assert found["examples"] == "359"
    assert float(found["loss"]) == pytest.approx(expected["eval/loss"], abs=2e-4)


def test_tensorboard_serves_the_run(quick_start, copy):
    port = ports.free()
    address = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"

    def shows_accuracy():
        with urllib.request.urlopen(address, timeout=5) as answer:
            tags = json.load(answer)
        return tags and "eval/top_1" in next(iter(tags.values()))

    with harness.Process([*shlex.split(TENSORBOARD), f"--port={port}"], folder=copy) as server:
        harness.wait_until(shows_accuracy, server.said, errors=(OSError,))


@pytest.mark.slow
def test_the_same_command_again_finds_the_run_complete(quick_start, copy, last_step):
    done = shell(QUICK_START, copy, succeeds=True)
    assert "That run was started before" in done.stdout
    assert f"the run is complete at step {last_step}" in done.stdout
    assert "environment:" not in done.stderr


@pytest.mark.slow
def test_a_longer_run_goes_on_where_the_shorter_ended(quick_start, copy, last_step):
    workdir, _ = quick_start
    done = shell(LONGER, copy, succeeds=True)
    assert f"resuming after step {last_step}" in done.stdout
    assert "configuration changed: Run.num_epochs was 12, is 14: the run goes on" in done.stdout
    steps = [line["step"] for line in commands.metrics(workdir) if "train/loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == round(14 * 1438 / 32)


@pytest.mark.slow
def test_bindings_reach_the_run(other_run):
    workdir, done = other_run
    assert "4 cpu devices in 2 processes" in done.stdout
    text = (workdir / "config.gin").read_text()
    assert "AdamW.peak_learning_rate = 0.004" in text
    assert "Run.num_epochs = 3" in text


@pytest.fixture(scope="module")
def picture(copy):
    """A digit that the run has not seen, as README calls it, and its label."""
    example = digits.Digits("test", image_side=32).open()[7]
    cv2.imwrite(str(copy / "picture.png"), example["image"])
    (label,) = example["labels"]
    return label


def test_predicting_names_the_digit(quick_start, copy, picture):
    done = shell(PREDICT, copy, JAX_PLATFORMS="cpu", succeeds=True)
    shown, best, *others = done.stdout.splitlines()
    assert shown == "picture.png"
    assert best.endswith(f"(label {picture})")
    assert len(others) == 4


@pytest.mark.slow
def test_the_loaded_and_the_exported_model_see_the_same_digit(quick_start, copy, picture):
    done = shell(EXPORT, copy, JAX_PLATFORMS="cpu", succeeds=True)
    (of_load,) = readme.blocks("python")
    code = """
import cv2, jax.export
exported = jax.export.deserialize(open("digits.stablehlo", "rb").read())
again = exported.call(cv2.imread("picture.png", cv2.IMREAD_GRAYSCALE)[None, ..., None])
print(logits.argmax(), abs(logits - again).max() < 1e-4)
"""
    python = f".venv/bin/python -c {shlex.quote(of_load + code)}"
    done = shell(python, copy, JAX_PLATFORMS="cpu", succeeds=True)
    assert done.stdout.split() == [str(picture), "True"]


def test_converting_writes_what_timm_names(quick_start, copy):
    shell(CONVERT, copy, JAX_PLATFORMS="cpu", succeeds=True)
    found = weight_files.read(copy / "digits.safetensors").arrays
    assert found["levels.1.transformer_encoder.1.attn.qkv.weight"].shape == (192, 64)


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_digits_that_were_learned(quick_start, copy):
    done = shell(FINE_TUNE, copy, JAX_PLATFORMS="cpu", succeeds=True)
    assert "starting from workdirs/quickstart: nest_micro, a NesT of 2 levels" in done.stdout
    assert "resized to another image: levels_0/position_embedding [1, 4, 16, 32]" in done.stdout
    assert commands.evaluations(copy / "workdirs" / "larger")[-1]["eval/top_1"] >= 0.95


def pythons():
    """This Python, and the newest other one of this machine that we support."""
    installed = pathlib.Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python")
    candidates = ["python3.13", "python3.12", "python3.11", *sorted(map(str, installed))[::-1]]
    probe = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    for candidate in candidates:
        try:
            done = subprocess.run([candidate, "-c", probe], capture_output=True, text=True)
        except OSError:
            continue
        version = tuple(map(int, done.stdout.split()))
        if version >= (3, 11) and version != sys.version_info[:2]:
            return [sys.executable, candidate]
    return [sys.executable]


@pytest.mark.slow
@pytest.mark.parametrize("python", pythons())
def test_the_wheel_works_from_any_folder(python, tmp_path):
    """`pip install` into an empty environment, then the quick start by its short name."""
    source = readme.fresh_copy(tmp_path / "source")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    path = f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"
    quiet = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}
    done = shell(INSTALL, source, PATH=path, **quiet, succeeds=True)
    tiny = " ".join(f"--gin_bindings='{binding}'" for binding in commands.TINY)
    done = shell(
        f"{INSTALLED} {tiny} --gin_bindings='Run.num_epochs = 1'",
        elsewhere,
        PATH=path,
        succeeds=True,
    )
    assert "done: 45 steps" in done.stdout
    assert (elsewhere / "digits" / "config.gin").exists()
    where = shell("python -c 'import nest_dist; print(nest_dist.__file__)'", elsewhere, PATH=path)
    assert where.stdout.startswith(str(tmp_path / "venv"))


@pytest.mark.slow
def test_the_model_alone_gives_logits():
    (code,) = [each for each in readme.blocks("python", "gin/README.md") if "model.init" in each]
    program = code + "\nprint(logits.shape)"
    done = harness.python("-c", program, environment=harness.environment(), succeeds=True)
    assert done.stdout.strip() == "(1, 1000)"


@pytest.mark.slow
def test_fashion_mnist_is_learned(tmp_path):
    """Needs the four files of Fashion-MNIST; FASHION_MNIST names their folder."""
    folder = os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist")
    if not pathlib.Path(folder).is_dir():
        pytest.skip("apt install dataset-fashion-mnist, or set FASHION_MNIST")
    arguments = shlex.split(FASHION_MNIST)[1:]
    arguments[-1] = f"--workdir={tmp_path}"
    started = time.monotonic()
    done = commands.nest_dist(*arguments, f'--gin_bindings=idx_folder = "{folder}"')
    minutes = (time.monotonic() - started) / 60
    assert done.returncode == 0, done.stderr
    assert commands.evaluations(tmp_path)[-1]["eval/top_1"] >= 0.88
    parameters = int(re.search(r"([\d,]+) parameters", done.stdout)[1].replace(",", ""))
    assert parameters < 1_000_000
    print(f"{minutes:.1f} minutes")
