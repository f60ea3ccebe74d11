"""`nest-dist prepare`: pictures from anywhere become shards of ArrayRecord, or are verified."""

import collections
import os
import pathlib

from nest_dist.base import checks, failures
from nest_dist.commands import cli
from nest_dist.data import manifest
from nest_dist.data.preparing import inputs, labels, restarts, shards, verification
from nest_dist.telemetry import progress

SHARD_BYTES = 256 << 20


def run(options: cli.Options) -> None:
    """Prepares a split, goes on with one, or verifies it."""
    folder = _folder(options)
    workers = (os.cpu_count() or 1) if options.workers is None else options.workers
    checks.in_range("--workers", workers, 1)
    if options.verify:
        _verify(folder, workers, options)
    else:
        _prepare(folder, workers, options)


def _prepare(folder: pathlib.Path, workers: int, options: cli.Options) -> None:
    if not options.arguments:
        raise failures.BadInput(
            "prepare got no INPUT; give a folder of class folders, a tar archive, Parquet files, "
            "or a folder of TFDS or IDX files."
        )
    if options.restart_markers:
        restarts.require_program()
    paths = [pathlib.Path(path).expanduser() for path in options.arguments]
    if options.input_format:
        checks.one_of("--input_format", options.input_format, inputs.FORMATS)
    form = options.input_format or inputs.recognised(paths)
    print(f"looking through {_names(paths)} ({form})", flush=True)
    try:
        found = inputs.opened(
            form,
            paths,
            inputs.Options(
                options.split, options.labels, options.image_column, options.label_column
            ),
        )
    except OSError as error:
        raise failures.BadInput(
            f"{error.filename or paths[0]} cannot be read ({error.strerror}); give an INPUT that "
            "can."
        ) from None
    plan = _plan(folder, form, _names(paths), found, options)
    try:
        with shards.claimed(folder):
            if written := shards.complete(folder, plan):
                print(f"{folder} is complete: {_size(written)}; --verify reads it again")
                return
            tally = progress.Tally(len(plan.source), "pictures")
            try:
                written = shards.write(folder, plan, workers, tally.report)
            finally:
                tally.close()
    except OSError as error:
        raise failures.BadInput(
            f"{folder} cannot be written ({error.strerror}); make room or choose another --output. "
            "Finished shards are kept: the same command goes on."
        ) from None
    print(f"{folder}: {_size(written)}")
    report = folder / shards.REPORT
    if outcomes := collections.Counter(line["outcome"] for line in shards.remarks(report)):
        counted = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"{report} lists what was unusual: {counted}")


def _plan(
    folder: pathlib.Path, form: str, name: str, found: inputs.Input, options: cli.Options
) -> shards.Plan:
    source = found.source
    wanted, whose = source.class_names, name
    if options.class_names:
        wanted = tuple(labels.lines("--class_names", options.class_names))
        whose = options.class_names
    else:
        for other in sorted(folder.parent.glob(f"*/{manifest.NAME}")):
            if other.parent != folder:
                wanted, whose = tuple(manifest.read(other.parent).classes), str(other.parent)
                break
    count = options.shards
    if count is None:
        count = min(-(-found.bytes // SHARD_BYTES) or 1, len(source))
    checks.in_range("--shards", count, 1, len(source))
    return shards.Plan(
        source=source,
        about={"format": form, "name": name, "fingerprint": source.fingerprint},
        class_names=tuple(wanted),
        labels=tuple(labels.table(source.class_names, wanted, whose)),
        shards=count,
        remarks=found.remarks,
        root=found.root,
        restart_markers=options.restart_markers,
    )


def _verify(folder: pathlib.Path, workers: int, options: cli.Options) -> None:
    if options.arguments:
        raise failures.BadInput(
            f"--verify reads what was written to --output, not {options.arguments[0]}; leave "
            "INPUT out."
        )
    written = manifest.read(folder)
    tally = progress.Tally(len(written), "records")
    try:
        findings = verification.verify(folder, workers, tally.report)
    finally:
        tally.close()
    if findings:
        for finding in findings:
            print(f"{folder}: {finding}")
        raise failures.BadInput(
            f"{folder} is damaged in {len(findings)} place{'s' * (len(findings) > 1)}, first "
            f"{findings[0]}; copy it anew, or remove that file and run `nest-dist prepare` again."
        )
    print(f"{folder} is as it was written: {_size(written)}, fingerprint {written.fingerprint}")


def _folder(options: cli.Options) -> pathlib.Path:
    for name in ("output", "split"):
        if not getattr(options, name):
            raise failures.BadInput(
                f"--{name} is not given; prepare writes to the folder OUTPUT/SPLIT."
            )
    if "://" in options.output:
        raise failures.BadInput(
            f"--output is {options.output}; give a local folder, and copy it when it is complete."
        )
    if options.split in (".", "..") or "/" in options.split:
        raise failures.BadInput(
            f"--split is {options.split!r}; give the name of a folder, such as train."
        )
    return pathlib.Path(options.output).expanduser() / options.split


def _names(paths: list[pathlib.Path]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return (paths[0].name or str(paths[0].resolve())) + more


def _size(written: manifest.Manifest) -> str:
    megabytes = sum(shard.bytes for shard in written.shards) / 1e6
    return (
        f"{len(written):,} pictures of {len(written.classes):,} classes in "
        f"{len(written.shards):,} shards, {megabytes:,.1f} MB"
    )
