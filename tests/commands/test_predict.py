import csv
import json
import os
import pathlib
import shutil

import cv2
import numpy as np
import pytest
from support import commands, program
from support.trained import BINDINGS, CLASS_NAMES

import nest_dist
from nest_dist.base import failures
from nest_dist.commands import cli, predict
from nest_dist.config import run_json
from nest_dist.experiment import run as runs
from nest_dist.pretrained import description
from nest_dist.pretrained.formats import safetensors_file
from nest_dist.telemetry import pictures as drawn_pictures


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_the_most_likely_classes_come_first_with_their_probabilities(trained, pictures):
    paths, images = pictures
    said = program.succeeds("predict", *paths, f"--checkpoint={trained.workdir}", "--format=json")
    expected = softmax(trained.logits(images))
    predictions = json.loads(said)
    assert [prediction["image"] for prediction in predictions] == paths
    for prediction, row in zip(predictions, expected, strict=True):
        labels = [best["class"] for best in prediction["top_5"]]
        assert labels == list(np.argsort(-row))
        for best in prediction["top_5"]:
            assert best["name"] == ("circle", "square", "star")[best["class"]]
            assert best["probability"] == pytest.approx(row[best["class"]], abs=1e-5)


def test_pictures_that_cannot_be_read_are_named_and_all_others_predicted(
    trained, pictures, tmp_path, capsys
):
    paths, _ = pictures
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(paths[0], odd)
    (tmp_path / "short.png").write_bytes(odd.read_bytes()[:60])
    given = [str(odd), str(tmp_path / "short.png"), str(tmp_path / "none.png"), *paths]
    with pytest.raises(failures.BadInput, match="2 of 6 pictures are not predicted, the first: "):
        cli._run(["predict", *given, f"--checkpoint={trained.workdir}", "--format=json"])
    said = capsys.readouterr()
    assert [each["image"] for each in json.loads(said.out)] == [str(odd), *paths]
    assert "short.png is no picture that can be decoded" in said.err
    assert "none.png cannot be read (No such file or directory)" in said.err


