"""The commands of README, and a copy of the repository to try them in."""

import os
import re
import shutil
import subprocess

from support import commands

QUICK_START = "bash launch/local.sh"
BINDINGS = (
    "bash launch/local.sh --processes=2 --devices=2 -- --gin_file=runs/quickstart.gin "
    '--workdir=workdirs/other --gin_bindings="AdamW.peak_learning_rate = 4e-3" '
    '--gin_bindings="Run.num_epochs = 3"'
)
CHAOS = ".venv/bin/python tests/faults/chaos.py --rounds=50 --seed=0"
# From the archives of ImageNet to a run.
PREPARE_VALIDATION = (
    ".venv/bin/nest-dist prepare ILSVRC2012_img_val.tar --output=data/imagenet --split=validation "
    "--labels=LOC_val_solution.csv"
)
IMAGENET = (
    ".venv/bin/nest-dist prepare ILSVRC2012_img_train.tar --output=data/imagenet --split=train",
    PREPARE_VALIDATION,
    ".venv/bin/nest-dist prepare --verify --output=data/imagenet --split=train",
    ".venv/bin/nest-dist train --gin_file=runs/nest_tiny_imagenet.gin --workdir=workdirs/nest_tiny",
)


def blocks(language):
    """The code blocks of README in a language."""
    text = (commands.TOP / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shell_commands():
    """Every line of every bash block."""
    return [line for block in blocks("bash") for line in block.splitlines() if line]


def fresh_copy(folder):
    """The files that git knows or would add, as they are now, in an empty folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=commands.TOP,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = commands.TOP / name
        if name and source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    return folder


def shell(command, folder, timeout=900, **environment):
    """Runs a line of README as a user's shell would, without what the tests' own shell has set."""
    ours = ("JAX_", "VIRTUAL_ENV", "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**inherited, **environment},
        check=False,
    )
