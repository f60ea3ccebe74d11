"""The NVIDIA GPUs of this host: which of them this process has, and why JAX cannot use them."""

import ctypes
import dataclasses
import importlib.util
import os
import re
import socket
import subprocess
import typing
from collections.abc import Callable, Sequence

import jax

from nest_dist.base import failures

# Oldest driver by the CUDA of JAX's plugin. Source: docs.nvidia.com/deploy/cuda-compatibility,
# "minor version compatibility".
OLDEST_DRIVER = {12: 525, 13: 580}
PLATFORMS = {"cuda", "gpu"}
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,driver_version", "--format=csv,noheader")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU of this host; the index is that of nvidia-smi."""

    index: int
    uuid: str
    name: str
    driver: str


def require() -> list[str] | None:
    """Checks that JAX can start the GPUs of this process, before it tries.

    Returns:
        Identifiers of the GPUs that CUDA shows to this process, in CUDA's order, [] if nobody can
        tell; None if JAX is to use no GPU.
    Raises:
        BadInput: if a driver, a plugin or a GPU is missing, or the driver is too old.
    """
    requested = os.environ.get("JAX_PLATFORMS", "")
    platforms = set(filter(None, (jax.config.jax_platforms or "").split(",")))
    cuda = _plugin()
    named = not platforms.isdisjoint(PLATFORMS)
    if platforms and not named:
        return None
    if cuda is None:
        if "cuda" in platforms:
            raise failures.BadInput(
                f"JAX_PLATFORMS is {requested!r}, and JAX cannot start it (its plugin for CUDA is "
                "not installed); pip install 'nest_dist[cuda]', or choose another."
            )
        return None
    otherwise = "set JAX_PLATFORMS=cpu to do without"
    try:
        gpus = installed()
    except OSError as error:
        if not named and importlib.util.find_spec("nvidia.nccl") is None:
            return None  # there is only what `rehearse` needs
        if _driver_library():
            return []  # as in a container without NVIDIA's tools
        raise failures.BadInput(
            f"this host has no NVIDIA driver that works ({failures.first_line(error)}); install "
            f"one, give the container its GPUs (docker run --gpus all), or {otherwise}."
        ) from None
    if not gpus:
        raise failures.BadInput(f"nvidia-smi finds no GPU on this host; {otherwise}.")
    if (major := int(gpus[0].driver.split(".")[0])) < OLDEST_DRIVER[cuda]:
        raise failures.BadInput(
            f"the NVIDIA driver is {gpus[0].driver}, and JAX's plugin for CUDA {cuda} needs "
            f"{OLDEST_DRIVER[cuda]} or newer (this is {major}); update it, or {otherwise}."
        )
    seen = visible(gpus)
    if not seen:
        raise failures.BadInput(
            f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}, which shows none of "
            f"the {len(gpus)} GPUs of this host; name some of 0 to {len(gpus) - 1}, or {otherwise}."
        )
    return seen


def require_started() -> None:
    """Refuses to go on with the CPU where `require` found GPUs and JAX did not start them."""
    if jax.default_backend() == "cpu":
        raise failures.BadInput(
            "JAX has started the CPU and not this host's GPUs; `python -c 'import jax; "
            'jax.devices("cuda")\'` says why. Mend that, or set JAX_PLATFORMS=cpu to do without.'
        )


def installed() -> list[Gpu]:
    """All GPUs that nvidia-smi lists.

    Raises:
        OSError: if there is no nvidia-smi, or no driver that answers it.
    """
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise OSError("there is no nvidia-smi") from None
    except subprocess.TimeoutExpired:
        raise OSError("nvidia-smi does not answer") from None
    text = (done.stdout + done.stderr).strip()
    if "No devices were found" in text:
        return []
    if done.returncode:
        raise OSError(text or f"nvidia-smi ended with {done.returncode}")
    rows = [line.split(", ") for line in done.stdout.splitlines() if line]
    return [Gpu(int(index), uuid, name, driver) for index, uuid, name, driver in rows]


