"""`launch/environment.sh` on machines with an old Python, or with one that has all it needs."""

import os
import shutil
import subprocess
import sys

import pytest
from support import commands

# A Python, or what it is asked to make, that notes what it is asked; an old one refuses `-c`.
PYTHON = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"{folder}/calls"
case "$*" in
  "-m uv python find 3.12") echo "{folder}/python3.12" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  -c*) [[ $0 != */python3 ]] ;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A checkout, and a `python3` that is too old."""
    top = tmp_path / "top"
    shutil.copytree(commands.TOP / "launch", top / "launch")
    shutil.copy(commands.TOP / "pyproject.toml", top)
    for name in ("python3", "python3.12"):
        (tmp_path / name).write_text(PYTHON.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    # Only the oldest of names is found.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(tmp_path / "python3")
    for name in ("bash", "cat", "cut", "mkdir", "cp", "rm", "touch", "sha256sum", "dirname"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    (tmp_path / "bin" / "basename").symlink_to(shutil.which("basename"))
    return tmp_path


def make(machine, **variables):
    return subprocess.run(
        ["bash", "top/launch/environment.sh", "requirements-tpu.txt"],
        cwd=machine,
        env={"PATH": str(machine / "bin"), **variables},
        capture_output=True,
        text=True,
    )


def calls(machine):
    path = machine / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_an_old_python_is_refused_in_one_line(machine):
    done = make(machine)
    assert done.returncode == 2
    assert "environment: no Python 3.11 or newer among python3 " in done.stderr
    assert "install one, or set PYTHON to its path" in done.stderr


def test_a_python_is_fetched_where_that_was_asked_for(machine):
    done = make(machine, FETCH_PYTHON="3.12")
    assert done.returncode == 0, done.stderr
    venv = machine / "top" / ".venv"
    assert done.stdout == f"{venv}/bin/python\n"
    asked = calls(machine)
    assert any("install --quiet --user uv==" in call for call in asked)
    assert "python3 -m uv python install 3.12" in asked
    assert f"python3.12 -m venv {venv}" in asked
    requirements = machine / "top" / "launch" / "requirements-tpu.txt"
    assert any(call.endswith(f"--require-hashes --requirement {requirements}") for call in asked)
    # Once is enough.
    (machine / "calls").unlink()
    assert make(machine, FETCH_PYTHON="3.12").returncode == 0
    assert [call for call in calls(machine) if " -c " not in call] == []


def test_a_python_that_cannot_be_fetched_is_said_to_be_missing(machine):
    script = machine / "python3"
    script.write_text(script.read_text().replace("case", '[[ "$*" != *install* ]] || exit 1\ncase'))
    done = make(machine, FETCH_PYTHON="3.12")
    assert done.returncode == 2
    assert "environment: Python 3.12 could not be fetched; look above" in done.stderr


def test_a_python_that_has_everything_is_taken_as_it_is(machine):
    done = make(machine, NEST_DIST_PYTHON=sys.executable)
    assert (done.returncode, done.stdout) == (0, f"{sys.executable}\n")
    assert not (machine / "top" / ".venv").exists()
    done = make(machine, NEST_DIST_PYTHON=os.devnull)
    assert done.returncode == 2
    assert "NEST_DIST_PYTHON is '/dev/null', which is no Python 3.11 or newer" in done.stderr
