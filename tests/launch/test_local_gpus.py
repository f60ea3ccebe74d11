"""`launch/local.sh --gpus` on a machine whose GPUs are numbers."""

import shlex
import sys

import pytest
from support import commands, fake_nvidia, harness, readme

# In place of nest-dist: which GPUs it would see, and its flags.
STUB = """#!/usr/bin/env bash
[[ $1 != -c ]] || exec {python} "$@"
echo "sees $CUDA_VISIBLE_DEVICES on $JAX_PLATFORMS: ${{*:3}}"
"""


def local(tmp_path, *flags, gpus=8, python=None, **variables):
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    environment = {
        **harness.environment(),
        "PATH": fake_nvidia.path(fake_nvidia.install(tmp_path / "host", count=gpus)),
        "NEST_DIST_PYTHON": str(python or stub),
        **variables,
    }
    line = ["bash", "launch/local.sh", "--port=20000", *flags]
    return harness.run(line, folder=commands.TOP, environment=environment)


def seen(done):
    """What each process saw, by its number."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if " sees " in line]
    return [line.split(" sees ")[1].split(":")[0] for line in sorted(lines)]


def test_each_process_has_a_gpu(tmp_path):
    done = local(tmp_path, "--gpus=2", "--", "--gin_file=a b")
    assert seen(done) == ["0 on cuda", "1 on cuda"]
    flags = "--gin_file=a b --coordinator=127.0.0.1:20000 --num_processes=2 --process_id="
    for number in range(2):
        assert f"[{number}] sees {number} on cuda: train {flags}{number}\n" in done.stdout


def test_all_gpus_of_the_machine_or_those_that_are_named(tmp_path):
    assert len(seen(local(tmp_path, "--gpus=all", "--", "--workdir=w", gpus=3))) == 3
    chosen = {"CUDA_VISIBLE_DEVICES": "5,3"}
    done = local(tmp_path, "--gpus=all", "--", "--workdir=w", **chosen)
    assert seen(done) == ["5 on cuda", "3 on cuda"]
    named = {"CUDA_VISIBLE_DEVICES": "GPU-host-00000006"}
    assert seen(local(tmp_path, "--gpus=1", "--", "-h", **named)) == ["GPU-host-00000006 on cuda"]


def test_the_command_of_readme_takes_all_gpus(tmp_path):
    _, script, *flags = shlex.split(readme.GPUS[0])
    assert script == "launch/local.sh"
    done = local(tmp_path, *flags, gpus=2)
    assert seen(done) == ["0 on cuda", "1 on cuda"]
    assert ": train --gin_file=runs/quickstart.gin --workdir=workdirs/gpus " in done.stdout


def test_one_process_may_have_several(tmp_path):
    done = local(tmp_path, "--gpus=4", "--processes=2", "--", "--workdir=w")
    assert seen(done) == ["0,1 on cuda", "2,3 on cuda"]
    done = local(tmp_path, "--gpus=all", "--processes=1", "--", "--workdir=w")
    assert seen(done) == ["0,1,2,3,4,5,6,7 on cuda"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--gpus=9"], "--gpus is '9', but this machine shows 8; give less."),
        (["--gpus=0"], "--gpus is '0'; give a whole number from 1 to 64."),
        (["--gpus=many"], "--gpus is 'many'; give a whole number from 1 to 64."),
        (
            ["--gpus=4", "--processes=3"],
            "--processes is '3', which does not share 4 GPUs evenly; choose another.",
        ),
    ],
)
def test_bad_flags_are_refused_in_one_line(tmp_path, flags, text):
    done = local(tmp_path, *flags, "--", "--workdir=w")
    assert (done.returncode, done.stderr) == (2, f"local.sh: {text}\n")


def test_a_machine_without_a_driver_is_told_so_before_anything_is_installed(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "grep", "tr"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    done = local(tmp_path, "--gpus=all", "--", "--workdir=w", PATH=str(folder))
    assert (done.returncode, done.stderr) == (
        2,
        "local.sh: --gpus is 'all', but this machine has no nvidia-smi; install NVIDIA's driver.\n",
    )
    broken = fake_nvidia.install(tmp_path / "broken", trouble=fake_nvidia.NO_DRIVER)
    done = local(tmp_path, "--gpus=all", "--", "--workdir=w", PATH=fake_nvidia.path(broken))
    assert done.returncode == 2
    assert done.stderr.endswith(
        "local.sh: --gpus is 'all', but nvidia-smi finds none; look above.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("470.161.03", "the NVIDIA driver is 470.161.03, and JAX's plugin for CUDA 12 needs 525"),
        pytest.param(
            "570.86.10",
            "JAX_PLATFORMS is 'cuda', and JAX cannot start it (",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_process_says_in_one_line_what_is_wrong(tmp_path, driver, text):
    """The real program, with the names of JAX's plugin and nothing behind them."""
    fake_nvidia.install(tmp_path / "old", count=2, driver=driver)
    done = local(
        tmp_path,
        *("--gpus=2", "--", *commands.tiny_flags(tmp_path / "workdir")),
        python=sys.executable,
        PATH=fake_nvidia.path(tmp_path / "old"),
        PYTHONPATH=harness.module_path(fake_nvidia.plugin(tmp_path / "plugin")),
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    assert text in done.stdout, done.stdout
    assert "compiling" not in done.stdout
