"""What a run would take of NVIDIA GPUs that are not here, compiled for them on this machine."""

import importlib.util
import json
import re

import pytest
from support import commands, rehearsals

from nest_dist.base import chips
from nest_dist.model import on_gpu

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="pip install 'nest_dist[rehearse-cuda]'",
)


def rehearse(output, *flags):
    done = commands.nest_dist(
        "rehearse", *flags, f"--output={output}", "--examples=1281167", succeeds=True
    )
    return done.stdout, json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The screen and the report of a small model on two hosts of two GPUs."""
    return rehearse(
        tmp_path_factory.mktemp("rehearsal"),
        *(f"--gin_file={name}" for name in rehearsals.FILES),
        *(f"--gin_bindings={binding}" for binding in rehearsals.SMALL),
        "--topology=h100:2x2",
    )


def test_memory_is_told_against_what_jax_takes_of_a_gpu(rehearsed):
    screen, report = rehearsed
    assert "4 NVIDIA H100 80GB HBM3 devices, mesh data=1 x fsdp=4 x rows=1 x tensor=1" in screen
    memory = report["memory"]
    assert sum(memory["parts"].values()) == memory["total"]
    assert min(memory["parts"].values()) >= 0
    assert memory["limit"] == 0.75 * chips.CHIPS["NVIDIA H100 80GB HBM3"].memory_bytes
    assert memory["fits"] is True


def test_library_calls_are_counted_and_the_floor_is_called_one(rehearsed):
    screen, report = rehearsed
    calls = report["gpu"]["library_calls"]
    assert calls["__cublas$lt$matmul"] > 10
    assert {name for name in calls if "conv" in name}
    assert report["gpu"]["attention"] == "plain"
    assert "attention: plain; library calls: " in screen
    floor = report["gpu"]["floor"]
    assert 0 < floor["step_seconds"] < 1e-3
    assert re.search(r"a step takes no less than [\d.]+ ms, a floor by roofline", screen)
    assert "images/s a GPU; nothing ran on one" in screen
    assert "not counted: the network between 2 hosts" in screen
    assert report["gpu"]["difference"] in screen
    assert "cycles" not in report


def test_cudnn_attends_in_bfloat16(tmp_path):
    screen, report = rehearse(
        tmp_path,
        *(f"--gin_file={name}" for name in rehearsals.FILES),
        *(f"--gin_bindings={binding}" for binding in rehearsals.SMALL),
        "--gin_bindings=NesT.dim = 16",  # cuDNN's heads have a multiple of 8 channels
        "--topology=a100-40gb:2",
    )
    assert "kernels: cudnn, since devices, mesh and model allow it" in screen
    assert report["gpu"]["attention"] == "cuDNN"
    calls = report["gpu"]["library_calls"]
    assert calls["__cudnn$fmhaSoftmax"] == calls["__cudnn$fmhaSoftmaxBackward"] > 0


def test_what_gpus_exchange_is_told_by_kind_and_axis(rehearsed):
    _, report = rehearsed
    found = {(each["kind"], *each["axes"]): each for each in report["collectives"]}
    assert {kind for kind, _ in found} >= {"all-gather", "all-reduce"}
    assert {axes for _, axes in found} == {"fsdp"}


def test_a_step_for_absent_gpus_is_not_kept(tmp_path):
    done = commands.nest_dist(
        *("rehearse", "--gin_file=runs/quickstart.gin", "--topology=h200:1", "--keep"),
        f"--output={tmp_path}",
    )
    assert done.returncode == 2
    assert "--keep is given for GPUs that are not here" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_published_models_fit_a_gpu(size, tmp_path):
    screen, report = rehearse(
        tmp_path,
        f"--gin_file=runs/nest_{size}_imagenet.gin",
        "--topology=h200:8",
        "--gin_bindings=Run.global_batch = 512",
        "--gin_bindings=NesT.compute_dtype = 'bfloat16'",
    )
    assert report["images_a_device"] == 64
    layers = {"tiny": 12, "small": 24, "base": 24}[size]
    assert report["gpu"]["library_calls"]["__cudnn$fmhaSoftmax"] == layers
    assert report["gpu"]["library_calls"]["__cudnn$fmhaSoftmaxBackward"] == layers
    assert report["memory"]["fits"] is True
    # A GPU cannot be faster than the products of the model at its peak.
    peak = chips.CHIPS["NVIDIA H200"].bfloat16_flops
    fastest = peak / report["flops_an_image"]["model"]
    assert 0.02 * fastest < report["gpu"]["floor"]["images_per_second_a_gpu"] < fastest
    (total,) = (each for each in report["collectives"] if each["kind"] == "all-reduce")
    assert total["axes"] == ["data"]
    # Gradients are exchanged in bfloat16, in which the layers compute them.
    assert 2 * report["parameters"] < total["bytes"] < 4 * report["parameters"]
    assert on_gpu.COMPILER_OPTIONS["xla_gpu_deterministic_ops"]
    assert "a floor by roofline" in screen
