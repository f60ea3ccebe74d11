"""Memory, cycles and collectives of a compiled training step on its devices."""

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping

import jax

from nest_dist.base import chips
from nest_dist.experiment import audit
from nest_dist.experiment import experiment as experiments
from nest_dist.model import encoder, nest
from nest_dist.rehearsal import bundles, collectives, estimates, gpus, kernels, plain_layers

COLLECTIVES = "collectives"
OTHER = "other"
LAYERS = "layers"
# In the names of operations, the number of a level and that of its layer.
LAYER = r"/levels_(\d+)/layers_(\d+)/"
# Components of a step by patterns of the names of operations; the first that matches counts.
COMPONENTS = {
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


def of_step(
    experiment: experiments.Experiment,
    compiled: jax.stages.Compiled,
    grids: kernels.Grids | None = None,
) -> Forecast:
    """The costs of a step before it runs, as plain JSON: bytes and cycles of one device.

    The compiler estimates cycles; those of collectives are their bytes at the rate of the links.
    What has no estimate is counted by the bundles that were written as it was compiled.

    Args:
        compiled: its training step.
        grids: of the kernels in it.
    """
    mesh, run = experiment.sharding.mesh, experiment.run
    kind = mesh.devices.flat[0].device_kind
    chip = chips.of_kind(kind)
    program = estimates.read(compiled.as_text())
    slices = run.mesh.sizes(mesh.size)["slices"]
    exchanged = collectives.totals(
        collectives.read(program, mesh, slices), mesh, program.executions, slices
    )
    needed = experiment.training_flops
    images = run.global_batch / mesh.size
    report: Forecast = {
        "device_kind": kind,
        "devices": mesh.size,
        "slices": slices,
        "mesh": dict(mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(experiment.state_shapes.params)),
        "global_batch": run.global_batch,
        "images_a_device": images,
        "compute_dtype": run.model.compute_dtype,
        "remat": run.model.remat,
        "memory": _memory(experiment, compiled, chip),
        "flops_an_image": {
            "model": needed,
            # The compiler counts a loop once.
            "compiler": float((compiled.cost_analysis() or {}).get("flops", 0)) / images,
        },
        "collectives": exchanged,
        "kernels": str(experiment.kernels),
        "loops_counted_once": list(program.uncounted),
    }
    if chip and chip.is_gpu:
        hosts = len({device.process_index for device in mesh.devices.flat})
        report["gpu"] = gpus.of_step(program, chip, exchanged, images, hosts)
    elif chip and (cycles := program.cycles(_component)):
        seconds = sum(total["wire_bytes"] for total in exchanged) / chip.link_bytes_per_second
        cycles[COLLECTIVES] = cycles.get(COLLECTIVES, 0) + round(seconds * chip.cycles_per_second)
        written, share = bundles.written(), _share(run.model)
        counted = kernels.count(program, grids or {}, written)
        rest = kernels.cycles(program, counted, written, chip, _without_estimate, share)
        layers = kernels.cycles(program, counted, written, chip, _in_layer, share)
        an_image = (sum(cycles.values()) + sum(rest.cycles.values())) / images
        report |= {
            "cycles": _sums(cycles, images),
            "bundle_cycles": _sums(rest.cycles, images),
            "without_either": rest.missing,
            "layer_cycles": layers.cycles.get(LAYERS, 0) / images,
            "cycles_an_image": an_image,
            "counted": [dataclasses.asdict(each) for each in counted],
            "images_per_second_a_chip": chip.devices * chip.cycles_per_second / an_image,
            "mfu": chip.cycles_per_second / an_image * needed / chip.bfloat16_flops,
        }
    bundles.forget()
    return report


def of_layers(experiment: experiments.Experiment, report: Forecast) -> Forecast:
    """For a step by kernels: what its layers take without them, an image, by the same bundles."""
    if not report.get("counted"):
        return {}
    device = experiment.sharding.mesh.devices.flat[0]
    chip = chips.CHIPS[report["device_kind"]]
    images = int(report["images_a_device"])
    cycles = plain_layers.cycles(experiment.run.model, device, chip, images)
    return {"plain_layer_cycles": cycles}


def _sums(cycles: Mapping[str, int], images: float) -> dict[str, typing.Any]:
    total = sum(cycles.values())
    parts = dict(sorted(cycles.items(), key=lambda item: -item[1]))
    return {"step": total, "image": total / images, "parts": parts}


def screen(report: Forecast) -> Iterator[str]:
    """The forecast in lines."""
    mesh = " x ".join(f"{name}={size}" for name, size in report["mesh"].items())
    yield f"{report['devices']} {report['device_kind']} devices, mesh {mesh}"
    yield (
        f"{report['parameters']:,} parameters; {report['global_batch']:,} images a step, "
        f"{report['images_a_device']:g} a device; {report['compute_dtype']}, "
        f"remat {report['remat']}"
    )
    yield report["kernels"]
    yield from _memory_lines(report["memory"])
    model, compiler = (report["flops_an_image"][by] / 1e9 for by in ("model", "compiler"))
    counted = f", {compiler:.1f} by the compiler" if compiler else ""
    yield f"GFLOP an image: {model:.1f} by the model{counted}"
    if "cycles" in report:
        yield from _cycle_lines(report)
    if "gpu" in report:
        yield from gpus.screen(report["gpu"])
    for total in report["collectives"]:
        yield (
            f"{total['kind']} over {' and '.join(total['axes'])}: {total['operations']} a step, "
            f"{total['bytes'] / 1e6:,.2f} MB"
        )


def _memory_lines(memory: Mapping[str, typing.Any]) -> Iterator[str]:
    yield "MB a device, by the compiler"
    for name, size in memory["parts"].items():
        yield f"  {name:<28}{size / 1e6:>12,.1f}"
    limit = ""
    if memory["limit"]:
        limit = f" of {memory['limit'] / 1e6:,.1f}: {'fits' if memory['fits'] else 'too much'}"
    yield f"  {'together':<28}{memory['total'] / 1e6:>12,.1f}{limit}"


def _cycle_lines(report: Forecast) -> Iterator[str]:
    cycles, by_bundles = report["cycles"], report["bundle_cycles"]
    chip = chips.CHIPS[report["device_kind"]]
    yield f"{'cycles, estimated by the compiler':<30}{'a step':>15}{'an image':>12}{'share':>7}"
    yield from _part_lines(cycles)
    if by_bundles["step"]:
        yield "kernels and what has no estimate, by bundles, without dropped branches"
        yield from _part_lines(by_bundles)
        step, image = (cycles[per] + by_bundles[per] for per in ("step", "image"))
        yield f"{'both, by two instruments':<30}{step:>15,}{image:>12,.0f}"
    if plain := report.get("plain_layer_cycles"):
        layers = report["layer_cycles"]
        yield f"{'layers alone, all by bundles':<45}{layers:>12,.0f}"
        yield f"{'without kernels':<45}{plain:>12,.0f}, {plain / layers:.2f} times as many"
    missing = [f"{number} {opcode}" for opcode, number in report["without_either"].items()]
    if missing:
        yield f"  without estimate and bundles: {', '.join(missing)}"
    if report["slices"] > 1:
        yield "  not counted: the slow network between the slices"
    if report["loops_counted_once"]:
        yield f"  counted once: the loops {', '.join(report['loops_counted_once'])}"
    yield (
        f"{report['images_per_second_a_chip']:,.0f} images/s a chip, {report['mfu']:.1%} of its "
        f"{chip.devices * chip.bfloat16_flops / 1e12:.0f} TFLOP/s, if the estimate holds at "
        f"{chip.cycles_per_second / 1e9:.2f} GHz"
    )


def _part_lines(cycles: Mapping[str, typing.Any]) -> Iterator[str]:
    for name, number in cycles["parts"].items():
        share = number / cycles["step"]
        yield f"  {name:<28}{number:>15,}{share * cycles['image']:>12,.0f}{share:>7.1%}"
    yield f"  {'together':<28}{cycles['step']:>15,}{cycles['image']:>12,.0f}"


def _memory(
    experiment: experiments.Experiment, compiled: jax.stages.Compiled, chip: chips.Chip | None
) -> dict[str, typing.Any]:
    state, (batch, _) = experiment.state_shapes, experiment.batch_shapes()
    used = compiled.memory_analysis()
    parts = {
        "parameters": audit.device_bytes(state.params),
        "optimizer": audit.device_bytes((state.optimizer, state.step)),
        "average of parameters": audit.device_bytes(state.ema),
        "batch": audit.device_bytes(batch),
    }
    # Devices store arrays in tiles.
    parts["padding of these"] = used.argument_size_in_bytes - sum(parts.values())
    results = used.output_size_in_bytes - used.alias_size_in_bytes
    # Temporaries of a TPU also use memory on the chip, outside HBM.
    working = (
        used.peak_memory_in_bytes - used.argument_size_in_bytes - results
        if chip and not chip.is_gpu
        else used.temp_size_in_bytes
    )
    parts["activations and temporaries"] = working
    parts["results beside the state"] = results
    parts["program"] = used.generated_code_size_in_bytes
    total = sum(parts.values())
    limit = chip.usable_bytes if chip else None
    return {
        "parts": parts,
        "arguments": used.argument_size_in_bytes,
        "total": total,
        "limit": limit,
        "fits": None if limit is None else total <= limit,
    }


def _share(model: nest.NesT) -> Callable[[estimates.Instruction], float]:
    """The share of a layer's branches that stochastic depth leaves."""
    rates = encoder.drop_rates(model.stochastic_depth, model.block_repeats)

    def share(instruction: estimates.Instruction) -> float:
        layer = re.search(LAYER, instruction.source)
        return 1 - rates[int(layer[1])][int(layer[2])] if layer else 1

    return share


def _without_estimate(instruction: estimates.Instruction) -> str | None:
    return _component(instruction) if instruction.cycles is None else None


def _in_layer(instruction: estimates.Instruction) -> str | None:
    return LAYERS if re.search(LAYER, instruction.source) else None


def _component(instruction: estimates.Instruction) -> str:
    source = instruction.source
    return next((name for pattern, name in COMPONENTS.items() if re.search(pattern, source)), OTHER)
