"""`launch/slurm.sbatch` on a real Slurm of two nodes."""

import os
import re
import shlex
import signal
import subprocess
import sys

import psutil
import pytest
from support import commands, fake_nvidia, harness, readme, slurm

pytestmark = pytest.mark.skipif(
    bool(slurm.missing()),
    reason="apt install slurmctld slurmd slurm-client munge",
)
SHORT = (*commands.ONE_LEVEL, "Run.num_epochs = 0.2")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


class Job:
    """One submission; `python` is what runs nest-dist."""

    def __init__(self, cluster, folder, python, *arguments, asked=(), **variables):
        self.log = folder / "log"
        done = subprocess.run(
            ["sbatch", f"--output={self.log}", *asked, "launch/slurm.sbatch", *arguments],
            cwd=commands.TOP,
            env={**cluster, "NEST_DIST_PYTHON": str(python), **variables},
            capture_output=True,
            text=True,
            check=True,
        )
        self._number = re.search(r"job (\d+)", done.stdout)[1]
        self._cluster = cluster

    def ended(self):
        # A job that was put back may have to wait for two minutes.
        self._scontrol("update", f"JobId={self._number}", "StartTime=now")
        state = re.search(r"JobState=(\w+)", self._scontrol("show", "job", self._number))[1]
        return state in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")

    def _scontrol(self, *arguments):
        done = subprocess.run(
            ["scontrol", *arguments], env=self._cluster, capture_output=True, text=True
        )
        return done.stdout

    def output(self):
        harness.wait_until(self.ended, lambda: self.log.read_text())
        return self.log.read_text()


def stub(tmp_path, code):
    """In place of nest-dist: bash code that is given its arguments."""
    path = tmp_path / "python"
    path.write_text(
        f'#!/usr/bin/env bash\n[[ $1 == -c ]] && exec {sys.executable} "$@"\n'
        f"cd {tmp_path}\n{code}\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_the_nodes_find_each_other_and_train(cluster, tmp_path):
    flags = commands.tiny_flags(tmp_path / "workdir", *SHORT)
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    job = Job(cluster, tmp_path, sys.executable, *flags, **variables)
    output = job.output()
    assert "4 cpu devices in 2 processes" in output
    assert "0: done: 9 steps" in output
    assert output.endswith("slurm.sbatch: the run ended with status 0\n")


# Slurm once did not start the job again beside other work, and the test waited in vain.
@pytest.mark.slow
def test_a_lost_task_ends_the_other_and_the_job_is_queued_again(cluster, tmp_path):
    python = stub(
        tmp_path,
        'printf "%s\\0" "$@" >"arguments-$SLURM_PROCID"\n'
        "[[ ${SLURM_RESTART_COUNT:-0} == 1 ]] && exit 0\n"
        'echo $$ >"pid-$SLURM_PROCID"; exec sleep 600',
    )
    nasty = ("--workdir=/a b", "--gin_bindings=x = 'it''s \"$HOME\" \\ \n é'")
    job = Job(cluster, tmp_path, python, *nasty)
    pids = [tmp_path / f"pid-{task}" for task in (0, 1)]
    harness.wait_until(
        lambda: all(path.exists() and path.read_text() for path in pids), "the start of both tasks"
    )
    victim, other = (int(path.read_text()) for path in pids[::-1])
    os.kill(victim, signal.SIGKILL)
    output = job.output()
    assert not psutil.pid_exists(other)
    assert "back into the queue; restart 1" in output
    assert output.endswith("slurm.sbatch: the run ended with status 0\n")
    expected = "".join(f"{word}\0" for word in ("-m", "nest_dist", "train", *nasty))
    assert (tmp_path / "arguments-1").read_bytes() == expected.encode()


@pytest.mark.slow
def test_a_job_is_not_queued_again_where_that_would_not_help(cluster, tmp_path):
    python = stub(tmp_path, "[[ $SLURM_PROCID == 1 ]] && exit 2; exit 75")
    output = Job(cluster, tmp_path, python).output()
    assert output.endswith("slurm.sbatch: the run ended with status 2\n")


@pytest.mark.slow
def test_the_number_of_restarts_is_bounded(cluster, tmp_path):
    python = stub(tmp_path, "exit 75")
    output = Job(cluster, tmp_path, python, MAX_RESTARTS="1").output()
    assert output.count("back into the queue") == 1
    assert output.endswith("slurm.sbatch: 1 restarts were all that MAX_RESTARTS allows\n")


# What each task takes of the GPUs of its node, which are numbered devices here.
TAKEN = """
import os
from nest_dist.cluster import discovery, gpus
peers = discovery.find(None, None, None, 60)
seen = gpus.visible(gpus.installed())
mine = seen if peers.local_devices is None else [seen[at] for at in peers.local_devices]
print("TAKEN", peers.index, peers.count, os.environ["JAX_PLATFORMS"], *mine)
"""


# README's, for the two nodes of this cluster with their two cores each.
README = [
    re.sub("=8$", "=2", word)
    for word in shlex.split(readme.GPUS[1].partition(" launch/")[0])[1:]
    if not word.startswith("--nodes")
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (README, ["0", "1", "0", "1"]),  # a process a GPU
        *(
            pytest.param(asked, taken, marks=pytest.mark.slow)
            for asked, taken in (
                (["--gpus-per-node=4"], ["0123", "0123"]),  # a process a node
                (["--gpus-per-node=2", "--ntasks-per-node=2"], ["0", "1", "0", "1"]),
                (["--gpus-per-node=4", "--ntasks-per-node=2"], ["01", "23", "01", "23"]),
                (["--gpus-per-task=1", "--ntasks-per-node=2"], ["0", "1", "0", "1"]),
                (["--gres=gpu:2", "--ntasks-per-node=2"], ["0", "1", "0", "1"]),
            )
        ),
    ],
)
def test_each_task_has_gpus_of_its_own(cluster, tmp_path, asked, taken):
    (tmp_path / "taken.py").write_text(TAKEN)
    python = stub(tmp_path, f"exec {sys.executable} taken.py")
    variables = {
        "PATH": fake_nvidia.path(fake_nvidia.install(tmp_path / "n", count=slurm.GPUS)),
        "PYTHONPATH": harness.module_path(),
    }
    inherited = {name: value for name, value in cluster.items() if name != "JAX_PLATFORMS"}
    output = Job(inherited, tmp_path, python, asked=asked, **variables).output()
    assert output.endswith("slurm.sbatch: the run ended with status 0\n"), output
    lines = [line.split()[2:] for line in re.findall(r"^\d: TAKEN .*$", output, re.MULTILINE)]
    got = {int(index): identifiers for index, _, _, *identifiers in lines}
    assert {(count, platforms) for _, count, platforms, *_ in lines} == {(str(len(taken)), "cuda")}
    assert [got[index] for index in range(len(taken))] == [
        [f"GPU-n-0000000{number}" for number in numbers] for numbers in taken
    ]
