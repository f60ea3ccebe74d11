"""A prepared split read again, every record: digests, labels, pixels."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

from nest_dist.data import batch, decode, manifest, records
from nest_dist.data.preparing import workers


@dataclasses.dataclass(frozen=True)
class _Task:
    """One shard for a worker."""

    folder: pathlib.Path
    shard: manifest.Shard
    class_names: tuple[str, ...]


def verify(folder: pathlib.Path, processes: int, report: Callable[[int], None]) -> list[str]:
    """What is wrong with a split, one line each; empty if it is as it was written.

    Args:
        folder: with its manifest.
        processes: how many share the work.
        report: called now and then with the number of records that were read.
    Raises:
        BadInput: if there is no readable manifest.
    """
    written = manifest.read(folder)
    names = tuple(written.classes)
    tasks = [_Task(folder, shard, names) for shard in written.shards]
    findings: list[str] = []
    counts: collections.Counter[str] = collections.Counter()
    for found, counted in workers.run(_verify_shard, tasks, processes, report):
        findings += found
        counts.update(counted)
    if not findings and counts != collections.Counter(written.classes):
        wrong = next(name for name in names if counts[name] != written.classes[name])
        findings.append(
            f"{manifest.NAME}: it says {written.classes[wrong]} pictures of class {wrong!r}, there "
            f"are {counts[wrong]}"
        )
    return findings


def _verify_shard(task: _Task, tick: workers.Tick) -> tuple[list[str], collections.Counter[str]]:
    """Findings and number of pictures by class of one shard; runs in a worker."""
    shard, counts = task.shard, collections.Counter[str]()
    path = task.folder / shard.name
    if not path.is_file():
        return [f"{shard.name}: it is missing"], counts
    if (size := path.stat().st_size) != shard.bytes:
        return [f"{shard.name}: it has {size} bytes, not {shard.bytes}"], counts
    try:
        reader = records.Reader(path)
    except batch.Unreadable as reason:
        return [f"{shard.name}: {reason}"], counts
    findings = []
    digest = hashlib.sha256()
    for number in range(len(reader)):
        tick()
        key = ""
        try:
            record = reader[number]
            records.digest_one(digest, record)
            key, label, picture = records.unpack(record)
            decode.pixels(picture)
            counts[task.class_names[label]] += 1
        except batch.Unreadable as reason:
            findings.append(f"{shard.name} record {number}{key and f' ({key})'}: {reason}")
        except IndexError:
            findings.append(
                f"{shard.name} record {number} ({key}): label {label} of {len(task.class_names)} "
                "classes"
            )
    reader.close()
    if not findings and digest.hexdigest() != shard.sha256:
        findings.append(f"{shard.name}: its records are not those that were written")
    return findings, counts
