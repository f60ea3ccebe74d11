"""A training step that was compiled beforehand, and the runs that use or refuse it."""

import json
import os

import jax
import pytest
from support import commands
from support.refusals import refusal

from nest_dist.commands import table
from nest_dist.experiment import build
from nest_dist.experiment import run as runs
from nest_dist.rehearsal import compiled_step

DEVICES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a step that was compiled for two devices of this machine."""
    output = tmp_path_factory.mktemp("kept")
    flags = commands.run_flags(*SHORT)
    done = commands.nest_dist(
        "rehearse", *flags, "--keep", f"--output={output}", devices=DEVICES, succeeds=True
    )
    assert f"`nest-dist train --compiled={output}` takes the compiled step" in done.stdout
    assert "2 cpu devices" in done.stdout
    return output


SHORT = (*commands.ONE_LEVEL, "Run.num_epochs = 0.2", "Cosine.warmup_epochs = 0.1")


def find(folder, *bindings, devices=DEVICES):
    """What `train` does with --compiled before it compiles or reads anything else."""
    configured = runs.load(["runs/quickstart.gin"], [*commands.TINY, *SHORT, *bindings])
    experiment = build.build(configured, jax.devices()[:devices])
    return compiled_step.find(str(folder), experiment)


@pytest.mark.slow
def test_a_run_with_a_step_compiled_beforehand_is_the_same_run(folder, tmp_path):
    for name, flags in {"usual": (), "kept": (f"--compiled={folder}",)}.items():
        commands.nest_dist(
            "train",
            *commands.tiny_flags(tmp_path / name, *SHORT),
            *flags,
            devices=DEVICES,
            succeeds=True,
        )
    assert commands.losses(tmp_path / "kept") == commands.losses(tmp_path / "usual")
    assert len(commands.losses(tmp_path / "kept")) == 9
    commands.assert_same_bits(
        commands.arrays(tmp_path / "kept"), commands.arrays(tmp_path / "usual")
    )


@pytest.mark.slow
def test_a_changed_step_is_refused_before_anything_is_compiled(folder, tmp_path):
    flags = commands.tiny_flags(tmp_path, *SHORT, "AdamW.beta_1 = 0.8")
    done = commands.nest_dist("train", *flags, f"--compiled={folder}", devices=DEVICES)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"AdamW.beta_1 is 0.8, the step in {folder} was compiled with 0.9; set it back" in line
    assert "compil" not in done.stdout


@pytest.mark.parametrize(
    ("binding", "text"),
    [
        ("NesT.dim = 16", "NesT.dim is 16, the step in"),
        ("NesT.remat = 'layer'", "NesT.remat is 'layer', the step in"),
        ("MeshShape.fsdp = 2", "MeshShape.fsdp is 2, the step in"),
        ("Run.seed = 7", "Run.seed is 7, the step in"),
        ("Run.global_batch = 16", "Run.global_batch is 16, the step in"),
        ("NonFinite.policy = 'skip'", "NonFinite.policy is 'skip', the step in"),
        ("Step.microbatches = 2", "Step.microbatches is 2, the step in"),
    ],
)
def test_what_the_step_depends_on_must_be_the_same(folder, binding, text):
    with refusal(text):
        find(folder, binding)


def test_what_goes_on_around_the_step_may_change(folder):
    assert find(folder, "Watch.stuck_seconds = 60.0", "Evaluation.every_epochs = 0.1") == folder


def test_other_devices_versions_and_flags_are_refused(folder, monkeypatch):
    with refusal("number of devices is 1, the step in"):
        find(folder, devices=1)
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        with refusal("XLA_FLAGS is --xla_cpu_enable_fast_math=true, the step in"):
            find(folder)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "__version__", "0.0.1")
        with refusal("version of jax is 0.0.1, the step in"):
            find(folder)
    with monkeypatch.context() as patch:
        patch.setattr(compiled_step.preflight, "code", lambda: "another")
        with refusal("code of nest_dist is another, the step in"):
            find(folder)


def test_a_folder_without_a_step_is_refused(tmp_path):
    with refusal(f"--compiled is {tmp_path}, which has no readable manifest.json; give the --out"):
        find(tmp_path)


def test_a_step_that_is_not_what_was_kept_is_refused(folder, tmp_path):
    for name in (compiled_step.STEP, compiled_step.MANIFEST):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with open(tmp_path / compiled_step.STEP, "r+b") as file:
        file.truncate(os.path.getsize(tmp_path / compiled_step.STEP) // 2)
    with refusal(f"{tmp_path / compiled_step.STEP} is not what was written there; rehearse again"):
        find(tmp_path)


def test_the_manifest_can_be_read(folder):
    written = json.loads((folder / compiled_step.MANIFEST).read_text())
    assert written["NesT.dim"] == "8"
    assert written["number of training examples"] == "1438"
    assert written["mesh"] == "data=2 x fsdp=1 x rows=1 x tensor=1"
    assert "compiled" in table.COMMANDS["train"].flags
