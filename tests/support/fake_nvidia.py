"""A machine with GPUs that are not there: `nvidia-smi`, and JAX's plugin for CUDA by its name."""

import os
import pathlib

# It refuses what the real one does not know. What it lists does not depend on CUDA_VISIBLE_DEVICES.
SCRIPT = """#!/usr/bin/env bash
[[ $* == "--query-gpu="*" --format=csv,noheader" ]] || {{ echo "invalid argument: $*"; exit 2; }}
{trouble}
fields=${{1#--query-gpu=}}
for ((i = 0; i < {count}; i++)); do
  row=
  for field in ${{fields//,/ }}; do
    case $field in
      index) value=$i ;;
      uuid) value=GPU-{host}-0000000$i ;;
      name) value="NVIDIA H200" ;;
      driver_version) value={driver} ;;
      *) echo "Field \\"$field\\" is not a valid field to query."; exit 2 ;;
    esac
    row+=${{row:+, }}$value
  done
  echo "$row"
done
"""
# What the real one says, and its exit codes.
NO_DRIVER = (
    'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9'
)
NO_DEVICES = 'echo "No devices were found"; exit 6'


def install(
    folder: pathlib.Path, count: int = 8, driver: str = "570.86.10", trouble: str = ""
) -> pathlib.Path:
    """Writes `nvidia-smi` into a folder, which belongs into PATH; the folder's name is the host."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "nvidia-smi"
    script.write_text(SCRIPT.format(count=count, driver=driver, trouble=trouble, host=folder.name))
    script.chmod(0o755)
    return folder


def path(folder: pathlib.Path) -> str:
    """PATH with that `nvidia-smi` before all others."""
    return f"{folder}:{os.environ['PATH']}"


def plugin(folder: pathlib.Path, cuda: int = 12) -> pathlib.Path:
    """A folder for PYTHONPATH with an empty plugin of JAX, and NVIDIA's libraries by name."""
    for name in (f"jax_cuda{cuda}_plugin", "nvidia/nccl"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").touch()
    return folder
