"""Folders in which a run cannot go on or begin: one line that says what to do, nothing changed."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest
from support import commands

from nest_dist.checkpointing import digests, manager

SHORT = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 0.05",
    "Run.save_every_epochs = 0.05",
    "Run.evaluate_every_epochs = 0.05",
    "AdamW.warmup_epochs = 0",
)


def train(workdir, *bindings):
    return commands.nest_dist("train", *commands.tiny_flags(workdir, *SHORT, *bindings))


def assert_refused(done, *parts):
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    for part in parts:
        assert part in line
    assert "compil" not in done.stdout


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert train(workdir).returncode == 0
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return pathlib.Path(shutil.copytree(trained, tmp_path / "workdir"))


def test_another_models_checkpoint(workdir):
    before = contents(workdir)
    done = train(workdir, "NesT.dim = 16")
    assert_refused(done, "NesT.dim is 16, the checkpoint of this workdir was made with 8", "start")
    assert contents(workdir) == before
    # Even if the user insists, what does not fit is not forced.
    flags = commands.tiny_flags(workdir, *SHORT, "NesT.dim = 16")
    done = commands.nest_dist("train", *flags, "--allow_config_change")
    assert_refused(done, "holds ", " as float32[", "use the configuration that it was")
    assert contents(workdir) == before


def test_a_checkpoint_of_a_newer_format(workdir):
    (step,) = (workdir / "checkpoints").iterdir()
    metadata = json.loads((step / "metadata.json").read_text())
    (step / "metadata.json").write_text(json.dumps({**metadata, "format_version": 2}))
    digests.write(manager.epath.Path(step))
    before = contents(workdir)
    assert_refused(train(workdir), "has format 2, this program reads up to 1", "a newer nest_dist")
    assert contents(workdir) == before


def test_an_unknown_policy(workdir):
    before = contents(workdir)
    done = train(workdir, "Keep.metric = 'eval/top1'")
    assert_refused(done, "Keep.metric is 'eval/top1', which is unknown; did you mean eval/top_1")
    assert contents(workdir) == before


def test_a_disk_that_holds_no_checkpoint(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    try:
        done = train(disk / "run")
        assert_refused(
            done,
            f"{disk}/run/checkpoints lies on a disk with 0.1 MB free, a checkpoint takes up to 1.",
            "make room, or give another --workdir",
        )
        assert contents(disk) == {}
    finally:
        subprocess.run(["umount", disk], check=True)
