import importlib.util
import json

import jax
import pytest
from support import fake_nvidia
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.cluster import gpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process believe in GPUs; gives what installs an `nvidia-smi`."""
    before = jax.config.jax_platforms
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    jax.config.update("jax_platforms", "cuda")
    monkeypatch.syspath_prepend(fake_nvidia.plugin(tmp_path / "plugin"))
    importlib.invalidate_caches()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "_driver_library", lambda: False)

    def install(**given):
        monkeypatch.setenv("PATH", fake_nvidia.path(fake_nvidia.install(tmp_path / "a", **given)))

    yield install
    jax.config.update("jax_platforms", before)


def identifiers(*numbers):
    return [f"GPU-a-0000000{number}" for number in numbers]


@pytest.mark.parametrize(
    ("variable", "numbers"),
    [
        (None, (0, 1, 2)),
        ("1", (1,)),
        ("2,0", (2, 0)),
        ("GPU-a-00000001", (1,)),
        ("0,7,1", (0,)),  # CUDA stops at the first that is wrong
    ],
)
def test_a_process_sees_what_cuda_shows_it(machine, monkeypatch, variable, numbers):
    machine(count=3)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert gpus.require() == identifiers(*numbers)


def test_a_part_of_a_gpu_counts_as_one(machine, monkeypatch):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1f3a,MIG-77b0")
    assert gpus.require() == ["MIG-1f3a", "MIG-77b0"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"trouble": fake_nvidia.NO_DRIVER}, "no NVIDIA driver that works (NVIDIA-SMI has failed"),
        ({"trouble": fake_nvidia.NO_DEVICES}, "nvidia-smi finds no GPU on this host; set JAX_PLA"),
        (
            {"driver": "470.161.03"},
            "the NVIDIA driver is 470.161.03, and JAX's plugin for CUDA 12 needs 525 or newer",
        ),
    ],
)
def test_what_is_wrong_with_a_machine_is_said(machine, given, text):
    machine(**given)
    with refusal(text):
        gpus.require()


def test_a_machine_without_nvidias_tools_has_no_driver_or_nobody_can_tell(machine, monkeypatch):
    monkeypatch.setenv("PATH", "")
    text = r"no NVIDIA driver that works \(there is no nvidia-smi\); install one, .* JAX_PLATFORMS="
    with pytest.raises(failures.BadInput, match=text):
        gpus.require()
    monkeypatch.setattr(gpus, "_driver_library", lambda: True)
    assert gpus.require() == []


@pytest.mark.parametrize("value", ["", "8", "none"])
def test_a_process_that_sees_no_gpu_is_refused(machine, monkeypatch, value):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    text = f"CUDA_VISIBLE_DEVICES is '{value}', which shows none of the 8 GPUs of this host; name"
    with pytest.raises(failures.BadInput, match=text):
        gpus.require()


def test_the_newer_cuda_needs_the_newer_driver(machine, monkeypatch, tmp_path):
    machine(driver="570.86.10")
    monkeypatch.syspath_prepend(fake_nvidia.plugin(tmp_path / "newer", cuda=13))
    with pytest.raises(failures.BadInput, match=r"is 570.86.10, .* CUDA 13 needs 580 or newer"):
        gpus.require()


def test_without_the_plugin_its_extra_is_named(machine, monkeypatch):
    machine()
    monkeypatch.setattr(gpus, "_plugin", lambda: None)
    with pytest.raises(failures.BadInput, match=r"JAX_PLATFORMS is 'cuda', .*nest_dist\[cuda\]'"):
        gpus.require()


def test_a_run_on_cpus_asks_no_gpu(machine, monkeypatch):
    machine(trouble="echo asked >&2; exit 1")
    jax.config.update("jax_platforms", "cpu")
    assert gpus.require() is None


def test_a_compiler_for_gpus_alone_does_not_ask_for_a_driver(machine, monkeypatch):
    """Of `nest_dist[rehearse-cuda]`, on a machine that trains on its CPU."""
    jax.config.update("jax_platforms", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(failures.BadInput, match="no NVIDIA driver"):
        gpus.require()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nvidia.nccl" else found(name)
    )
    assert gpus.require() is None


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        # All tasks of a node see all its GPUs, and share them.
        ({"SLURM_LOCALID": "0"}, [0]),
        ({"SLURM_LOCALID": "3"}, [3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}, [2, 3]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,4", "SLURM_NODEID": "0"}, None),
        # Slurm gave each its own.
        ({"CUDA_VISIBLE_DEVICES": "2", "SLURM_LOCALID": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_STEP_TASKS_PER_NODE": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "2", "SLURM_LOCALID": "1"}, [1]),
    ],
)
def test_the_tasks_of_a_node_share_its_gpus(machine, monkeypatch, variables, devices):
    machine(count=4)
    slurm = {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4"}
    if variables.get("SLURM_GPUS_ON_NODE") == "2":
        slurm["SLURM_STEP_TASKS_PER_NODE"] = "2(x2)"
    for name, value in {**slurm, **variables}.items():
        monkeypatch.setenv(name, value)
    assert gpus.of_slurm_task([0]) == devices


def test_tasks_that_cannot_share_the_gpus_evenly_are_refused(machine, monkeypatch):
    machine(count=4)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(failures.BadInput, match=r"3 tasks of node .* see the same 4 GPUs; give a"):
        gpus.of_slurm_task([1])


def test_outside_slurm_the_devices_are_those_that_jax_detects(machine, monkeypatch):
    machine()
    monkeypatch.delenv("SLURM_STEP_TASKS_PER_NODE", raising=False)
    assert gpus.of_slurm_task(None) is None
    assert gpus.of_slurm_task([1]) == [1]


def meet(*mine):
    """All processes say what they have; each hears the verdict of the primary one."""
    told = []

    def tell(_, value, judge):
        told.append(value)

    for each in mine:
        gpus.require_own(*each, tell)

    def hear(_, value, judge):
        return judge(json.loads(json.dumps(told)))

    for each in mine:
        gpus.require_own(*each, hear)


def test_processes_with_gpus_of_their_own_may_start():
    meet((["GPU-1"], None), (["GPU-2"], None))
    meet((["GPU-1", "GPU-2"], [0]), (["GPU-1", "GPU-2"], [1]))
    meet(([], None), ([], None))


@pytest.mark.parametrize(
    "mine",
    [
        [(["GPU-1"], None), (["GPU-2"], None), (["GPU-2"], None)],
        [(["GPU-1", "GPU-2", "GPU-3"], [0]), *[(["GPU-1", "GPU-2", "GPU-3"], [1])] * 2],
    ],
)
def test_two_processes_on_one_gpu_are_refused(mine):
    text = r"processes 1 and 2 would both use GPU-2 of .*; give each process GPUs of its own: "
    with pytest.raises(failures.BadInput, match=text):
        meet(*mine)
