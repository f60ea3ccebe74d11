"""Power cuts: a copy of the disk under a run holds what had reached the disk at that moment."""

import contextlib
import os
import random
import shutil
import subprocess
import time

import pytest
from support import commands, harness

from nest_dist.checkpointing import manager, reader, retention
from nest_dist.telemetry import goodput, report

COPIES = 50
RUN = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = 4000",
    "Cadence.save_every_epochs = 0.5",
    "Evaluation.every_epochs = 50",
    "Run.checkpoints = @Retention()",
    "Retention.last = 1",
)
SEED = int(os.environ["NEST_DIST_TEST_SEED"])


def newest(workdir):
    """The newest complete checkpoint, 0 before the first."""
    return max(reader.Reader(workdir / "checkpoints").steps(), default=0)


@contextlib.contextmanager
def mounted(image, folder):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("run as root, where a disk may be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Images of the disk, each with the newest checkpoint when its copy began."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("run where mkfs.ext4 is installed")
    folder, rng = tmp_path_factory.mktemp("power"), random.Random(SEED)
    image, made = folder / "image", []
    subprocess.run(["truncate", "--size=48M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(image, folder / "disk") as disk:
        workdir = disk / "run"
        program = [*commands.NEST_DIST, "train", *commands.tiny_flags(workdir, *RUN)]
        with harness.Process(program, environment=harness.environment()) as run:
            harness.wait_until(lambda: newest(workdir) or not run.running(), run.said)
            for number in range(COPIES):
                time.sleep(rng.uniform(0, 1))
                assert run.running(), run.said()
                announced = newest(workdir)
                copy = shutil.copy(image, folder / f"copy_{number}")
                subprocess.run(["fallocate", "--dig-holes", copy], check=False)
                made.append((announced, copy))
            run.kill()
            run.wait()
    return made


@pytest.mark.slow
def test_after_a_power_cut_a_run_resumes_from_the_newest_checkpoint(copies, tmp_path):
    steps = []
    for announced, image in copies:
        with mounted(image, tmp_path / "disk") as disk:
            checkpoints = manager.Manager(disk / "run" / "checkpoints", retention.Retention())
            step, _ = checkpoints.newest()
            assert checkpoints.arrays(step)["step"] == step
            assert checkpoints.notes() == []
            checkpoints.close()
            report.Report(disk / "run", step, step, 1.0, 1.0).close()
            ledger = goodput.Ledger()
            ledger.resume(disk / "run" / "goodput.json", step)
            ledger.close()
        print(f"announced {announced}, resumed from {step}")
        assert step >= announced
        steps.append(step)
    assert len(set(steps)) > COPIES / 5  # the copies are of different moments


@pytest.mark.slow
def test_the_command_itself_goes_on_after_a_power_cut(copies, tmp_path):
    announced, image = copies[-1]
    with mounted(image, tmp_path / "disk") as disk:
        epochs = f"Run.num_epochs = {announced / 45 + 1}"
        flags = commands.tiny_flags(disk / "run", *RUN, epochs)
        done = commands.nest_dist("train", *flags, succeeds=True)
        assert "resuming after step" in done.stdout
