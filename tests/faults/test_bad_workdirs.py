"""Folders in which a run cannot go on or begin: one line that says what to do, nothing changed."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess

import pytest
from support import commands, harness

from nest_dist.checkpointing import reader

SHORT = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 0.05",
    "Cadence.save_every_epochs = 0.05",
    "Evaluation.every_epochs = 0.05",
    "Cosine.warmup_epochs = 0",
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_another_seed_is_refused_unless_it_is_allowed(workdir):
    before = contents(workdir)
    assert_refused(train(workdir, "Run.seed = 1"), "Run.seed is 1, the checkpoint of this workdir")
    assert contents(workdir) == before
    flags = commands.tiny_flags(workdir, *SHORT, "Run.seed = 1", "Run.num_epochs = 0.1")
    done = commands.nest_dist("train", *flags, "--allow_config_change", succeeds=True)
    for line in (
        "configuration changed: Run.seed was 0, is 1: the checkpoint belongs to another run",
        "configuration changed: Run.num_epochs was 0.05, is 0.1: the run goes on differently",
    ):
        assert line in done.stdout


@pytest.mark.slow
def test_a_checkpoint_of_a_newer_format(workdir):
    (step,) = (workdir / "checkpoints").iterdir()
    metadata = json.loads((step / "metadata.json").read_text())
    text = json.dumps({**metadata, "format_version": 4})
    (step / "metadata.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (step / "metadata.sha256").write_text(f"{digest}  metadata.json\n")
    before = contents(workdir)
    assert_refused(train(workdir), "has format 4, this program reads 3", "a newer nest_dist")
    assert contents(workdir) == before


def test_an_unknown_policy(workdir):
    before = contents(workdir)
    done = train(workdir, "Retention.metric = 'eval/top1'")
    assert_refused(done, "Retention.metric is 'eval/top1', which is unknown; did you mean eval/top")
    assert contents(workdir) == before


def test_a_disk_that_holds_no_checkpoint(tmp_path):
    if os.getuid() != 0:
        pytest.skip("run as root, who may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("run where a disk may be mounted")
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


def test_a_checkpoint_under_another_number(workdir):
    (step,) = (workdir / "checkpoints").iterdir()
    step.rename(step.with_name("9"))
    before = contents(workdir)
    assert_refused(train(workdir), "checkpoints/9 holds step 2; give the folder that name again")
    assert contents(workdir) == before


def test_no_complete_checkpoint(workdir):
    (step,) = (workdir / "checkpoints").iterdir()
    (step / "metadata.json").write_text("")
    before = contents(workdir)
    assert_refused(train(workdir), "has no complete checkpoint (checkpoint 2 is corrupt (metadata")
    assert contents(workdir) == before


def test_damaged_records_cost_a_line_and_no_step(workdir):
    lines = (workdir / "metrics.jsonl").read_bytes()
    (workdir / "metrics.jsonl").write_bytes(lines[:30] + lines + bytes(50) + b"\n")
    (workdir / "goodput.json").write_bytes(bytes(40))
    (workdir / "config.gin").write_bytes(b"\xff\x00")
    (workdir / "profile").mkdir()
    for name in (".DS_Store", ".nfs0001", "0100", "²"):
        (workdir / "checkpoints" / name).mkdir()
        (workdir / "checkpoints" / "2" / name).touch()
    done = train(workdir, "Run.num_epochs = 0.1")
    assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stdout
    for name in ("metrics.jsonl", "goodput.json"):
        assert (workdir / f"{name}.damaged").exists()
        assert f"{workdir}/{name}" in done.stdout
    assert done.stderr == ""
    steps = [line["step"] for line in commands.metrics(workdir) if "train/loss" in line]
    assert steps == [2, 3, 4]  # the line of the first step was torn


@pytest.mark.slow
def test_a_second_run_while_the_first_goes_on(workdir):
    flags = commands.tiny_flags(workdir, *SHORT, "Run.num_epochs = 900")
    with harness.Process(
        [*commands.NEST_DIST, "train", *flags], environment=harness.environment()
    ) as first:
        commands.wait_for_step(workdir, 10, first)
        done = train(workdir, "Run.num_epochs = 900")
        assert_refused(done, f"{workdir}, which is in use by process {first.pid} on ", "--workdir")
        assert done.stdout == ""
        reached = commands.metrics(workdir)[-1]["step"]
        # `evaluate` and `verify` are welcome.
        done = commands.nest_dist("evaluate", f"--workdir={workdir}", succeeds=True)
        done = commands.nest_dist("verify", workdir, succeeds=True)
        commands.wait_for_step(workdir, reached + 10, first)
        first.terminate()
        assert first.wait() == 76, first.said()
    # Once more, and the workdir is renamed: no checkpoint is saved under its old name.
    reached = commands.metrics(workdir)[-1]["step"]
    with harness.Process(
        [*commands.NEST_DIST, "train", *flags], environment=harness.environment()
    ) as again:
        commands.wait_for_step(workdir, reached + 20, again)
        workdir.rename(workdir.with_name("elsewhere"))
        assert again.wait() == 2, again.said()
        assert f"{workdir} has lost its lease.json: it was removed, renamed" in again.said()
    # Of a save that was under way, Orbax may have made the folder anew.
    assert not reader.Reader(workdir / "checkpoints").steps()
