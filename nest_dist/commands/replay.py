"""`nest-dist replay`: a step of a run, done again and looked into."""

import contextlib
import json
import pathlib
import typing

from nest_dist.base import checks, failures, files
from nest_dist.checkpointing import reader
from nest_dist.cluster import library_output, processes, supervisor
from nest_dist.commands import cli, predict, train
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import build
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import replay as replays
from nest_dist.experiment import run as runs
from nest_dist.telemetry import pictures, records, staging
from nest_dist.train import state as states

FOLDER = "replays"
LISTED = 10  # of the worst examples, in the table


def run(options: cli.Options) -> None:
    """Prints the step and draws its batch; with --example, prints the steps that saw it."""
    if len(options.arguments) != 1:
        raise failures.BadInput("replay takes one workdir; give the folder of a run.")
    if (options.step is None) == (options.example is None):
        raise failures.BadInput("give --step=N or --example=KEY, one of them.")
    checks.one_of("--format", options.format, predict.FORMATS)
    workdir = workdirs.for_reading(options.arguments[0])
    with contextlib.ExitStack() as opened:
        opened.enter_context(supervisor.Supervisor()).start(**cli.hosts(options))
        opened.enter_context(library_output.diverted(workdir))
        configured = runs.load([str(workdir / workdirs.CONFIGURATION)], options.gin_bindings or ())
        experiment = build.build(configured, teacher=train.teacher)
        checkpoints = reader.Reader(workdir / workdirs.CHECKPOINTS)
        windows = replays.windows_of(records.lines(workdir / staging.METRICS))
        if options.example is not None:
            _print_steps(experiment, checkpoints, options.example, windows, options.format)
            return
        folder = files.output_folder(options.output or FOLDER)
        result = replays.replay(experiment, checkpoints, options.step, windows, _first_state)
        if processes.is_primary():
            _show(result, folder, options.format)


def _first_state(experiment: experiments.Experiment) -> states.TrainState:
    if experiment.run.init_from is None:
        return experiment.init_state()
    params, _ = train.initial_params(experiment.run, experiment.class_names)
    return experiment.state_from(params)


def _print_steps(
    experiment: experiments.Experiment,
    checkpoints: reader.Reader,
    key: str,
    windows: list[replays.Window],
    form: str,
) -> None:
    example_id = replays.example_id(experiment, key)
    last = max([*checkpoints.steps(), *(window.last for window in windows)], default=0)
    steps = replays.steps_with(experiment, checkpoints, example_id, last)
    if form == "json":
        print(json.dumps({"example": key, "steps": steps}))
    else:
        seen = ", ".join(map(str, steps)) or "none"
        print(f"{key} was seen by {len(steps)} of {last} steps: {seen}")


def _show(result: replays.Replay, folder: pathlib.Path, form: str) -> None:
    path = folder / f"step_{result.step}.png"
    captions = [
        pictures.Caption((f"loss {result.losses[row]:.3f}", replays.class_text(result, row), key))
        for row, key in zip(result.rows, result.keys, strict=True)
    ]
    with files.claimed(path):
        path.write_bytes(pictures.encoded(pictures.page(result.images, captions), lossless=True))
    if form == "json":
        print(json.dumps(_document(result, path), indent=2))
    else:
        print("\n".join(_lines(result, path)))


def _document(result: replays.Replay, path: pathlib.Path) -> dict[str, typing.Any]:
    window = result.window
    return {
        "step": result.step,
        "restored": result.restored,
        "window": [window.first, window.last] if window else None,
        "metrics": {
            name: {"logged": logged, "again": again}
            for name, (logged, again) in replays.compared(result).items()
        },
        "differences": list(result.differences),
        "gradient_norms": dict(result.gradient_norms),
        "examples": [
            {
                "key": key,
                "row": int(row),
                "class": replays.class_text(result, row),
                "loss": float(result.losses[row]),
            }
            for row, key in zip(result.rows, result.keys, strict=True)
        ],
        "sheet": str(path),
    }


def _lines(result: replays.Replay, path: pathlib.Path) -> list[str]:
    origin = f"the checkpoint of step {result.restored}" if result.restored else "the beginning"
    lines = [f"step {result.step}, done again from {origin}"]
    if result.differences:
        lines += ["bits may differ:", *(f"  {difference}" for difference in result.differences)]
    if result.window:
        lines.append(f"means of the steps {result.window.first} to {result.window.last}:")
        for name, (logged, again) in replays.compared(result).items():
            verdict = "to the last digit" if logged == again else f"again {again!r}"
            lines.append(f"  {name:<22} {logged!r}, {verdict}")
    else:
        lines.append("the log has no line for this step")
    lines.append("gradient norms:")
    lines += [f"  {name:<22} {norm:.4g}" for name, norm in result.gradient_norms.items()]
    lines.append(f"loss of {len(result.losses)} examples, mean {result.losses.mean():.4f}, worst:")
    lines += [
        f"  {result.losses[row]:8.4f}  {replays.class_text(result, row)}  {key}"
        for row, key in list(zip(result.rows, result.keys, strict=True))[:LISTED]
    ]
    return [*lines, f"{path}: the worst of them as the model saw them"]
