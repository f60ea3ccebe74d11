"""A source written as shards of records, by many processes, and gone on with after a kill.

While it is under way, each finished shard has its summary beside it as NUMBER.json; the manifest
comes last and takes their place. The bytes depend on the plan alone, never on who wrote what.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import typing
from collections.abc import Callable, Iterator, Sequence

from nest_dist.base import failures, files
from nest_dist.data import batch, manifest, records
from nest_dist.data.preparing import pictures, restarts, tars, workers
from nest_dist.data.sources import image_folder

PLAN = "plan.json"
LOCK = ".lock"
REPORT = "report.jsonl"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides what is written.

    Attributes:
        source: the pictures.
        about: "format", "name" and "fingerprint" of it, for the manifest.
        class_names: the name of each label that is written.
        labels: the label to write for each label of the source.
        shards: how many files.
        remarks: what was left out before reading.
        root: prefix of keys that is not stored.
        restart_markers: whether JPEGs get some.
    """

    source: batch.Source
    about: dict[str, str]
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    shards: int
    remarks: Sequence[pictures.Remark] = ()
    root: str = ""
    restart_markers: bool = False

    @property
    def digest(self) -> str:
        """Tells plans apart."""
        parts = [self.about["fingerprint"], self.class_names, self.labels, self.shards]
        parts += [f"restart markers {restarts.WIDTH}"] * self.restart_markers
        content = json.dumps([*parts, manifest.FORMAT_VERSION])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def name(self, number: int) -> str:
        """Of a shard's file."""
        return f"{number:05d}-of-{self.shards:05d}.array_record"


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder, and keeps others from writing to it at the same time.

    Raises:
        BadInput: if somebody does already.
        OSError: if the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise failures.BadInput(
                f"another `nest-dist prepare` is writing to {folder}; wait for its end."
            ) from None
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def complete(folder: pathlib.Path, plan: Plan) -> manifest.Manifest | None:
    """The manifest of a claimed folder that holds all of a plan; None if there is work to do.

    Raises:
        BadInput: if it holds anything else.
    """
    unfinished_plan = {path.name for path in files.leftovers(folder / PLAN)}
    others = {path.name for path in folder.iterdir()} - {LOCK} - unfinished_plan
    written = manifest.read(folder) if manifest.NAME in others else None
    if written:
        there, about = written.plan, written.source
    elif PLAN in others:
        there, about = json.loads((folder / PLAN).read_text())
    elif others:
        raise failures.BadInput(
            f"{folder} holds other files, such as {min(others)}; choose another --output or "
            "--split."
        )
    else:
        there, about = plan.digest, plan.about
    if there != plan.digest:
        raise failures.BadInput(
            f"{folder} holds another data set: of {about['format']} {about['name']}, or with other "
            "classes, --shards or --restart_markers; remove it, or choose another --output or "
            "--split."
        )
    for path in files.leftovers(folder / "*"):
        path.unlink()
    if written and all(_whole(folder / shard.name, shard.bytes) for shard in written.shards):
        _tidy(folder, written)
        return written
    text = json.dumps([plan.digest, plan.about])
    files.write_whole(folder / PLAN, lambda path: path.write_text(text))
    (folder / manifest.NAME).unlink(missing_ok=True)
    return None


def write(
    folder: pathlib.Path,
    plan: Plan,
    processes: int,
    report: Callable[[int], None],
) -> manifest.Manifest:
    """Writes the shards that are not yet there, then report and manifest.

    Args:
        folder: one that `complete` has looked at.
        plan: what to write.
        processes: how many share the work.
        report: called now and then with the number of pictures that are done.
    Raises:
        BadInput: if no picture is readable, or a label is out of range.
        OSError: if the disk is full.
    """
    paths = [folder / plan.name(number) for number in range(plan.shards)]
    missing = [number for number in range(plan.shards) if not _summary(paths[number])]
    before = len(plan.source) - sum(len(_places(plan, number)) for number in missing)
    workers.run(
        _write_shard,
        [_task(folder, plan, number) for number in missing],
        processes,
        lambda done: report(before + done),
    )
    summaries = [_summary(path) or {} for path in paths]  # all are there now
    counts: collections.Counter[str] = collections.Counter()
    remarks = [dataclasses.asdict(remark) for remark in plan.remarks]
    for summary in summaries:
        counts.update(summary["counts"])
        remarks += summary["remarks"]
    if not counts:
        raise failures.BadInput(
            f"none of the {len(plan.source)} pictures of {plan.about['name']} is readable, the "
            f"first for this reason: {remarks[len(plan.remarks)]['reason']}; fetch the data set "
            "again."
        )
    lines = "".join(json.dumps(remark) + "\n" for remark in remarks)
    files.write_whole(folder / REPORT, lambda path: path.write_text(lines))
    written = manifest.Manifest(
        classes={name: counts[str(label)] for label, name in enumerate(plan.class_names)},
        source=plan.about,
        plan=plan.digest,
        shards=tuple(
            manifest.Shard(path.name, *(summary[each] for each in ("records", "bytes", "sha256")))
            for path, summary in zip(paths, summaries, strict=True)
        ),
    )
    manifest.write(folder, written)
    _tidy(folder, written)
    return written


