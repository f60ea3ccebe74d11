"""`nest-dist config`: what can be configured, what a run has, and how two runs differ."""

import dataclasses
import importlib
import json
import pkgutil
import typing
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import checks, failures, files, lengths, text_chart
from nest_dist.commands import cli
from nest_dist.config import listing, origins, run_json, shipped, strict_gin, workdir
from nest_dist.data import sources
from nest_dist.data.sources import retries
from nest_dist.experiment import changes
from nest_dist.experiment import run as runs
from nest_dist.telemetry import curves as drawing
from nest_dist.telemetry import pictures
from nest_dist.train import schedules

DIFF = "diff"
POINTS = 512  # of a curve
MOST_EXAMPLES = 1 << 40
SCHEDULE = "schedule.png"


def run(options: cli.Options) -> None:
    """Prints the list, the values of a run, a difference, or schedules."""
    given = options.arguments
    if given[:1] == [DIFF]:
        if len(given) != 3:
            raise failures.BadInput(
                f"config diff got {len(given) - 1} runs; give two: workdirs, gin files or shipped "
                "names."
            )
        _print_difference(given[1], given[2], options)
        return
    if len(given) > 1:
        raise failures.BadInput(
            f"config got {' '.join(given)}; give one workdir, gin file or shipped name, or "
            "`config diff A B`."
        )
    names = [*given, *(options.gin_file or ()), *([options.workdir] if options.workdir else [])]
    if not names:
        if options.schedule:
            raise failures.BadInput(
                "--schedule is given without a run; give a workdir, a gin file or a shipped name."
            )
        _print_list(options.search or "", options.json)
        return
    if options.output and not options.schedule:
        raise failures.BadInput("--output is given without --schedule, which alone is drawn.")
    paths = [_gin_file(name) for name in names]
    configured = runs.load(paths, options.gin_bindings or ())
    if options.schedule:
        _print_schedules(configured, options)
    else:
        _print_values(configured, paths, options)


def _print_list(search: str, as_json: bool) -> None:
    for module in pkgutil.iter_modules(sources.__path__, f"{sources.__name__}."):
        try:
            importlib.import_module(module.name)  # gin knows a source once it is imported
        except ImportError:
            continue  # its library is not installed
    listed = listing.configurables(search)
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in listed], indent=2))
        return
    if not listed:
        raise failures.BadInput(f"--search is {search!r}, which nothing has; try a shorter text.")
    room = ""
    for each in listed:
        if each.room != room:
            room = each.room
            print(f"{room}\n{'-' * len(room)}")
        print(f"{each.name}: {each.summary}")
        for parameter in each.parameters:
            default = "must be bound" if parameter.default is None else f"= {parameter.default}"
            print(f"  {each.name}.{parameter.name} {default}  ({parameter.type})")
            if parameter.meaning:
                print(f"      {parameter.meaning}")
        print()


def _print_values(configured: runs.Run, paths: Sequence[str], options: cli.Options) -> None:
    first = str(shipped.folder() / "run.gin")
    found = [strict_gin.find(path, {}) for path in paths]
    statements = origins.written([first, *found], options.gin_bindings or ())
    search = (options.search or "").lower()
    values = [
        value
        for value in origins.values(run_json.dump(configured), statements)
        if search in f"{value.path} {value.binding}".lower()
    ]
    if options.json:
        print(json.dumps([dataclasses.asdict(value) for value in values], indent=2))
        return
    _print_table([(value.binding, value.text, value.origin) for value in values])


def _print_difference(one: str, other: str, options: cli.Options) -> None:
    before, after = (_document(name, options.gin_bindings or ()) for name in (one, other))
    found = changes.between(before, after)
    if options.json:
        print(json.dumps([_as_json(change) for change in found], indent=2))
    elif found:
        rows = [(each.binding, each.before or "-", each.after or "-") for each in found]
        _print_table([("", one, other), *rows])
    else:
        print(f"{one} and {other} are the same run")


def _as_json(change: changes.Change) -> dict[str, typing.Any]:
    return {**dataclasses.asdict(change), "effect": change.effect.value}


def _print_schedules(configured: runs.Run, options: cli.Options) -> None:
    examples = options.examples
    if examples is None:
        examples = len(retries.opened("the training split", configured.data.source))
    else:
        checks.in_range("--examples", examples, 1, MOST_EXAMPLES)
    curves = _curves(configured, examples)
    last = len(next(iter(curves.values()))) - 1
    steps_per_epoch = examples / configured.global_batch
    steps = _num_steps(configured, steps_per_epoch)
    if options.output:
        path = files.output_folder(options.output) / SCHEDULE
        picture = pictures.encoded(_picture(curves, steps), lossless=True)
        files.write_durably(path, lambda new: new.write_bytes(picture))
    if options.json:
        print(json.dumps({"steps": steps, "points": last + 1, "curves": curves}))
        return
    print(
        f"{steps:,} steps of {configured.global_batch} examples: "
        f"{lengths.text(configured.num_epochs)} of {steps_per_epoch:,.1f} steps"
    )
    for title, curve in curves.items():
        print(f"\n{text_chart.draw(title, curve, steps)}")
    if options.output:
        print(f"\n{path}: the same as a picture")


def _picture(curves: Mapping[str, Sequence[float]], steps: int) -> np.ndarray:
    """A panel for each curve: uint8 [H, W, 3]."""
    at = np.linspace(0, steps, POINTS)
    lines = [
        {"step": float(step), **dict(zip(curves, values, strict=True))}
        for step, *values in zip(at, *curves.values(), strict=True)
    ]
    return drawing.sheet([drawing.Panel(title, {"": title}) for title in curves], lines)


def _curves(configured: runs.Run, examples: int) -> dict[str, list[float]]:
    """Values at equal distances over the run, by title."""
    step, steps_per_epoch = configured.step, examples / configured.global_batch
    steps = _num_steps(configured, steps_per_epoch)
    rate = step.schedule.build(step.optimizer.peak_learning_rate, steps, steps_per_epoch)
    points = jnp.linspace(0, float(steps), POINTS)
    curves = {"learning rate": jax.vmap(rate)(points).tolist()}
    if step.ema_decay is not None:
        curves["EMA decay"] = schedules.ema_decay(step.ema_decay, points).tolist()
    return curves


def _num_steps(configured: runs.Run, steps_per_epoch: float) -> int:
    return max(1, lengths.in_steps(configured.num_epochs, steps_per_epoch))


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    # Where a value was set comes last, and is never cut.
    rows = [(*map(_short, row[:-1]), row[-1]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())


def _short(cell: str) -> str:
    return cell if len(cell) <= 72 else f"{cell[:69]}..."


def _gin_file(name: str) -> str:
    """The configuration of a workdir, or the file itself."""
    if name.endswith(".gin"):
        return name
    return str(workdir.for_reading(name) / workdir.CONFIGURATION)


def _document(name: str, bindings: Sequence[str]) -> run_json.Json:
    """The JSON of a workdir's run, or of gin files."""
    if name.endswith(".gin"):
        return run_json.dump(runs.load([name], bindings))
    return run_json.read(workdir.for_reading(name) / run_json.NAME)
