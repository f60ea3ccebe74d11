"""`nest-dist prepare`: pictures from anywhere become shards of ArrayRecord, or are verified."""

import collections
import contextlib
import errno
import os
import pathlib

from nest_dist.base import checks, failures, files
from nest_dist.commands import cli
from nest_dist.data import manifest
from nest_dist.data.sources import retries
from nest_dist.dataset_builder import inputs, pictures, planning, shards, verification
from nest_dist.telemetry import terminal


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
        pictures.require_jpegtran()
    paths = [pathlib.Path(path).expanduser() for path in options.arguments]
    if options.input_format:
        checks.one_of("--input_format", options.input_format, inputs.FORMATS)
    form = options.input_format or inputs.recognised(paths)
    for path in paths:
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise failures.BadInput(
                f"{folder} lies inside the INPUT {path}, which would then hold its own output; "
                "choose another --output."
            )
    print(f"looking through {_names(paths)} ({form})", flush=True)
    columns = options.image_column, options.label_column
    reading = inputs.Options(options.split, options.labels, *columns, options.label_separator)
    data = retries.Retries().run(str(paths[0]), lambda: inputs.opened(form, paths, reading))
    if data.root and data.root != f"{paths[0]}/":
        print(f"taking {data.root}, which holds the class folders", flush=True)
    about = {"format": form, "name": _names(paths), "fingerprint": data.stamp}
    plan = planning.plan(
        folder, data, about, options.class_names, options.shards, options.restart_markers
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.claimed(folder):
            if written := shards.complete(folder, plan):
                print(f"{folder} is complete: {_size(written)}; --verify reads it again")
                return
            with contextlib.closing(terminal.Tally(len(plan.data.source), "pictures")) as tally:
                written = shards.write(folder, plan, workers, tally.report)
    except OSError as error:
        if error.errno == errno.EMFILE:  # nothing is wrong with the folder
            raise
        raise failures.BadInput(
            f"{folder} cannot be written ({error.strerror}); make room or choose another --output. "
            "Finished shards are kept: the same command goes on."
        ) from None
    print(f"{folder}: {_size(written)}")
    report = folder / shards.REPORT
    if outcomes := collections.Counter(line["outcome"] for line in shards.remarks(report)):
        said = {"kept": "kept as they are"}
        counted = ", ".join(
            f"{count:,} {said.get(outcome, outcome)}" for outcome, count in sorted(outcomes.items())
        )
        print(f"{report} lists what was unusual: {counted}")


def _verify(folder: pathlib.Path, workers: int, options: cli.Options) -> None:
    if options.arguments:
        raise failures.BadInput(
            f"--verify reads what was written to --output, not {options.arguments[0]}; leave "
            "INPUT out."
        )
    written = retries.Retries().run(str(folder), lambda: manifest.read(folder))
    with contextlib.closing(terminal.Tally(len(written), "records")) as tally:
        findings = verification.verify(folder, workers, tally.report)
    for finding in findings:
        print(f"{folder}: {finding}")
    if findings:
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
    if options.split in (".", "..") or {"/", "["} & set(options.split):  # [ begins a part
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