def remarks(path: pathlib.Path) -> list[dict[str, str]]:
    """The lines of a report."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _tidy(folder: pathlib.Path, written: manifest.Manifest) -> None:
    """Removes what the manifest has taken the place of."""
    for shard in written.shards:
        _summary_path(folder / shard.name).unlink(missing_ok=True)
    (folder / PLAN).unlink(missing_ok=True)


def _summary_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def _summary(path: pathlib.Path) -> dict[str, typing.Any] | None:
    """What is known of a shard that is whole."""
    try:
        found = json.loads(_summary_path(path).read_text())
    except OSError:
        return None
    return found if _whole(path, found["bytes"]) else None


def _whole(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@dataclasses.dataclass(frozen=True)
class _Task:
    """One shard for a worker, with no more of the source than it needs."""

    path: pathlib.Path
    source: batch.Source
    offset: int  # of the first example of `source`
    places: range
    labels: tuple[int, ...]
    root: str
    restart_markers: bool


def _task(folder: pathlib.Path, plan: Plan, number: int) -> _Task:
    source: typing.Any = plan.source
    places, offset = _places(plan, number), 0
    if isinstance(source, image_folder.Files | tars.Members):  # a list of a million names
        entries: typing.Any = source.entries[places.start : places.stop]
        source = dataclasses.replace(source, entries=entries)
        offset = places.start
    path = folder / plan.name(number)
    return _Task(path, source, offset, places, plan.labels, plan.root, plan.restart_markers)


def _places(plan: Plan, number: int) -> range:
    size = len(plan.source)
    return range(size * number // plan.shards, size * (number + 1) // plan.shards)


def _write_shard(task: _Task, tick: workers.Tick) -> None:
    """Writes one shard and its summary; runs in a worker."""
    counts: collections.Counter[str] = collections.Counter()
    digest = hashlib.sha256()
    remarks: list[pictures.Remark] = []

    def made() -> Iterator[bytes]:
        for place in task.places:
            tick()
            key = f"example {place}"
            try:
                example = task.source[place - task.offset]
                key = str(example.get("key", key)).removeprefix(task.root)
                picture, remark = pictures.stored(example["image"], key, task.restart_markers)
            except batch.Unreadable as reason:
                remarks.append(pictures.Remark(key, "left out", str(reason)))
                continue
            if remark:
                remarks.append(remark)
            label = _label(task, example)
            counts[str(label)] += 1
            record = records.pack(key, label, picture)
            records.digest_one(digest, record)
            yield record

    records.write(task.path, made())
    summary = {
        "records": counts.total(),
        "bytes": task.path.stat().st_size,
        "sha256": digest.hexdigest(),
        "counts": counts,
        "remarks": [dataclasses.asdict(remark) for remark in remarks],
    }
    text = json.dumps(summary)
    files.write_whole(_summary_path(task.path), lambda path: path.write_text(text))


def _label(task: _Task, example: batch.Example) -> int:
    label = int(example["label"])
    if not 0 <= label < len(task.labels):
        raise failures.BadInput(
            f"{example.get('key', 'an example')} has label {label}, the data has "
            f"{len(task.labels)} classes, labels 0 to {len(task.labels) - 1}; prepare a split "
            "whose labels are known."
        )
    return task.labels[label]
