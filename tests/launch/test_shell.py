"""Every shell script of the project passes shellcheck."""

import pathlib
import shutil
import subprocess
import sys

from support import commands

SHELLCHECK = shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent))


def scripts():
    folders = (commands.TOP / "launch", commands.TOP / "tests", commands.TOP / ".ci")
    return sorted(
        path
        for folder in folders
        for path in folder.iterdir()
        if path.suffix in (".sh", ".sbatch") or path.name == "run"
    )


def test_shellcheck_finds_nothing():
    names = {path.name for path in scripts()}
    assert {"local.sh", "tpu_pod.sh", "worker.sh", "slurm.sbatch", "run"} <= names
    done = subprocess.run(
        [SHELLCHECK, "--external-sources", *scripts()],
        cwd=commands.TOP,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path):
    (tmp_path / "bad.sh").write_text("#!/bin/bash\ncat $1\n")
    assert subprocess.run([SHELLCHECK, tmp_path / "bad.sh"], capture_output=True).returncode == 1
