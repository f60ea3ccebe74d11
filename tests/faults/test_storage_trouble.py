"""Storage that fails while a checkpoint is written: tried again, then 75, and nothing is lost."""

import errno
import os
import pathlib
import subprocess

import pytest
from support import commands, harness

pytestmark = pytest.mark.medium

# 18 steps, checkpoints after 9 and 18.
BINDINGS = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 0.4",
    "Cadence.save_every_epochs = 0.2",
    "Evaluation.every_epochs = 0.4",
    "Run.checkpoints = @Retention()",
    "Retention.last = 1",
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = pathlib.Path(__file__).with_name("storage.c")
    built = tmp_path_factory.mktemp("library") / "storage.so"
    compiled = subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", built, source], check=False)
    if compiled.returncode:
        pytest.skip("run where gcc is installed")
    return built


@pytest.fixture
def environment(library, tmp_path):
    return harness.environment(LD_PRELOAD=str(library), TROUBLE_FILE=str(tmp_path / "trouble"))


def command(workdir):
    return [*commands.NEST_DIST, "train", *commands.tiny_flags(workdir, *BINDINGS)]


def has(workdir, step):
    return (workdir / "checkpoints" / str(step) / "metadata.sha256").exists()


SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "call", "processes"),
    [
        (errno.EIO, "fsync", 2),
        (errno.ENOSPC, "write", 1),
        (errno.ESTALE, "open", 1),
        pytest.param(errno.EIO, "write", 2, marks=SLOW),
        pytest.param(errno.ESTALE, "fsync", 1, marks=SLOW),
        pytest.param(errno.EIO, "mkdir", 1, marks=SLOW),
        pytest.param(errno.ENOSPC, "rename", 1, marks=SLOW),
        pytest.param(errno.ENOSPC, "open", 1, marks=SLOW),
    ],
)
def test_a_save_that_fails_ends_the_run_with_75_and_it_goes_on(
    number, call, processes, environment, tmp_path
):
    workdir = tmp_path / "run"
    # Of a first run, whose checkpoint must stay.
    short = [*command(workdir), "--gin_bindings=Run.num_epochs = 0.2"]
    done = harness.run(short, environment=environment, succeeds=True)
    (tmp_path / "trouble").write_text(f"{number} {call}")
    with harness.Group.of(processes, command(workdir), environment=environment) as group:
        assert group.wait() == [75] * processes, group.said()
        for process in group.processes:
            cause = commands.cause(process.said())
            assert os.strerror(number) in cause, group.said()
            assert "start" in cause
            # Before it TensorStore may complain of other writes that were under way.
            assert process.said().splitlines()[-1] == f"nest-dist: {cause}"
    assert has(workdir, 9)
    assert not has(workdir, 18)
    assert not list(workdir.rglob("*.damaged*"))
    (tmp_path / "trouble").unlink()
    done = harness.run(command(workdir), environment=environment, succeeds=True)
    assert "resuming after step 9" in done.stdout
    assert has(workdir, 18)


def test_a_moment_of_trouble_costs_a_moment(environment, tmp_path):
    workdir = tmp_path / "run"
    (tmp_path / "trouble").write_text(f"{errno.ESTALE} rename")
    with harness.Process(command(workdir), environment=environment) as process:
        commands.wait_for_step(workdir, 10, process)
        assert not has(workdir, 9)
        (tmp_path / "trouble").unlink()
        assert process.wait() == 0, process.said()
    assert has(workdir, 18)
