"""The steps of BUILD.md, "How to add", with the code that stands there."""

import importlib
import textwrap

import numpy as np
import pytest
from support import readme

from nest_dist import commands
from nest_dist.base import failures
from nest_dist.base.settings import Effect
from nest_dist.commands import cli, table
from nest_dist.config import run_json
from nest_dist.experiment import changes
from nest_dist.experiment import run as runs

SOURCE, TRANSFORM, FIELD, ENTRY, COMMAND = readme.blocks("python", "BUILD.md")
(SOURCE_IN_GIN,) = readme.blocks("gin", "BUILD.md")
QUICK_START = "runs/quickstart.gin"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where Python finds modules."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_source(folder):
    (folder / "stripes.py").write_text(SOURCE)
    (folder / "stripes.gin").write_text(SOURCE_IN_GIN)
    files = [QUICK_START, str(folder / "stripes.gin")]
    run = runs.load(files, [])
    source = run.data.source.open()
    assert (len(source), source.class_names) == (64, ("horizontal", "vertical"))
    assert source.fingerprint != run.evaluation.data.source.open().fingerprint
    rows = np.arange(4)
    batches = run.data.batches(source, seed=0, global_batch=4, rows=rows, first_step=0)
    batch = next(batches)
    batches.close()
    assert batch["image"].shape == (4, 32, 32, 1)
    with pytest.raises(failures.BadInput, match=r"Stripes.num_examples is 0; it must be at least"):
        runs.load(files, ["train/Stripes.num_examples = 0"])


def test_a_transform(folder):
    (folder / "invert.py").write_text(TRANSFORM)
    bindings = [
        "import invert",
        "TrainingData.transforms = (@PaddedCrop(), @Invert())",
        "Invert.probability = 1.0",
    ]
    data = runs.load([QUICK_START], bindings).data
    example = data.source.open()[0]
    _, cropped, inverted = data.stages(example, seed=0, position=0)
    np.testing.assert_array_equal(inverted, 255 - cropped)
    with pytest.raises(failures.BadInput, match=r"Invert.probability is 2; it must be in \[0, 1\]"):
        runs.load([QUICK_START], [*bindings, "Invert.probability = 2"])


def test_a_field(folder):
    """In a subclass, which has the fields of its class and this one."""
    (folder / "patient.py").write_text(
        "import dataclasses\n"
        "import typing\n"
        "from nest_dist.base import settings\n"
        "from nest_dist.base.checks import Within\n"
        "from nest_dist.base.settings import Effect, means\n"
        "from nest_dist.experiment import run\n"
        "@settings.register\n"
        "class PatientNonFinite(run.NonFinite):\n"
        f"{textwrap.indent(textwrap.dedent(FIELD), '    ')}"
    )
    bindings = ["import patient", "Step.nonfinite = @PatientNonFinite()"]
    binding = "PatientNonFinite.patience_steps"
    before = runs.load([QUICK_START], bindings)
    after, text = runs.parse([QUICK_START], [*bindings, f"{binding} = 3"])
    assert (before.step.nonfinite.patience_steps, after.step.nonfinite.patience_steps) == (0, 3)
    assert f"{binding} = 3" in text
    documents = run_json.dump(before), run_json.dump(after)
    assert run_json.load(documents[1]) == after
    (change,) = changes.between(*documents)
    assert (change.binding, change.effect) == (binding, Effect.NONE)
    (setting,) = (it for it in run_json.flatten(documents[1]).values() if it.binding == binding)
    assert not setting.meaning.in_step
    with pytest.raises(failures.BadInput, match=r"patience_steps is -1; it must be at least 0"):
        runs.load([QUICK_START], [*bindings, f"{binding} = -1"])


def test_a_command(folder, monkeypatch, capsys):
    ((name, command),) = eval(f"{{{ENTRY}}}", vars(table)).items()
    monkeypatch.setitem(table.COMMANDS, name, command)
    (folder / f"{name.replace('-', '_')}.py").write_text(COMMAND)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(folder)])
    importlib.invalidate_caches()
    codes = []
    monkeypatch.setattr(failures, "end_now", codes.append)
    cli.main([name, f"--gin_file={QUICK_START}"])
    assert capsys.readouterr().out == "10\n"
    cli.main(["--help"])
    assert command.summary in capsys.readouterr().out
    cli.main([name, "--gin_file=absent.gin"])
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert codes == [failures.USAGE]
