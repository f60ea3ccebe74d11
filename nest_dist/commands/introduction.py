"""What a run says of itself before it begins, and writes into its folder."""

import jax

import nest_dist
from nest_dist.commands import audit, recorded, resuming, wiring, workdirs
from nest_dist.parallel import hosts
from nest_dist.telemetry import desk
from nest_dist.telemetry import report as reports


def introduce(
    report: reports.Report,
    workdir: workdirs.Folder,
    here: desk.Desk,
    wired: wiring.Wiring,
    text: str,
    start: resuming.Start,
) -> None:
    """Says what is about to happen and records the operative configuration."""
    run, cadence = wired.run, wired.cadence
    mesh = " x ".join(f"{name}={size}" for name, size in wired.layout.mesh.shape.items())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(wired.shapes.params))
    table = audit.table(wired.audit())
    report.say(
        f"nest_dist {nest_dist.__version__}: {jax.device_count()} {jax.devices()[0].device_kind} "
        f"devices in {jax.process_count()} processes, mesh {mesh}"
    )
    report.say(
        f"{parameters:,} parameters, with the optimizer's state "
        f"{audit.device_bytes(wired.shapes) / 1e6:,.1f} MB a device; each is listed in "
        f"{workdir / workdirs.PARAMETERS}"
    )
    report.say(
        f"{len(wired.training_source):,} training and "
        f"{len(wired.evaluation_source):,} evaluation examples of "
        f"{len(wired.training_source.class_names)} classes"
    )
    report.say(
        f"{cadence.num_steps:,} steps of {run.global_batch} examples, {run.num_epochs:g} epochs"
    )
    if start.step:
        report.say(f"resuming after step {start.step}, from {workdir / workdirs.CHECKPOINTS}")
    for note in start.notes:
        report.say(note)
    if hosts.lead():
        (here.folder / workdirs.CONFIGURATION).write_text(text, encoding="utf-8")
        (here.folder / workdirs.PARAMETERS).write_text(table, encoding="utf-8")
        here.copy()
    report.text("configuration", text, start.step + 1)
    report.text("parameters", table, start.step + 1)
    report.hparams(recorded.Recorded(text).plain())