def visible(gpus: Sequence[Gpu]) -> list[str]:
    """The identifiers of the GPUs that CUDA_VISIBLE_DEVICES names, all without it.

    As CUDA reads it: numbers, beginnings of identifiers, or parts of a GPU (MIG); the first that is
    wrong ends the list.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return [gpu.uuid for gpu in gpus]
    names = []
    for word in map(str.strip, text.split(",")):
        if word.startswith("MIG-"):
            names.append(word)
            continue
        if re.fullmatch(r"\d+", word):
            matches = [gpu.uuid for gpu in gpus if gpu.index == int(word)]
        else:
            matches = [gpu.uuid for gpu in gpus if word and gpu.uuid.startswith(word)]
        if len(matches) != 1:
            break
        names += matches
    return names


def of_slurm_task(detected: Sequence[int] | None) -> list[int] | None:
    """The devices of this task of a Slurm step, among those that it sees; None for all.

    Slurm shows each task its own GPUs (`--gpus-per-task`), or all tasks of a node the same. JAX
    always takes the n-th for the n-th task, of which there may be none, or more than that.

    Args:
        detected: what JAX takes.
    Raises:
        BadInput: if the tasks of this node cannot share its GPUs evenly.
    """
    tasks = _tasks_of_node()
    if tasks == 1:
        return None
    try:
        seen = len(visible(installed()))
    except OSError:
        seen = 0
    if seen == 0 or tasks is None:
        return None if detected is None else list(detected)
    if seen == 1 or seen < int(os.environ.get("SLURM_GPUS_ON_NODE", seen)):
        return None
    if seen % tasks:
        raise failures.BadInput(
            f"{tasks} tasks of node {socket.gethostname()} see the same {seen} GPUs; give a number "
            "of tasks that divides them (--ntasks-per-node), or each its own (--gpus-per-task)."
        )
    share = seen // tasks
    first = int(os.environ["SLURM_LOCALID"]) * share
    return list(range(first, first + share))


def require_own(
    seen: Sequence[str], local: Sequence[int] | None, decide: Callable[..., typing.Any]
) -> None:
    """Refuses a GPU that two processes of the run would use. Needs no device.

    Args:
        local: positions in `seen` that belong to this process; None for all.
    Raises:
        BadInput: on all processes alike; it names both.
    """
    mine = [seen[at] for at in local or range(len(seen)) if at < len(seen)]
    if verdict := decide("gpus", (socket.gethostname(), mine), _shared_gpu):
        raise failures.BadInput(verdict)


def _shared_gpu(by_process: Sequence[tuple[str, Sequence[str]]]) -> str:
    owner: dict[str, int] = {}
    for index, (host, names) in enumerate(by_process):
        for name in names:
            if owner.setdefault(name, index) != index:
                return (
                    f"processes {owner[name]} and {index} would both use {name} of {host}; give "
                    "each process GPUs of its own: `launch/local.sh --gpus`, Slurm's "
                    "--gpus-per-task, or CUDA_VISIBLE_DEVICES."
                )
    return ""


def _plugin() -> int | None:
    """The CUDA of JAX's plugin; None without one."""
    for cuda in sorted(OLDEST_DRIVER, reverse=True):  # as JAX chooses
        if importlib.util.find_spec(f"jax_cuda{cuda}_plugin") is not None:
            return cuda
    return None


def _driver_library() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _tasks_of_node() -> int | None:
    """Of this step, from a list such as "8(x3),4"; None outside Slurm."""
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts: list[int] = []
    for tasks, _, nodes in re.findall(r"(\d+)(\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(nodes or 1)
    if len(set(counts)) == 1:
        return counts[0]
    node = int(os.environ.get("SLURM_NODEID", len(counts)))
    return counts[node] if node < len(counts) else None
