import json
import shutil

import cv2
import numpy as np
import pytest
from support import program
from support.trained import CLASS_NAMES

import nest_dist
from nest_dist.base import failures
from nest_dist.commands import cli, explain
from nest_dist.pretrained.formats import safetensors_file


def test_classes_paths_and_sheets_are_those_of_gradcat(trained, pictures, tmp_path):
    paths, _ = pictures
    said = program.succeeds(
        *("explain", *paths, f"--checkpoint={trained.workdir}", "--format=json"),
        f"--output={tmp_path / 'sheets'}",
    )
    loaded = nest_dist.load(trained.workdir)
    found = nest_dist.gradcat(loaded.model, loaded.variables, loaded.preprocess(paths))
    for row, explained in enumerate(json.loads(said)):
        assert explained["image"] == paths[row]
        assert cv2.imread(explained["sheet"]).ndim == 3
        assert [each["class"] for each in explained["classes"]] == list(found.classes[row])
        for index, each in enumerate(explained["classes"]):
            assert each["name"] == CLASS_NAMES[each["class"]]
            assert each["logit"] == pytest.approx(float(found.logits[row, index]), abs=1e-4)
            blocks = [node["block"] for node in each["path"]]
            assert blocks == list(found.path[row, index][::-1])
        probabilities = [each["probability"] for each in explained["classes"]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_the_table_tells_where_the_leaf_is(trained, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = f"--checkpoint={trained.workdir}"
    first, line = program.succeeds(
        "explain", pictures[0][0], checkpoint, "--class=star"
    ).splitlines()
    assert first == f"{pictures[0][0]}: explanations/0.png"
    assert (tmp_path / "explanations" / "0.png").exists()
    assert " star  rows " in line
    by_number = program.succeeds("explain", pictures[0][0], checkpoint, "--class=2")
    assert by_number.splitlines() == [first, line]


def test_more_pictures_than_a_batch_are_explained_like_single_ones(
    trained, pictures, tmp_path, monkeypatch
):
    flags = (f"--checkpoint={trained.workdir}", f"--output={tmp_path}", "--format=json")
    together = json.loads(program.succeeds("explain", *pictures[0], *flags))
    monkeypatch.setattr(explain, "LARGEST_BATCH", 2)
    in_batches = json.loads(program.succeeds("explain", *pictures[0], *flags))
    for one, other in zip(together, in_batches, strict=True):
        assert [each["path"] for each in one["classes"]] == [
            each["path"] for each in other["classes"]
        ]


def test_pictures_of_one_name_get_sheets_of_their_own(trained, pictures, tmp_path):
    (tmp_path / "b").mkdir()
    shutil.copy(pictures[0][1], tmp_path / "b" / "0.png")
    given = (pictures[0][0], str(tmp_path / "b" / "0.png"))
    flags = (f"--checkpoint={trained.workdir}", f"--output={tmp_path}", "--format=json")
    one, other = json.loads(program.succeeds("explain", *given, *flags))
    assert one["sheet"] == str(tmp_path / "0.png")
    assert other["sheet"] == str(tmp_path / "0_2.png")


def test_pictures_that_cannot_be_read_are_named_and_all_others_explained(
    trained, pictures, tmp_path, capsys
):
    given = [str(tmp_path / "none.png"), *pictures[0], str(tmp_path)]
    with pytest.raises(failures.BadInput, match="2 of 5 pictures are not explained, the first: "):
        cli._run(
            ["explain", *given, f"--checkpoint={trained.workdir}", f"--output={tmp_path / 'out'}"]
        )
    said = capsys.readouterr()
    assert said.out.count("out/") == 3
    assert "none.png cannot be read (No such file or directory)" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=RUN"], "explain got no picture; give one path or several."),
        (["none.png", "--checkpoint=RUN"], "none.png cannot be read (No such file or directory)"),
        (["PICTURE"], "--checkpoint is not given; give a file of weights, a workdir, or"),
        (
            ["PICTURE", "--checkpoint=RUN", "--class=stra"],
            "--class is 'stra', which is unknown; did you mean star?",
        ),
        (
            ["PICTURE", "--checkpoint=RUN", "--class=3"],
            "--class is '3', which is unknown; known are circle, square, star.",
        ),
        (
            ["PICTURE", "--checkpoint=RUN", "--output=RUN/config.gin"],
            "config.gin, which cannot be made (",
        ),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments, message, trained, pictures, monkeypatch):
    words = {"RUN": str(trained.workdir), "PICTURE": pictures[0][0]}
    for word, value in words.items():
        arguments = [argument.replace(word, value) for argument in arguments]
    assert message in program.refuses(monkeypatch, "explain", *arguments)


def test_weights_that_give_nan_explain_nothing(trained, pictures, tmp_path, monkeypatch):
    kernel = np.full_like(trained.params["head/kernel"], np.nan)
    file = tmp_path / "diverged.safetensors"
    safetensors_file.write(file, {**trained.params, "head/kernel": kernel}, {})
    flags = (f"--checkpoint={file}", f"--output={tmp_path}")
    line = program.refuses(monkeypatch, "explain", pictures[0][0], *flags)
    assert f"{pictures[0][0]} gets probabilities that are NaN; the weights of --checkpoint" in line