@pytest.mark.slow
def test_names_that_are_no_utf_8_are_printed(trained, pictures, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(pictures[0][0], odd)
    done = commands.nest_dist("predict", str(odd), f"--checkpoint={trained.workdir}", succeeds=True)
    assert "caf\\udce9.png" in done.stdout


def test_the_table_shows_the_same(trained, pictures):
    paths, images = pictures
    said = program.succeeds("predict", f"--checkpoint={trained.workdir}", paths[0])
    row = softmax(trained.logits(images))[0]
    label = int(np.argmax(row))
    name = ("circle", "square", "star")[label]
    first, second, *_ = said.splitlines()
    assert first == paths[0]
    assert second.split() == [f"{row[label]:.1%}", name, "(label", f"{label})"]


def test_folders_and_several_pictures_get_a_line_each(trained, pictures):
    paths, images = pictures
    checkpoint = f"--checkpoint={trained.workdir}"
    lines = program.succeeds("predict", os.path.dirname(paths[0]), checkpoint).splitlines()
    assert lines == program.succeeds("predict", *paths, checkpoint).splitlines()
    for line, path, row in zip(lines, paths, softmax(trained.logits(images)), strict=True):
        first, second = np.argsort(-row)[:2]
        best, next_best = (f"{row[c]:.1%} {trained_name(c)}" for c in (first, second))
        assert line.split("  ", 1)[0] == path
        assert " ".join(line.split()) == f"{path} {best}, {next_best}"


def trained_name(label):
    return ("circle", "square", "star")[label]


def test_rows_of_csv_have_a_class_each(trained, pictures):
    paths, images = pictures
    said = program.succeeds("predict", paths[1], f"--checkpoint={trained.workdir}", "--format=csv")
    header, *rows = csv.reader(said.splitlines())
    assert header == ["image", "rank", "class", "name", "probability"]
    order = np.argsort(-trained.logits(images)[1])
    assert [row[:4] for row in rows] == [
        [paths[1], str(rank), str(label), trained_name(label)]
        for rank, label in enumerate(order, 1)
    ]


def test_the_sheet_shows_the_least_certain_pictures(trained, pictures, tmp_path, monkeypatch):
    paths, images = pictures
    pages = []
    page = drawn_pictures.page
    monkeypatch.setattr(
        drawn_pictures, "page", lambda *given: (pages.append(given), page(*given))[1]
    )
    flags = (f"--checkpoint={trained.workdir}", f"--output={tmp_path / 'sheets'}", "--images=2")
    said = program.succeeds("predict", *paths, *flags)
    sheet = tmp_path / "sheets" / "least_certain.png"
    assert f"{sheet}: the 2 least certain of 3 pictures" in said
    assert cv2.imread(str(sheet)).ndim == 3
    expected = np.argsort(softmax(trained.logits(images)).max(axis=1))[:2]
    ((shown, captions),) = pages
    np.testing.assert_array_equal(shown, images[expected])
    assert [caption.lines[-1] for caption in captions] == [
        os.sep.join(pathlib.Path(paths[index]).parts[-2:]) for index in expected
    ]


def test_classes_of_sets_have_probabilities_of_their_own(trained, pictures, tmp_path):
    paths, images = pictures
    run = runs.load(["runs/quickstart.gin", "objective/multi_label.gin"], BINDINGS)
    described = description.texts(trained.model, run_json.dump(run), CLASS_NAMES)
    weights = tmp_path / "sets.safetensors"
    safetensors_file.write(weights, trained.params, described)
    expected = 1 / (1 + np.exp(-trained.logits(images)))

    def assert_expected(of_pictures):
        for found, row in zip(of_pictures, expected, strict=True):
            assert [label for label, _ in found] == list(np.argsort(-row))
            for label, probability in found:
                assert probability == pytest.approx(row[label], abs=1e-5)

    for command, classes in (("predict", "top_5"), ("explain", "classes")):
        flags = (f"--checkpoint={weights}", f"--output={tmp_path / command}", "--format=json")
        said = json.loads(program.succeeds(command, *paths, *flags))
        assert_expected(
            [[(it["class"], it["probability"]) for it in each[classes]] for each in said]
        )
    for given in (weights, trained.workdir):
        loaded = nest_dist.load(given)
        assert loaded.class_names == CLASS_NAMES
        assert loaded.sets == (given == weights)
    of_pictures = nest_dist.load(weights).predict(paths)
    assert_expected([[(it.label, it.probability) for it in each] for each in of_pictures])


def test_many_pictures_are_predicted_like_single_ones(trained, pictures, monkeypatch):
    paths, _ = pictures
    flags = (f"--checkpoint={trained.workdir}", "--format=json")
    together = json.loads(program.succeeds("predict", *paths, *flags))
    monkeypatch.setattr(predict, "LARGEST_BATCH", 2)
    in_batches = json.loads(program.succeeds("predict", *paths, *flags))
    for one, other in zip(together, in_batches, strict=True):
        assert [best["class"] for best in one["top_5"]] == [
            best["class"] for best in other["top_5"]
        ]
        for best, again in zip(one["top_5"], other["top_5"], strict=True):
            assert best["probability"] == pytest.approx(again["probability"], abs=1e-6)


def test_names_can_come_from_a_file_and_are_numbers_where_none_are_known(
    trained, pictures, tmp_path
):
    paths, _ = pictures
    safetensors_file.write(tmp_path / "bare.safetensors", trained.params, {})
    checkpoint = f"--checkpoint={tmp_path / 'bare.safetensors'}"
    assert "class 1" in program.succeeds("predict", paths[0], checkpoint)
    (tmp_path / "names").write_text("uno\ndue\ntre\n")
    said = program.succeeds("predict", paths[0], checkpoint, f"--class_names={tmp_path / 'names'}")
    assert {"uno", "due", "tre"} <= set(said.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=RUN"], "predict got no picture; give one path or several, or folders."),
        (["RUN/checkpoints", "--checkpoint=RUN"], "checkpoints holds no pictures; give one that"),
        (["PICTURE", "--checkpoint=RUN", "--images=0"], "--images is 0; it must be at least 1"),
        (["PICTURE"], "--checkpoint is not given; give a file of weights, a workdir, or"),
        (
            ["PICTURE", "--checkpoint=RUN", "--format=jsno"],
            "--format is 'jsno', which is unknown; did you mean json?",
        ),
        (
            ["PICTURE", "--checkpoint=nest_tiny"],
            "nest_tiny is the name of a variant, which has no trained weights; give a file",
        ),
        (["nothing.png", "--checkpoint=RUN"], "nothing.png cannot be read (No such file or"),
        (["RUN/config.gin", "--checkpoint=RUN"], "config.gin is no picture that can be decoded"),
        (
            ["PICTURE", "--checkpoint=RUN", "--class_names=RUN/config.gin"],
            "lines, the model has 3 classes; give one name a line",
        ),
        (
            ["PICTURE", "--checkpoint=RUN", "--class_names=nothing"],
            "--class_names is nothing, which cannot be read (",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(arguments, message, trained, pictures, monkeypatch):
    words = {"RUN": str(trained.workdir), "PICTURE": pictures[0][0]}
    for word, value in words.items():
        arguments = [argument.replace(word, value) for argument in arguments]
    assert message in program.refuses(monkeypatch, "predict", *arguments)


def test_a_model_without_head_predicts_nothing(trained, pictures, tmp_path, monkeypatch):
    params = {n: leaf for n, leaf in trained.params.items() if not n.startswith("head/")}
    safetensors_file.write(tmp_path / "features.safetensors", params, {})
    checkpoint = f"--checkpoint={tmp_path / 'features.safetensors'}"
    line = program.refuses(monkeypatch, "predict", pictures[0][0], checkpoint)
    assert "features.safetensors, a model without head; fine-tune it on classes first." in line


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_weights_that_give_nan_predict_nothing(broken, trained, pictures, tmp_path, monkeypatch):
    kernel = np.full_like(trained.params["head/kernel"], broken)
    safetensors_file.write(
        tmp_path / "diverged.safetensors", {**trained.params, "head/kernel": kernel}, {}
    )
    checkpoint = f"--checkpoint={tmp_path / 'diverged.safetensors'}"
    line = program.refuses(monkeypatch, "predict", pictures[0][0], checkpoint)
    assert f"{pictures[0][0]} gets probabilities that are NaN; the weights of --checkpoint" in line
    assert "give an earlier --step or other weights" in line
