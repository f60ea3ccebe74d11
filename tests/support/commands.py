"""Starting the project's commands as a user does, and reading what they leave behind."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil

from nest_dist.checkpointing import manager

TOP = pathlib.Path(__file__).parents[2]

# The quick start on a model of a few thousand parameters, which compiles in seconds.
TINY = (
    "NesT.image_size = 16",
    "NesT.dim = 8",
    "NesT.heads = 1",
    "NesT.block_repeats = (1, 1)",
    "Digits.image_side = 16",
    "PaddedCrop.side = 16",
    "Run.log_every_steps = 1",
    "AdamW.warmup_epochs = 0.1",
)
# Half of that again, where the model does not matter.
ONE_LEVEL = ("NesT.num_hierarchies = 1", "NesT.block_repeats = (1,)")


def run_flags(*bindings):
    """Flags of `nest-dist train` for a tiny run, but for its folder."""
    return [
        "--gin_file=runs/quickstart.gin",
        *(f"--gin_bindings={binding}" for binding in (*TINY, *bindings)),
    ]


def tiny_flags(workdir, *bindings):
    """Flags of `nest-dist train` for a tiny run in `workdir`."""
    return [f"--workdir={workdir}", *run_flags(*bindings)]


def nest_dist(*arguments, devices=1, timeout=120, **kwargs):
    """Runs one command in this process's environment to its end."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(
        [sys.executable, "-m", "nest_dist", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
        **kwargs,
    )


class Local:
    """`launch/local.sh` with its processes; everything it started is gone when this closes."""

    def __init__(self, processes, devices, *arguments, top=TOP):
        self._output = []
        self.popen = subprocess.Popen(
            [
                *("bash", "launch/local.sh", f"--processes={processes}", f"--devices={devices}"),
                *("--", *map(str, arguments)),
            ],
            cwd=top,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The launcher's own group, and those of the processes it started.
        family = self.processes(everything=True)
        if self.popen.poll() is None:
            self.popen.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.stdout.close()
        self.popen.wait()

    def processes(self, everything=False):
        """The processes that run nest-dist, by process number."""
        try:
            children = psutil.Process(self.popen.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        if everything:
            return children
        found = {}
        for child in children:
            try:
                words = child.cmdline()
            except psutil.Error:
                continue
            if "nest_dist" in words and words[1:2] == ["-m"]:
                numbers = [word for word in words if word.startswith("--process_id=")]
                found[int(numbers[0].split("=")[1]) if numbers else 0] = child
        return [found[number] for number in sorted(found)]

    def wait(self, timeout=240):
        """Waits for the end: exit status and everything that was shown."""
        output, _ = self.popen.communicate(timeout=timeout)
        return self.popen.returncode, output

    def send(self, number):
        """Sends a signal to the launcher."""
        os.kill(self.popen.pid, number)


def local(processes, devices, *arguments, timeout=240):
    """Runs `launch/local.sh` to its end: exit status and output."""
    with Local(processes, devices, *arguments) as launcher:
        return launcher.wait(timeout)


def metrics(workdir):
    """The JSON lines of a run."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def evaluations(workdir):
    """Those of the JSON lines that hold an evaluation."""
    return [line for line in metrics(workdir) if "eval/top_1" in line]


def wait_for_step(workdir, step, launcher, timeout=120):
    """Returns once metrics of `step` were written."""
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        if any(line["step"] >= step for line in metrics(workdir)):
            return
        assert launcher.popen.poll() is None, launcher.wait()[1]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def losses(workdir):
    """Training loss by step."""
    return {line["step"]: line["train/loss"] for line in metrics(workdir) if "train/loss" in line}


def arrays(workdir, step=None):
    """Every array of a checkpoint's state; of the newest without `step`."""
    checkpoints = manager.Manager(pathlib.Path(workdir) / "checkpoints", keep=None)
    try:
        return checkpoints.arrays(checkpoints.steps()[-1] if step is None else step)
    finally:
        checkpoints.close()


def assert_same_bits(left, right):
    """Both states hold the same names and, to the last bit, the same numbers."""
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
