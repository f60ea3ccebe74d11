"""Absent NVIDIA GPUs: XLA compiles for them all the same, and this tells what is in its program."""

import collections
import importlib.metadata
import importlib.util
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.experimental import topologies

from nest_dist.base import chips, failures
from nest_dist.rehearsal import collectives, estimates

# By generation: compute capability, multiprocessors, cores of each, threads of each, its shared
# memory and what one block may have of it, and the level 2 cache; bytes.
# Source: openxla/xla, xla/backends/gpu/target_config/specs; NVIDIA's Ada whitepaper.
ARCHITECTURES = {
    "a100-40gb": ((8, 0), 108, 64, 2048, 167_936, 166_912, 41_943_040),
    "a100-80gb": ((8, 0), 108, 64, 2048, 167_936, 166_912, 41_943_040),
    "h100": ((9, 0), 132, 128, 2048, 233_472, 232_448, 52_428_800),
    "h200": ((9, 0), 132, 128, 2048, 233_472, 232_448, 52_428_800),
    "b200": ((10, 0), 148, 128, 2048, 233_472, 232_448, 132_644_864),
    "l4": ((8, 9), 58, 128, 1536, 102_400, 101_376, 50_331_648),
    "rtx4090": ((8, 9), 128, 128, 1536, 102_400, 101_376, 75_497_472),
}
# XLA measures products of its own making on the device that compiles; here there is none.
COMPILER_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
DIFFERENCE = (
    "compiled with xla_gpu_enable_triton_gemm off, which needs a GPU to try out its products: on a "
    "real one some of the calls to cuBLAS may be Triton's"
)
# Opcodes that move and compute nothing by themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "async-start"),
    *("async-done", "async-update", "copy-done"),
}
SLICES = {"dynamic-slice", "slice", "gather"}
FUSED_ATTENTION = "__cudnn$fmha"

Report = dict[str, typing.Any]


def knows(name: str) -> bool:
    """Whether a topology's name is that of GPUs: GENERATION:GPUS or GENERATION:HOSTSxGPUS."""
    return name.partition(":")[0] in ARCHITECTURES


def devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
    """The devices of a topology such as "h200:8" or, with two hosts of eight GPUs, "h100:2x8".

    Raises:
        BadInput: if the compiler is not installed, or the name is of another form.
    """
    generation, _, shape = name.partition(":")
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)", shape)
    hosts, gpus = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if not 1 <= hosts * gpus <= 4096:
        raise failures.BadInput(
            f"--topology is {name!r}; give {generation}:GPUS or {generation}:HOSTSxGPUS, such as "
            f"{generation}:8 or {generation}:2x8."
        )
    if slices != 1:
        raise failures.BadInput(
            f"--slices is {slices}, but {name} has hosts and no slices; give the hosts in "
            f"--topology, as {generation}:{slices}x{gpus}."
        )
    _require_compiler(name)
    # The plugin asks for a driver unless the CPU is asked for.
    jax.config.update("jax_platforms", "cpu")
    kind, chip = _chip(generation)
    return topologies.get_topology_desc(
        "gpus",
        "cuda",
        target_config=target(kind, chip),
        topology=f"1x{hosts}x{gpus}",
    ).devices


