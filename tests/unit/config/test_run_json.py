"""A run as JSON: the same run again, without gin and without running anything from a stranger."""

import json
import sys

import pytest
from support import commands

from nest_dist.base import failures
from nest_dist.config import run_json, shipped
from nest_dist.experiment import run as runs
from nest_dist.pretrained import description


@pytest.mark.parametrize("name", shipped.names("runs"))
def test_every_shipped_run_comes_back_from_its_json(name):
    run = runs.load([name], [])
    document = json.loads(json.dumps(run_json.dump(run), allow_nan=False))
    assert run_json.load(document) == run


def test_what_a_stranger_names_is_neither_imported_nor_made(tmp_path, monkeypatch):
    (tmp_path / "strange_module.py").write_text("raise SystemExit('this was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("strange_module.Thing", "nest_dist.data.sources.digits.Digits", "os.system"):
        document = {"class": name, "fields": {}}
        with pytest.raises(failures.BadInput, match=f"uses {name}, which is none of nest_dist's"):
            run_json.load(document, description.trusted)
        run_json.flatten(document)
    assert "strange_module" not in sys.modules


@pytest.mark.parametrize(
    "document",
    [
        {"class": "nest_dist.train.inputs.Normalise", "fields": {}},
        {"class": "nest_dist.train.inputs.Normalize", "fields": {"variance": [1.0]}},
        {"class": "nest_dist.train.inputs.Normalize", "fields": []},
        {"class": "nest_dist.train.inputs.jax", "fields": {}},
        {"class": 5, "fields": {}},
        {"fields": {}},
    ],
)
def test_json_that_describes_nothing_is_refused_in_a_line(document):
    with pytest.raises(failures.BadInput) as refusal:
        run_json.load(document)
    assert "use the version of nest_dist that it was written with" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "null", "{}", '{"class": 1}', "[" * 100_000])
def test_a_file_that_describes_no_run_is_refused_in_a_line(text, tmp_path):
    (tmp_path / run_json.NAME).write_text(text)
    with pytest.raises(failures.BadInput, match=r"run.json describes no run; start `nest-dist tr"):
        run_json.read(tmp_path / run_json.NAME)


def test_json_has_no_infinity():
    with pytest.raises(failures.BadInput, match="a bound value is inf; give a finite number"):
        run_json.dump((1.0, float("inf")))


def test_the_objects_below_are_found_by_their_path():
    document = run_json.dump(runs.load(["runs/quickstart.gin"], commands.TINY))
    assert run_json.load(run_json.select(document, "model", "dim")) == 8
    assert run_json.select(document, "evaluations", 0, "data", "transforms") == []
    with pytest.raises(failures.BadInput, match=r"has no evaluations\.3\.data; use the version"):
        run_json.select(document, "evaluations", 3, "data")


def test_each_value_has_the_name_by_which_it_is_bound():
    document = run_json.dump(runs.load(["runs/quickstart.gin"], commands.TINY))
    settings = run_json.flatten(document)
    by_path = {path: (it.binding, it.text) for path, it in settings.items()}
    assert by_path["Run.model.dim"] == ("NesT.dim", "8")
    assert by_path["Run.step.optimizer"] == ("Step.optimizer", "@AdamW()")
    assert by_path["Run.data.transforms"] == ("TrainingData.transforms", "(@PaddedCrop(),)")
    # Two objects of a class: the path tells them apart.
    assert by_path["Run.data.source.split"] == ("Run.data.source.split", "'train'")
