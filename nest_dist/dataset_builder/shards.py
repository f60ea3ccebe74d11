"""Writes a source as shards of records, with many processes; it resumes after a kill.

Until the end, each finished shard has its summary beside it as NUMBER.json. The manifest comes last
and replaces the summaries. The bytes depend on the plan alone, never on the number of processes.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import typing
from collections.abc import Callable, Iterator, Sequence

from nest_dist.base import failures, files
from nest_dist.data import batch, classes, manifest
from nest_dist.data.sources import array_record, image_folder, retries
from nest_dist.dataset_builder import inputs, pictures, tars, workers

PLAN = "plan.json"
REPORT = "report.jsonl"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of the shards."""

    data: inputs.Input
    about: dict[str, str]  # its "format", "name" and "fingerprint", for the manifest
    class_names: tuple[str, ...]
    labels: tuple[int, ...]  # the label to write for each label of the source
    shards: int
    restart_markers: bool = False

    @property
    def digest(self) -> str:
        """Identifies the plan."""
        content = [self.about["fingerprint"], self.class_names, self.labels, self.shards]
        content += [f"restart markers {pictures.INTERVAL_WIDTH}"] * self.restart_markers
        text = json.dumps([*content, manifest.FORMAT_VERSION])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def name(self, number: int) -> str:
        """The name of a shard's file."""
        return f"{number:05d}-of-{self.shards:05d}.array_record"

    def indices(self, number: int) -> range:
        """The examples of a shard."""
        size = len(self.data.source)
        return range(size * number // self.shards, size * (number + 1) // self.shards)


def complete(folder: pathlib.Path, plan: Plan) -> manifest.Manifest | None:
    """The manifest of a claimed folder if all shards of a plan are complete, else None.

    Raises:
        BadInput: if it holds anything else.
    """
    unfinished_plan = {path.name for path in files.leftovers(folder / PLAN)}
    others = {path.name for path in folder.iterdir()} - {files.LOCK} - unfinished_plan
    written = manifest.read(folder) if manifest.NAME in others else None
    if written:
        digest, about = written.plan, written.source
    elif PLAN in others:
        digest, about = _plan_in(folder / PLAN)
    elif others:
        raise failures.BadInput(
            f"{folder} holds other files, such as {min(others)}; choose another --output or "
            "--split."
        )
    else:
        digest, about = plan.digest, plan.about
    if digest != plan.digest:
        raise failures.BadInput(
            f"{folder} holds another data set: of {about['format']} {about['name']}, whose files "
            "may have changed since, or with other classes, --shards or --restart_markers; choose "
            "another --output or --split."
        )
    files.remove_leftovers(folder / "*")
    if written and all(_has_size(folder / shard.name, shard.bytes) for shard in written.shards):
        _remove_summaries(folder, written)
        return written
    text = json.dumps([plan.digest, plan.about])
    files.write_text_durably(folder / PLAN, text)
    (folder / manifest.NAME).unlink(missing_ok=True)
    return None


def write(
    folder: pathlib.Path,
    plan: Plan,
    processes: int,
    report: Callable[[int], None],
) -> manifest.Manifest:
    """Writes the missing shards, then report and manifest.

    Args:
        report: called now and then with the number of pictures that are done.
    Raises:
        BadInput: if no picture is readable, or a label is out of range.
        OSError: if the disk is full.
    """
    paths = [folder / plan.name(number) for number in range(plan.shards)]
    missing = [number for number in range(plan.shards) if not _summary(paths[number])]
    before = len(plan.data.source) - sum(len(plan.indices(number)) for number in missing)
    workers.run(
        functools.partial(_write_shard, plan.labels, plan.data.root, plan.restart_markers),
        [_task(folder, plan, number) for number in missing],
        processes,
        lambda done: report(before + done),
    )
    summaries = [summary for path in paths if (summary := _summary(path))]
    counts: collections.Counter[str] = collections.Counter()
    remarks = [dataclasses.asdict(remark) for remark in plan.data.remarks]
    for summary in summaries:
        counts.update(summary.counts)
        remarks += summary.remarks
    if not any(summary.records for summary in summaries):
        raise failures.BadInput(
            f"all {len(plan.data.source)} pictures of {plan.about['name']} are corrupt, the first "
            f"for this reason: {remarks[len(plan.data.remarks)]['reason']}; fetch the data set "
            "again."
        )
    lines = "".join(json.dumps(remark) + "\n" for remark in remarks)
    files.write_text_durably(folder / REPORT, lines)
    written = manifest.Manifest(
        classes={name: counts[str(label)] for label, name in enumerate(plan.class_names)},
        source=plan.about,
        plan=plan.digest,
        shards=tuple(
            manifest.Shard(path.name, summary.records, summary.bytes, summary.sha256)
            for path, summary in zip(paths, summaries, strict=True)
        ),
    )
    manifest.write(folder, written)
    _remove_summaries(folder, written)
    return written


def remarks(path: pathlib.Path) -> list[dict[str, str]]:
    """The lines of a report."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class _Summary:
    """A complete shard, in a file beside it."""

    records: int
    bytes: int
    sha256: str
    counts: dict[str, int]  # of pictures by label
    remarks: list[dict[str, str]]


def _remove_summaries(folder: pathlib.Path, written: manifest.Manifest) -> None:
    """Removes the summaries and the plan, which the manifest has replaced."""
    for shard in written.shards:
        _summary_path(folder / shard.name).unlink(missing_ok=True)
    (folder / PLAN).unlink(missing_ok=True)


def _plan_in(path: pathlib.Path) -> tuple[str, dict[str, str]]:
    """Digest and source of a plan; of a damaged one, those of no other plan."""
    try:
        digest, about = files.parsed(path.read_bytes())
        return digest, {"format": about["format"], "name": about["name"]}
    except (ValueError, KeyError, TypeError):
        return "", {"format": "a damaged", "name": str(path)}


def _summary_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def _summary(path: pathlib.Path) -> _Summary | None:
    """The summary of a complete shard."""
    try:
        summary = _Summary(**files.parsed(_summary_path(path).read_bytes()))
    except (OSError, ValueError, TypeError):  # missing, or damaged: the shard is written again
        return None
    return summary if _has_size(path, summary.bytes) else None


def _has_size(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


class _Task(typing.NamedTuple):
    """One shard for a worker, with no more of the source than it needs."""

    path: pathlib.Path
    source: batch.Source
    offset: int  # of the first example of `source`
    indices: range


def _task(folder: pathlib.Path, plan: Plan, number: int) -> _Task:
    source, offset, indices = plan.data.source, 0, plan.indices(number)
    if isinstance(source, (image_folder.Files, tars.Members)):  # lists of a million names
        offset, entries = indices.start, source.entries[indices.start : indices.stop]
        source = dataclasses.replace(source, entries=entries)  # type: ignore[arg-type]
    return _Task(folder / plan.name(number), source, offset, indices)


def _write_shard(
    labels: Sequence[int], root: str, restart_markers: bool, task: _Task, tick: workers.Tick
) -> None:
    """Writes one shard and its summary; runs in a worker."""
    counts: collections.Counter[str] = collections.Counter()
    digest = hashlib.sha256()
    remarks: list[pictures.Remark] = []

    def packed() -> Iterator[bytes]:
        for index in task.indices:
            tick()
            key = f"example {index}"
            try:
                example = retries.example(task.source, index - task.offset)
                key = str(example.get("key", key)).removeprefix(root)
                picture, remark = pictures.stored(example["image"], key, restart_markers)
            except batch.Corrupt as reason:
                remarks.append(pictures.Remark(key, "left out", str(reason)))
                continue
            if remark:
                remarks.append(remark)
            written = classes.relabelled(example, labels)
            unknown = classes.relabelled(example, labels, "unknown")
            counts.update(map(str, written))
            record = array_record.pack(key, written, picture, unknown)
            array_record.digest_one(digest.update, record)
            yield record

    array_record.write(task.path, packed())
    left_out = [remark for remark in remarks if remark.outcome == "left out"]
    summary = _Summary(
        records=len(task.indices) - len(left_out),
        bytes=task.path.stat().st_size,
        sha256=digest.hexdigest(),
        counts=dict(counts),
        remarks=[dataclasses.asdict(remark) for remark in remarks],
    )
    text = json.dumps(dataclasses.asdict(summary))
    files.write_text_durably(_summary_path(task.path), text)
