import importlib.metadata
import importlib.util

import pytest
from support.refusals import refusal

from nest_dist.base import chips, failures
from nest_dist.rehearsal import estimates, gpus, topology

# A program as XLA writes it for GPUs: products and convolutions are calls of libraries, which also
# return the memory that they work in.
PROGRAM = """
%sliced (param_0: bf16[64,256], param_1: s32[]) -> bf16[1,256] {
  %param_0 = bf16[64,256]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  ROOT %slice = bf16[1,256]{1,0} dynamic-slice(%param_0, %param_1, %param_1)
}

%updated (param_2: f32[64,256], param_3: f32[1,256], param_4: s32[]) -> f32[64,256] {
  %param_2 = f32[64,256]{1,0} parameter(0)
  %param_3 = f32[1,256]{1,0} parameter(1)
  %param_4 = s32[] parameter(2)
  ROOT %update = f32[64,256]{1,0} dynamic-update-slice(%param_2, %param_3, %param_4, %param_4)
}

ENTRY %main (a: bf16[64,256]) -> f32[] {
  %a = bf16[64,256]{1,0} parameter(0)
  %b = bf16[256,32]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %q = bf16[8,196,3,32]{3,2,1,0} parameter(3)
  %image = bf16[2,8,8,16]{3,2,1,0} parameter(4)
  %kernel = bf16[4,3,3,16]{3,2,1,0} parameter(5)
  %big = f32[64,256]{1,0} parameter(6)
  %row = f32[1,256]{1,0} parameter(7)
  %product = (bf16[64,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %fusion.1 = bf16[1,256]{1,0} fusion(%a, %i), kind=kLoop, calls=%sliced
  %fusion.2 = f32[64,256]{1,0} fusion(%big, %row, %i), kind=kLoop, calls=%updated
  %conv = (bf16[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %attended = (bf16[8,196,3,32]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %all-reduce = f32[]{} all-reduce(%row), to_apply=%sum
}
""".replace("\\\n", "")
WITHOUT_COMPILER = importlib.util.find_spec("jax_cuda12_plugin") is None


@pytest.fixture(scope="module")
def program():
    return estimates.read(PROGRAM)


def instruction(program, name):
    inside = program.computations["main"]
    types = {each.name: gpus._type(each) for each in inside}
    return next(each for each in inside if each.name == name), types


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("product", 2 * 64 * 256 * 32),
        ("conv", 2 * (2 * 8 * 8) * 4 * (3 * 3 * 16)),
        ("attended", 4 * 8 * 3 * 196**2 * 32),
        ("fusion.1", 0),
    ],
)
def test_the_operations_of_a_call_follow_from_its_shapes(program, name, expected):
    assert gpus.flops(*instruction(program, name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Operands and result, without the memory that the library works in.
        ("product", 2 * (64 * 256 + 256 * 32 + 64 * 32)),
        # One row is read and written, of whatever is sliced or changed in place.
        ("fusion.1", 2 * 256 + 2 * 256 + 4),
        ("fusion.2", 4 * 256 + 4 * 256 + 4),
    ],
)
def test_bytes_are_those_that_an_operation_must_move(program, name, expected):
    assert gpus.moved_bytes(*instruction(program, name), program) == expected


def test_the_floor_takes_each_operation_at_its_bound(program):
    chip = chips.CHIPS["NVIDIA H200"]
    report = gpus.of_step(program, chip, [], images=8, hosts=2)
    assert report["library_calls"] == {
        "__cublas$lt$matmul": 1,
        "__cudnn$convForward": 1,
        "__cudnn$fmhaSoftmax": 1,
    }
    assert report["attention"] == "cuDNN"
    floor = report["floor"]
    assert floor["step_seconds"] == pytest.approx(
        sum(floor["seconds_bound_by"][by] for by in ("peak", "bandwidth"))
    )
    assert floor["images_per_second_a_gpu"] == 8 / floor["step_seconds"]
    lines = "\n".join(gpus.screen({**report, "difference": gpus.DIFFERENCE}))
    assert "a floor by roofline" in lines
    assert "not counted: the network between 2 hosts" in lines
    assert "xla_gpu_enable_triton_gemm" in lines


def test_a_step_takes_at_least_the_time_of_its_links(program):
    chip = chips.CHIPS["NVIDIA L4"]
    total = {"wire_bytes": 32e9}
    report = gpus.of_step(program, chip, [total], images=8, hosts=1)
    assert report["floor"]["step_seconds"] == 1.0


@pytest.mark.parametrize("generation", gpus.ARCHITECTURES)
def test_every_gpu_that_can_be_compiled_for_is_in_the_table_of_chips(generation):
    kind, chip = gpus._chip(generation)
    assert f"device_memory_size: {chip.memory_bytes:.0f}" in gpus.target(kind, chip)
    assert f'device_description_str: "{kind}"' in gpus.target(kind, chip)
    assert gpus.knows(f"{generation}:8")


@pytest.mark.parametrize("name", ["h200", "h200:", "h200:0", "h100:2x", "h100:x8", "h100:2x2x8"])
def test_a_topology_of_another_form_is_refused(name):
    generation = name.partition(":")[0]
    text = f"--topology is '{name}'; give {generation}:GPUS or {generation}:HOSTSxGPUS, such as"
    with refusal(text):
        topology.devices(name)


def test_slices_are_hosts():
    with pytest.raises(failures.BadInput, match=r"--slices is 2, but h200:8 has hosts .* h200:2x8"):
        topology.devices("h200:8", slices=2)


def test_without_the_compiler_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    text = r"compiler for NVIDIA GPUs is not installed; pip install 'nest_dist\[rehearse-cuda\]'"
    with pytest.raises(failures.BadInput, match=text):
        topology.devices("h200:8")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.1")
    with pytest.raises(
        failures.BadInput, match=r"jax-cuda12-plugin is 0.1, and jax .*; pip install"
    ):
        topology.devices("h200:8")


def test_jax_takes_three_quarters_of_a_gpu_unless_it_is_told_otherwise(monkeypatch):
    chip = chips.CHIPS["NVIDIA A100-SXM4-40GB"]
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert chip.usable_bytes == 0.75 * chip.memory_bytes
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert chip.usable_bytes == 0.9 * chip.memory_bytes
    assert chips.CHIPS["TPU v4"].usable_bytes == chips.CHIPS["TPU v4"].memory_bytes


@pytest.mark.skipif(WITHOUT_COMPILER, reason="pip install 'nest_dist[rehearse-cuda]'")
def test_hosts_are_processes():
    devices = topology.devices("h100:2x8")
    assert [device.process_index for device in devices] == [0] * 8 + [1] * 8
    assert {device.device_kind for device in devices} == {"NVIDIA H100 80GB HBM3"}


def test_a_run_on_gpus_has_the_same_bits_each_time():
    """By the flag that is promised; whether XLA keeps to it needs a GPU."""
    from nest_dist.model import on_gpu

    assert on_gpu.COMPILER_OPTIONS == {"xla_gpu_deterministic_ops": True}
