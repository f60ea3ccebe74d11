"""A run becomes a repository of the Hub: on a server that speaks its protocol, and in a folder."""

import json
import os
import pathlib
import shutil
import signal
import sys

import cv2
import numpy as np
import pytest
from support import fake_hub, harness, program

import nest_dist
from nest_dist.base import failures
from nest_dist.checkpointing import catalog
from nest_dist.pretrained import push
from nest_dist.telemetry import curves

FILES = {"README.md", "curves.png", "model.safetensors", "run.json"}
LICENSED = "--license=cc-by-4.0"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run with metrics and an evaluation of its newest checkpoint."""
    workdir = tmp_path / "alice" / "run"
    shutil.copytree(trained.workdir, workdir)
    lines = [{"step": step, "train/loss": 1.0 / step} for step in range(1, 10)]
    lines.append({"step": 7, "eval/loss": 0.5, "eval/top_1": 0.625})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    catalog.Catalog(workdir / "checkpoints").record(7, {"eval/loss": 0.5, "eval/top_1": 0.625})
    return workdir


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    with fake_hub.of_models(tmp_path / "hub", monkeypatch) as server:
        yield server


def logits(where, images, **more):
    loaded = nest_dist.load(where, **more)
    return np.asarray(loaded.logits(loaded.preprocess(list(images))))


def test_hub_folder_and_run_give_the_same_logits_to_the_bit(hub, run, pictures, tmp_path):
    _, images = pictures
    said = program.succeeds("push", run, "me/my-digits", LICENSED)
    assert said.splitlines() == [
        f"{hub.address}/me/my-digits: weights of step 7",
        "to load them: nest_dist.load('hf:me/my-digits')",
    ]
    folder = tmp_path / "out" / "folder"
    said = program.succeeds("push", run, "me/my-digits", LICENSED, f"--output={folder}")
    assert f"to load them: nest_dist.load({str(folder)!r})" in said
    published = hub.repositories["me/my-digits"]
    assert published.keys() - {".gitattributes"} == FILES
    for name in FILES:
        assert published[name] == (folder / name).read_bytes()
    assert not hub.private
    expected = logits(run, images)
    np.testing.assert_array_equal(logits("hf:me/my-digits", images), expected)
    np.testing.assert_array_equal(logits(folder, images), expected)
    assert nest_dist.load(folder).class_names == nest_dist.load(run).class_names


def test_another_step_and_a_private_repository(hub, run, pictures):
    _, images = pictures
    assert "weights of step 3" in program.succeeds(
        "push", run, "me/early", LICENSED, "--step=3", "--private"
    )
    assert hub.private == {"me/early"}
    np.testing.assert_array_equal(logits("hf:me/early", images), logits(run, images, step=3))
    assert (
        "The checkpoint of step 3 was not evaluated."
        in hub.repositories["me/early"]["README.md"].decode()
    )


def test_the_card_has_recipe_data_metrics_curve_and_how_to_load(hub, run):
    program.succeeds("push", run, "me/my-digits", LICENSED)
    files = hub.repositories["me/my-digits"]
    card = files["README.md"].decode()
    head, body = card.split("---\n")[1:]
    fields = {key: json.loads(it) for key, _, it in (x.partition(": ") for x in head.splitlines())}
    assert fields["license"] == "cc-by-4.0"
    assert fields["pipeline_tag"] == "image-classification"
    (result,) = fields["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.625}]
    assert "# my-digits\n" in body
    assert "trained for 7 steps by nest_dist" in body
    assert 'loaded = nest_dist.load("hf:me/my-digits")' in body
    assert "| top-1 | 62.50% |" in body
    assert "![Loss, accuracy, learning rate and speed over the steps](curves.png)" in body
    assert "| `TrainingData.source` | `@Digits()` |" in body
    assert "| `AdamW.peak_learning_rate` | `0.002` |" in body
    assert "| `PaddedCrop.padding` |" in body
    assert "3 classes: `circle`, `square`, `star`." in body
    drawn = cv2.imdecode(np.frombuffer(files["curves.png"], np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (2 * curves.HEIGHT, 2 * curves.WIDTH, 3)


def test_nothing_of_the_machine_or_the_user_is_published(run, tmp_path):
    (home := tmp_path / "alice" / "pictures").mkdir()
    document = {
        "class": "nest_dist.experiment.run.Run",
        "fields": {
            "init_from": str(home / "base.safetensors"),
            "teacher": "workdirs/of_alice/teacher",
            "outside": f"../{home.name}/outside",
            "metric": "eval/top_1",
            "source": {
                "class": "nest_dist.data.sources.parquet.Parquet",
                "fields": {
                    "files": ["https://me:secret@host/a/x.parquet?key=secret", "data/*.parquet"],
                    "address": "https://me:secret@host",
                    "bucket": "gs://mine/photographs/",
                    "public": "hf://datasets/someone/photographs",
                    "windows": "C:\\Users\\alice\\pictures",
                    "split": "train",
                },
            },
            "own": {"class": "alices.Source", "fields": {"password": "secret", "size": 3}},
            "tracker": {
                "class": "nest_dist.telemetry.trackers.mlflow.MLflow",
                "fields": {"uri": "https://me:secret@host"},
            },
        },
    }
    told = push.public(document)["fields"]
    assert told["init_from"] == "base.safetensors"
    assert told["teacher"] == "teacher"
    assert told["outside"] == "outside"
    assert told["metric"] == "eval/top_1"
    assert told["source"]["fields"] == {
        "files": ["x.parquet", "*.parquet"],
        "address": "(not published)",
        "bucket": "photographs",
        "public": "hf://datasets/someone/photographs",
        "windows": "pictures",
        "split": "train",
    }
    assert told["own"]["fields"] == {"password": "(not published)", "size": 3}
    assert told["tracker"] is None


def test_a_published_folder_names_no_folder_of_this_machine(run, tmp_path):
    program.succeeds("push", run, "me/my-digits", LICENSED, f"--output={tmp_path / 'out'}")
    private = (str(tmp_path), str(pathlib.Path.home()), os.getcwd())
    for path in (tmp_path / "out").iterdir():
        for text in private:
            assert text.encode() not in path.read_bytes(), f"{path.name} has {text}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "push got 1 arguments; give two, WORKDIR and OWNER/NAME."),
        (["RUN", "digits", LICENSED], "digits names no repository of the Hugging Face Hub; give"),
        (["RUN", "me/a--b", LICENSED], "me/a--b names no repository of the Hugging Face Hub; give"),
        (["RUN", f"me/{'a' * 96}", LICENSED], "single dots, at most 96 characters."),
        (["RUN", "me/digits"], "--license is not given; give the one under which others may use"),
        (["RUN", "me/digits", "--license=Apache 2"], "--license is Apache 2; give the Hub's iden"),
        (["RUN", "me/digits", LICENSED, "--output=RUN"], "which is not empty; give a new folder."),
        (["RUN", "me/digits", LICENSED, "--step=4"], "has no checkpoint of step 4; give one of 3"),
        (["nowhere", "me/digits", LICENSED], "where no run was started"),
    ],
)
def test_what_cannot_be_pushed_is_refused(arguments, message, hub, run, monkeypatch):
    arguments = [argument.replace("RUN", str(run)) for argument in arguments]
    assert message in program.refuses(monkeypatch, "push", *arguments)
    assert not any(files.keys() - {".gitattributes"} for files in hub.repositories.values())


def test_without_a_token_nothing_is_asked(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    said = program.refuses(monkeypatch, "push", run, "me/digits", LICENSED)
    assert "this user has no token of the Hugging Face Hub; run `hf auth login`, or set" in said
    assert hub.asked == []


def test_without_the_library_push_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    said = program.refuses(monkeypatch, "push", run, "me/digits", LICENSED)
    assert said.endswith(
        "me/digits is on the Hugging Face Hub; to publish there, `pip install nest-dist[hub]`."
    )


@pytest.mark.parametrize(
    ("token", "name", "license_flag", "cause"),
    [
        ("hf_of_nobody", "me/digits", LICENSED, "401"),
        (fake_hub.TOKEN, "them/digits", LICENSED, "403"),
        (fake_hub.TOKEN, "me/digits", "--license=none", '"license" must be one of'),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    token, name, license_flag, cause, hub, run, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", token)
    said = program.refuses(monkeypatch, "push", run, name, license_flag)
    assert f"the Hugging Face Hub refuses {name} (" in said
    assert cause in said
    assert said.endswith("check the name, --license, and that the token may write there.")


def test_a_repository_with_files_is_left_alone_unless_asked(hub, run, monkeypatch):
    hub.repositories["me/digits"] = {"model.safetensors": b"of another run"}
    said = program.refuses(monkeypatch, "push", run, "me/digits", LICENSED)
    assert "the repository me/digits exists and has 1 files; choose another name, or give" in said
    assert hub.repositories["me/digits"] == {"model.safetensors": b"of another run"}
    program.succeeds("push", run, "me/digits", LICENSED, "--replace")
    assert hub.repositories["me/digits"].keys() == FILES


def test_an_upload_that_breaks_off_publishes_nothing_and_can_be_repeated(hub, run, monkeypatch):
    # Else the library tries five times, with pauses.
    monkeypatch.setattr("huggingface_hub.lfs.http_backoff", _once)
    hub.fails = lambda path: 0 if path.startswith("/blobs/") else 200
    with pytest.raises(AssertionError, match="exit code 75") as ended:
        program.succeeds("push", run, "me/digits", LICENSED)
    assert "me/digits was not published (" in str(ended.value)
    assert "none of its files is seen; start the same command again." in str(ended.value)
    assert hub.repositories["me/digits"].keys() == {".gitattributes"}
    hub.fails = lambda path: 200
    program.succeeds("push", run, "me/digits", LICENSED)
    assert hub.repositories["me/digits"].keys() - {".gitattributes"} == FILES


def _once(*arguments, **more):
    from huggingface_hub.utils import http_backoff

    return http_backoff(*arguments, max_retries=0, **more)


def test_a_folder_that_cannot_be_written_is_refused(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(failures.BadInput, match=r"cannot be written \(.+\); choose another folder"):
        push.write(tmp_path / "file" / "out", run, None, "me/digits", "mit")


KILLED = """
import os, signal, sys
from nest_dist.commands import cli
from nest_dist.pretrained.formats import safetensors_file
safetensors_file.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_push_that_was_killed_leaves_nothing_behind_the_next(run, tmp_path):
    folder = tmp_path / "out" / "digits"
    push_there = ("push", run, "me/digits", LICENSED, f"--output={folder}")
    done = harness.python("-c", KILLED, *push_there, environment=harness.environment())
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert len(list(folder.parent.iterdir())) == 1
    program.succeeds(*push_there)
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == FILES
    assert folder.stat().st_mode == folder.parent.stat().st_mode