def target(kind: str, chip: chips.Chip) -> str:
    """A GPU as XLA describes it, in the text form of its protocol buffer."""
    capability, cores, fpus, threads, shared, shared_optin, cache = ARCHITECTURES[chip.generation]
    major, minor = capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} threads_per_core_limit: {threads}
  core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {chip.memory_bytes_per_second:.0f} l2_cache_size: {cache}
  clock_rate_ghz: {chip.cycles_per_second / 1e9} device_memory_size: {chip.memory_bytes:.0f}
  shared_memory_per_block_optin: {shared_optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
runtime_version: {{ major: 12 minor: 9 patch: 0 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


def of_step(
    program: estimates.Program,
    chip: chips.Chip,
    exchanged: Sequence[collectives.Total],
    images: float,
    hosts: int,
) -> Report:
    """Library calls, the form of attention and a floor of the time of one step, as plain JSON.

    The floor takes each operation alone: its floating-point operations at the peak, or the bytes of
    its operands and results at the bandwidth of the memory, whichever takes longer, as if nothing
    stayed in a cache. Collectives count as if all else hid them.

    Args:
        program: compiled for one GPU of the mesh.
        exchanged: totals of its collectives.
        images: of a step on one GPU.
    """
    calls: collections.Counter[str] = collections.Counter()
    bound = {"peak": 0.0, "bandwidth": 0.0}
    for name, instructions in program.computations.items():
        if name in program.fused or name not in program.executions:
            continue
        times = program.executions[name]
        types = {instruction.name: _type(instruction) for instruction in instructions}
        for instruction in instructions:
            if (target := call_target(instruction)) is not None:
                calls[target] += round(times)
            if instruction.opcode in FREE or _is_collective(instruction):
                continue
            computing = flops(instruction, types) / chip.bfloat16_flops
            moving = moved_bytes(instruction, types, program) / chip.memory_bytes_per_second
            bound["peak" if computing > moving else "bandwidth"] += times * max(computing, moving)
    exchanging = sum(total["wire_bytes"] for total in exchanged) / chip.link_bytes_per_second
    seconds = max(sum(bound.values()), exchanging)
    return {
        "library_calls": dict(calls.most_common()),
        "attention": "cuDNN" if any(it.startswith(FUSED_ATTENTION) for it in calls) else "plain",
        "floor": {
            "step_seconds": seconds,
            "seconds_bound_by": {**bound, "links": exchanging},
            "images_per_second_a_gpu": images / seconds,
        },
        "hosts": hosts,
    }


def screen(report: Mapping[str, typing.Any]) -> Iterator[str]:
    """The report of `of_step` in lines."""
    calls = ", ".join(f"{number} {name}" for name, number in report["library_calls"].items())
    yield f"attention: {report['attention']}; library calls: {calls}"
    floor = report["floor"]
    bound = floor["seconds_bound_by"]
    yield (
        f"a step takes no less than {floor['step_seconds'] * 1e3:.1f} ms, a floor by roofline: "
        f"{bound['bandwidth'] * 1e3:.1f} ms bound by the memory, {bound['peak'] * 1e3:.1f} ms by "
        f"the peak; collectives take {bound['links'] * 1e3:.1f} ms of the links"
    )
    yield f"so at most {floor['images_per_second_a_gpu']:,.0f} images/s a GPU; nothing ran on one"
    if report["hosts"] > 1:
        yield f"not counted: the network between {report['hosts']} hosts"
    yield "not counted in memory: what CUDA, cuBLAS and NCCL take for themselves"
    if "difference" in report:
        yield report["difference"]


def call_target(instruction: estimates.Instruction) -> str | None:
    """The library function of a custom call, as "__cublas$lt$matmul"."""
    match = re.search(r'custom_call_target="(__[^"]+)"', instruction.text)
    return match[1] if match else None


def flops(instruction: estimates.Instruction, types: Mapping[str, str]) -> float:
    """Floating-point operations of a product, a convolution or cuDNN's attention; others: 0."""
    target = call_target(instruction) or instruction.opcode
    operands = [_shape(types.get(name, "")) for name in instruction.operands]
    result = _shape(_type(instruction))
    if "matmul" in target or "gemm" in target or target == "dot":
        listed = re.search(r'lhs_contracting_dim\w+"?[:=][\[{]([^\]}]*)[\]}]', instruction.text)
        axes = [int(axis) for axis in re.findall(r"\d+", listed[1])] if listed else []
        return 2.0 * math.prod(result) * math.prod(operands[0][axis] for axis in axes)
    if labels := re.search(r"dim_labels=\w+_(\w+)->", instruction.text):
        if "BackwardInput" in target:
            output, kernel = operands[0], operands[1]
        elif "BackwardFilter" in target:
            output, kernel = operands[1], result
        else:
            output, kernel = result, operands[1]
        return 2.0 * math.prod(output) * math.prod(kernel) / kernel[labels[1].index("o")]
    if target.startswith(FUSED_ATTENTION) and operands:
        # Two products forward, five backward, each of [N, D] and [N, D] for every head.
        blocks, tokens, heads, width = (operands[0] + [1] * 4)[:4]
        return (10.0 if "Backward" in target else 4.0) * blocks * heads * tokens**2 * width
    return 0.0


def moved_bytes(
    instruction: estimates.Instruction, types: Mapping[str, str], program: estimates.Program
) -> int:
    """Bytes of the operands and results of an instruction; of what it slices the slice alone."""
    operands = [_bytes(types.get(name, "")) for name in instruction.operands]
    result = _bytes(_type(instruction))
    if instruction.opcode in SLICES:
        return 2 * result
    if instruction.opcode != "fusion":
        return sum(operands) + result
    for computation in instruction.called("calls"):
        inner = program.computations[computation]
        inner_types = {each.name: _type(each) for each in inner}
        for parameter in (each for each in inner if each.opcode == "parameter"):
            number = int(re.findall(r" parameter\((\d+)\)", parameter.text)[0])
            users = [each for each in inner if parameter.name in each.operands]
            if not users or any(each.operands[0] != parameter.name for each in users):
                continue
            if all(each.opcode in SLICES for each in users):
                operands[number] = sum(_bytes(_type(each)) for each in users)
            elif all(each.opcode == "dynamic-update-slice" for each in users):
                # It is changed in place, where the update says.
                updates = sum(_bytes(inner_types[each.operands[1]]) for each in users)
                result -= operands[number] - updates
                operands[number] = 0
    return sum(operands) + max(result, 0)


def _require_compiler(name: str) -> None:
    version = jax.__version__
    needs = (
        f"pip install 'nest_dist[rehearse-cuda]' 'jax-cuda12-plugin=={version}' "
        f"'jax-cuda12-pjrt=={version}' (Linux)."
    )
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise failures.BadInput(
            f"--topology is {name!r}, but the compiler for NVIDIA GPUs is not installed; {needs}"
        )
    plugin = importlib.metadata.version("jax-cuda12-plugin")
    if plugin != version:
        raise failures.BadInput(f"jax-cuda12-plugin is {plugin}, and jax {version}; {needs}")


def _chip(generation: str) -> tuple[str, chips.Chip]:
    return next((kind, chip) for kind, chip in chips.CHIPS.items() if chip.generation == generation)


def _is_collective(instruction: estimates.Instruction) -> bool:
    return re.sub(r"-(start|done)$", "", instruction.opcode) in collectives.KINDS


def _type(instruction: estimates.Instruction) -> str:
    """The type of a result; of a library call without the memory that it works in."""
    text = instruction.text.partition(" = ")[2].partition(f" {instruction.opcode}(")[0]
    return (
        re.sub(r", [su]8\[\d*\]\{0\}\)$", ")", text) if "custom-call(" in instruction.text else text
    )


def _shapes(text: str) -> list[str]:
    return re.findall(r"\b[a-z]\w*\[[\d,]*\]", text)


def _shape(text: str) -> list[int]:
    """The first shape of a type."""
    first = next(iter(_shapes(text)), "f32[]")
    return [int(size) for size in re.findall(r"\d+", first.partition("[")[2])]


def _bytes(text: str) -> int:
    return sum(collectives.shape_bytes(shape) for shape in _shapes(text))
