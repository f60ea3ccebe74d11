"""`nest-dist rehearse`: the training step of a run, compiled for a TPU that is not here."""

import dataclasses
import json
import re
import time
import typing

import jax

from nest_dist.base import checks, failures
from nest_dist.commands import (
    artifact,
    audit,
    cli,
    configuration,
    fitting,
    forecast,
    preflight,
    wiring,
    workdirs,
)
from nest_dist.commands import run as runs
from nest_dist.parallel import topologies

OUTPUT = "rehearsal"
REPORT = "report.json"
# Of ImageNet, which only the schedule of the learning rate depends on.
EXAMPLES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Absent:
    """Stands for a data set of which nothing but its size is known."""

    examples: int
    class_names: tuple[str, ...] = ()
    fingerprint: str = "absent"

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> typing.NoReturn:
        raise IndexError(index)


def run(options: cli.Options) -> None:
    """Prints a screen and writes OUTPUT/report.json."""
    # What is compiled for a TPU cannot be read from JAX's cache where there is none.
    jax.config.update("jax_enable_compilation_cache", False)
    configured = configuration.load(options.gin_file or (), options.gin_bindings or ())
    text = configuration.text()
    devices = topologies.devices(options.topology, options.slices) if options.topology else None
    absent = _absent(configured, options.examples)
    wired = wiring.wire(configured, devices or jax.devices(), absent)
    table = audit.table(wired.audit())
    if options.audit:
        print(table, end="")
        return
    policies = fitting.policies(options.remat)
    limit = fitting.require_limit(wired) if options.fit else 0
    folder = workdirs.for_writing(options.output or OUTPUT, "--output")
    report = {"topology": options.topology, "versions": preflight.versions()}
    if options.fit:
        tries = _fit(wired, policies, limit)
        report["fit"] = list(map(dataclasses.asdict, tries))
        for line in fitting.table(tries):
            print(line)
    else:
        print("compiling ...", flush=True)
        compiled, report["compile_seconds"] = _compiled(wired)
        report |= forecast.of_step(wired, compiled)
        for line in forecast.screen(report):
            print(line)
        print(f"compiled in {report['compile_seconds']:.0f} s; all numbers: {folder / REPORT}")
        if options.keep:
            artifact.keep(folder, compiled, artifact.made_from(wired, text))
            print(f"`nest-dist train --compiled={folder}` takes the compiled step from there")
    (folder / workdirs.CONFIGURATION).write_text(text, encoding="utf-8")
    (folder / workdirs.PARAMETERS).write_text(table, encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _absent(configured: runs.Run, examples: int | None) -> Absent | None:
    """What stands for the data if it is not here, or shall not be looked for; else nothing."""
    if examples is None:
        try:
            configured.training_data.source.open()
            configured.evaluation_data.source.open()
            return None
        except (failures.BadInput, failures.Unavailable) as missing:
            reason = failures.first_line(missing).partition(";")[0]
            print(
                f"the data is not here ({reason}); the learning rate is that of {EXAMPLES:,} "
                "training examples, another number is set by --examples"
            )
            examples = EXAMPLES
    checks.in_range("--examples", examples, 1)
    return Absent(examples)


def _fit(wired: wiring.Wiring, policies: tuple[str, ...], limit: float) -> list[fitting.Try]:
    """Everything that was tried, also printed."""

    def measure(changed: wiring.Wiring) -> forecast.Forecast | None:
        try:
            return forecast.of_step(changed, _compiled(changed)[0])
        except failures.BadInput:
            return None

    def tell(each: fitting.Try) -> None:
        verdict = "fits" if each.fits else "too much"
        print(
            f"remat {each.remat}, {each.images_a_device:g} images a device: {verdict}", flush=True
        )

    return fitting.search(wired, policies, limit, measure, tell)


def _compiled(wired: wiring.Wiring) -> tuple[jax.stages.Compiled, float]:
    """The step that `train` would run, and the seconds that it took.

    Raises:
        BadInput: if the compiler finds that it needs more memory than a device has.
    """
    started = time.perf_counter()
    try:
        compiled = wired.train_step().lower(wired.shapes, wired.batch_shapes()[0]).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # As "(240.00G) exceeds available HBM (15.75G)" or "Used 19.5G of 15.75G hbm".
        sizes = re.findall(r"[\d.]+[KMGT]\b", failures.first_line(error))
        needs = f"{sizes[0]}B, a device has {sizes[1]}B" if len(sizes) > 1 else "more than it has"
        raise failures.BadInput(
            f"Run.global_batch is {wired.run.global_batch}: the step needs memory of {needs}; "
            "lower it, raise Run.microbatches, set NesT.remat, or see what --fit finds."
        ) from None
    return compiled, time.perf_counter() - started
