"""What a compiled training step takes of the devices that it was compiled for."""

import re
import typing
from collections.abc import Iterator, Mapping

import jax

from nest_dist.commands import audit, wiring
from nest_dist.model import flops
from nest_dist.parallel import chips, collectives, estimates

COLLECTIVES = "collectives"
OTHER = "other"
# By what the names of operations hold; the first that fits counts.
PARTS = {
    r"\boptimizer\b": "optimizer",
    r"\binputs\b": "inputs",
    r"norm(/|$)": "norms",
    r"/attention(/|$)": "attention",
    r"/mlp(/|$)": "MLP",
    r"/aggregations_\d+(/|$)": "aggregation",
    r"/(patch|position)_embedding(/|$)": "embedding",
    r"\b_scan/": "scanning",
}

Forecast = dict[str, typing.Any]


def of_step(wired: wiring.Wiring, compiled: jax.stages.Compiled) -> Forecast:
    """All that is known of a step before it runs, as plain JSON.

    Bytes and cycles are those of one device, cycles by the estimate of the compiler, but for
    collectives: it estimates none of them, so theirs are their bytes at the rate of the links.
    """
    mesh, run = wired.layout.mesh, wired.run
    kind = mesh.devices.flat[0].device_kind
    chip = chips.of_kind(kind)
    text = compiled.as_text()
    program = estimates.read(text)
    slices = run.mesh.sizes(mesh.size)["slices"]
    exchanged = collectives.totals(
        collectives.found(text, mesh, slices), mesh, program.executions, slices
    )
    needed = flops.training_flops(run.model)
    images = run.global_batch / mesh.size
    found: Forecast = {
        "device_kind": kind,
        "devices": mesh.size,
        "slices": slices,
        "mesh": dict(mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(wired.shapes.params)),
        "global_batch": run.global_batch,
        "images_a_device": images,
        "compute_dtype": run.model.compute_dtype,
        "remat": run.model.remat,
        "memory": _memory(wired, compiled, chip),
        "flops_an_image": {
            "model": needed,
            # The compiler counts a loop once.
            "compiler": float((compiled.cost_analysis() or {}).get("flops", 0)) / images,
        },
        "collectives": exchanged,
        "without_estimate": program.without_estimate(),
        "loops_counted_once": list(program.uncounted),
    }
    if chip and (parts := program.cycles(_part)):
        seconds = sum(each["wire_bytes"] for each in exchanged) / chip.link_bytes_per_second
        parts[COLLECTIVES] = parts.get(COLLECTIVES, 0) + round(seconds * chip.cycles_per_second)
        an_image = sum(parts.values()) / images
        found |= {
            "cycles": {
                "step": sum(parts.values()),
                "image": an_image,
                "parts": dict(sorted(parts.items(), key=lambda part: -part[1])),
            },
            "images_per_second_a_chip": chip.devices * chip.cycles_per_second / an_image,
            "mfu": chip.cycles_per_second / an_image * needed / chip.bfloat16_flops,
        }
    return found


def screen(found: Forecast) -> Iterator[str]:
    """The forecast in lines."""
    mesh = " x ".join(f"{name}={size}" for name, size in found["mesh"].items())
    yield f"{found['devices']} {found['device_kind']} devices, mesh {mesh}"
    yield (
        f"{found['parameters']:,} parameters; {found['global_batch']:,} images a step, "
        f"{found['images_a_device']:g} a device; {found['compute_dtype']}, remat {found['remat']}"
    )
    yield from _memory_lines(found["memory"])
    model, compiler = (found["flops_an_image"][by] / 1e9 for by in ("model", "compiler"))
    yield f"GFLOP an image: {model:.1f} by the model, {compiler:.1f} by the compiler"
    if "cycles" in found:
        yield from _cycle_lines(found)
    for each in found["collectives"]:
        yield (
            f"{each['kind']} over {' and '.join(each['axes'])}: {each['operations']} a step, "
            f"{each['bytes'] / 1e6:,.2f} MB"
        )


def _memory_lines(memory: Mapping[str, typing.Any]) -> Iterator[str]:
    yield "MB a device, by the compiler"
    for part, size in memory["parts"].items():
        yield f"  {part:<28}{size / 1e6:>12,.1f}"
    verdict = ""
    if memory["limit"]:
        verdict = f" of {memory['limit'] / 1e6:,.1f}: {'fits' if memory['fits'] else 'too much'}"
    yield f"  {'together':<28}{memory['total'] / 1e6:>12,.1f}{verdict}"


def _cycle_lines(found: Forecast) -> Iterator[str]:
    cycles, chip = found["cycles"], chips.CHIPS[found["device_kind"]]
    yield f"{'cycles, estimated by the compiler':<30}{'a step':>15}{'an image':>12}{'share':>7}"
    for part, number in cycles["parts"].items():
        share = number / cycles["step"]
        yield f"  {part:<28}{number:>15,}{share * cycles['image']:>12,.0f}{share:>7.1%}"
    yield f"  {'together':<28}{cycles['step']:>15,}{cycles['image']:>12,.0f}"
    missing = [f"{number} {opcode}" for opcode, number in found["without_estimate"].items()]
    if missing:
        yield f"  without an estimate: {', '.join(missing)}"
    if found["slices"] > 1:
        yield "  not counted: the slow network between the slices"
    if found["loops_counted_once"]:
        yield f"  counted once: the loops {', '.join(found['loops_counted_once'])}"
    yield (
        f"{found['images_per_second_a_chip']:,.0f} images/s a chip, {found['mfu']:.1%} of its "
        f"{chip.devices * chip.bfloat16_flops / 1e12:.0f} TFLOP/s, if the estimate holds at "
        f"{chip.cycles_per_second / 1e9:.2f} GHz"
    )


def _memory(
    wired: wiring.Wiring, compiled: jax.stages.Compiled, chip: chips.Chip | None
) -> dict[str, typing.Any]:
    state, (batch, _) = wired.shapes, wired.batch_shapes()
    used = compiled.memory_analysis()
    parts = {
        "parameters": audit.device_bytes(state.params),
        "optimizer": audit.device_bytes((state.optimizer, state.step)),
        "average of parameters": audit.device_bytes(state.ema),
        "batch": audit.device_bytes(batch),
    }
    # Devices store arrays in tiles.
    parts["padding of these"] = used.argument_size_in_bytes - sum(parts.values())
    fresh = used.output_size_in_bytes - used.alias_size_in_bytes
    # A TPU's temporaries also lie on the chip itself, outside of HBM.
    working = (
        used.peak_memory_in_bytes - used.argument_size_in_bytes - fresh
        if chip
        else used.temp_size_in_bytes
    )
    parts["activations and temporaries"] = working
    parts["results beside the state"] = fresh
    parts["program"] = used.generated_code_size_in_bytes
    total = sum(parts.values())
    limit = chip.memory_bytes if chip else None
    return {
        "parts": parts,
        "arguments": used.argument_size_in_bytes,
        "total": total,
        "limit": limit,
        "fits": None if limit is None else total <= limit,
    }


def _part(instruction: estimates.Instruction) -> str:
    source = instruction.source
    return next((part for pattern, part in PARTS.items() if re.search(pattern, source)), OTHER)
