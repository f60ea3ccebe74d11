"""`launch/Dockerfile`: its steps are taken in a folder, since tests have no daemon."""

import re
import shutil
import subprocess
import sys

import pytest
from support import commands, dockerfile, harness, readme

# A Python that notes what it is asked; the one that it "makes" is a copy of it.
PYTHON = """#!/usr/bin/env bash
echo "$*" >>"{folder}/calls"
[[ $1 != -m || $2 != venv ]] || {{ mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; }}
"""
USERADD = '#!/usr/bin/env bash\necho "useradd $*" >>"{folder}/calls"\n'


@pytest.fixture
def programs(tmp_path):
    """A folder of programs; those that would change this machine only note what they are asked."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("bash", "cat", "mkdir", "cp", "dirname", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    for name, text in (("python3", PYTHON), ("useradd", USERADD)):
        (folder / name).write_text(text.format(folder=tmp_path))
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("device", "requirements"),
    [
        ("cpu", "requirements.txt"),
        ("tpu", "requirements-tpu.txt"),
        ("cuda", "requirements-cuda.txt"),
    ],
)
def test_each_device_has_its_pinned_packages(device, requirements, programs, tmp_path):
    image = dockerfile.build(tmp_path / "root", commands.TOP, str(programs), DEVICE=device)
    calls = (tmp_path / "calls").read_text().splitlines()
    prefix, source = tmp_path / "root/opt/nest_dist", tmp_path / "root/nest_dist"
    install = "-m pip --disable-pip-version-check --no-cache-dir install --quiet"
    assert calls[:3] == [
        f"-m venv {prefix}",
        f"{install} --require-hashes --requirement {source}/launch/{requirements}",
        f"{install} --no-deps --no-build-isolation {source}",
    ]
    assert image.variables["PATH"].startswith("/opt/nest_dist/bin:")
    assert image.entrypoint == ["nest-dist"]


def test_an_unknown_device_is_refused_in_one_line():
    done = harness.run(["bash", "launch/image.sh", "packages", "rocm"])
    assert done.returncode == 2
    assert done.stderr == "image: DEVICE is 'rocm', which is unknown; known are cpu, tpu, cuda.\n"
    done = harness.run(["bash", "launch/image.sh"])
    assert done.stderr == "image: the step is '', which is unknown; known are packages, program.\n"


def test_the_image_runs_as_a_user_who_owns_nothing(programs, tmp_path):
    image = dockerfile.build(tmp_path / "root", commands.TOP, str(programs))
    (created,) = re.findall(r"useradd --uid (\d+)", (tmp_path / "calls").read_text())
    # A number, or Kubernetes cannot tell that it is not root.
    assert image.user == created != "0"


def test_no_secret_and_no_data_gets_in():
    assert dockerfile.copied() == {
        *("launch", "pyproject.toml", "README.md", "LICENSE", "gin", "nest_dist")
    }
    text = dockerfile.PATH.read_text()
    arguments = [rest for word, rest in dockerfile.steps() if word in ("ARG", "ENV")]
    assert [each.partition("=")[0] for each in arguments] == ["DEVICE", "PATH"]
    assert not re.search(r"^ADD|--mount|https?://|token|password", text, re.MULTILINE)


def test_all_that_is_copied_is_in_the_repository(tmp_path):
    copy = readme.fresh_copy(tmp_path)
    assert all((copy / name).exists() for name in dockerfile.copied())


@pytest.mark.slow
def test_the_image_for_cpus_trains(tmp_path):
    """With pip and the network: what a daemon would do, in a folder."""
    context = readme.fresh_copy(tmp_path / "context")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python3").symlink_to(sys.executable)
    (programs / "useradd").write_text("#!/bin/sh\n")
    (programs / "useradd").chmod(0o755)
    image = dockerfile.build(tmp_path / "root", context, f"{programs}:/usr/bin:/bin")
    prefix = image.root / "opt/nest_dist/bin"
    workdir = tmp_path / "workdir"
    done = subprocess.run(
        [
            prefix / image.entrypoint[0],
            *("train", *commands.tiny_flags(workdir, *commands.ONE_LEVEL, "Run.num_epochs = 0.2")),
        ],
        cwd=tmp_path,
        env={"PATH": f"{prefix}:/usr/bin:/bin", "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "done: " in done.stdout
    assert any((workdir / "checkpoints").iterdir())
