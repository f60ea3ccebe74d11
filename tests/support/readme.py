"""The commands of README and its pages, and a copy of the repository to try them in."""

import os
import re
import shutil
import subprocess

from support import harness

QUICK_START = "bash launch/local.sh"
BINDINGS = (
    "bash launch/local.sh --processes=2 --devices=2 -- --gin_file=runs/quickstart.gin "
    '--workdir=workdirs/other --gin_bindings="AdamW.peak_learning_rate = 4e-3" '
    '--gin_bindings="Run.num_epochs = 3"'
)
# On GPUs; tried in launch/test_local_gpus.py, launch/test_slurm.py and launch/test_gke_jobset.py.
GPUS = (
    "bash launch/local.sh --gpus=all -- --gin_file=runs/quickstart.gin --workdir=workdirs/gpus",
    (
        "sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sbatch "
        "--gin_file=runs/quickstart.gin --workdir=workdirs/slurm"
    ),
    "kubectl apply -f launch/gke_gpu_jobset.yaml",
)
# From a folder of pictures to an exported model; tried in commands/test_own_pictures.py.
PICTURES = (
    ".venv/bin/nest-dist prepare pictures --output=data/pictures --split=train",
    ".venv/bin/nest-dist prepare pictures --output=data/pictures --split=validation",
    ".venv/bin/nest-dist inspect-data --gin_file=runs/photographs.gin --output=sheets",
    ".venv/bin/nest-dist train --gin_file=runs/photographs.gin --workdir=workdirs/pictures",
    ".venv/bin/nest-dist evaluate --workdir=workdirs/pictures",
    (
        ".venv/bin/nest-dist predict pictures/validation --checkpoint=workdirs/pictures "
        "--output=sheets"
    ),
    ".venv/bin/nest-dist export pictures.stablehlo --checkpoint=workdirs/pictures",
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


def blocks(language, page="README.md"):
    """The code blocks of a page in a language."""
    text = (harness.TOP / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shell_commands(page="README.md"):
    """Every line of every bash block of a page."""
    return [line for block in blocks("bash", page) for line in block.splitlines() if line]


def fresh_copy(folder):
    """The files that git knows or would add, as they are now, in an empty folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=harness.TOP,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = harness.TOP / name
        if name and source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    return folder


def shell(command, folder, succeeds=False, **variables):
    """Runs a line of README as a user's shell would, without what the tests' own shell has set."""
    ours = ("JAX_", "VIRTUAL_ENV", "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment = {**inherited, **variables}
    return harness.run(command, folder=folder, environment=environment, succeeds=succeeds)
