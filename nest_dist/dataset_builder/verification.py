"""Reads every record of a prepared split again: digests, labels, pixels."""

import collections
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence

from nest_dist.base import failures
from nest_dist.data import batch, manifest
from nest_dist.data.sources import array_record, retries
from nest_dist.data.transforms import decode
from nest_dist.dataset_builder import workers


def verify(folder: pathlib.Path, processes: int, report: Callable[[int], None]) -> list[str]:
    """The errors of a split, in lines; empty if it is as it was written.

    Args:
        report: called now and then with the number of records that were read.
    Raises:
        BadInput: if there is no readable manifest.
    """
    split = manifest.read(folder)
    names = tuple(split.classes)
    work = functools.partial(_verify_shard, folder, names)
    findings: list[str] = []
    counts: collections.Counter[str] = collections.Counter()
    for shard_findings, shard_counts in workers.run(work, split.shards, processes, report):
        findings += shard_findings
        counts.update(shard_counts)
    if not findings and counts != collections.Counter(split.classes):
        wrong = next(name for name in names if counts[name] != split.classes[name])
        findings.append(
            f"{manifest.NAME}: it says {split.classes[wrong]} pictures of class {wrong!r}, the "
            f"shards have {counts[wrong]}"
        )
    return findings


def _verify_shard(
    folder: pathlib.Path, class_names: Sequence[str], shard: manifest.Shard, tick: workers.Tick
) -> tuple[list[str], collections.Counter[str]]:
    """Findings and number of pictures by class of one shard; runs in a worker."""
    path, counts = folder / shard.name, collections.Counter[str]()
    if not path.is_file():
        return [f"{shard.name}: it is missing"], counts
    if (size := path.stat().st_size) != shard.bytes:
        return [f"{shard.name}: it has {size} bytes, not {shard.bytes}"], counts
    trying = retries.Retries()
    try:
        files = trying.run(str(path), lambda: array_record.open_files([str(path)]))
    except failures.BadInput as reason:
        return [f"{shard.name}: {reason}"], counts
    findings = []
    digest = hashlib.sha256()
    for number in range(len(files)):
        tick()
        key = ""
        try:
            record = trying.run(
                str(path), functools.partial(files.__getitem__, number), listed=True
            )
            array_record.digest_one(digest.update, record)
            key, labels, picture = array_record.unpack(record)
            decode.pixels(picture, decode.ANY_VALUES)
            known, unknown = array_record.parted(labels)
            names = {label: class_names[label] for label in (*known, *unknown)}
            counts.update(names[label] for label in known)
        except batch.Corrupt as reason:
            findings.append(f"{shard.name} record {number}{key and f' ({key})'}: {reason}")
        except IndexError:
            findings.append(
                f"{shard.name} record {number} ({key}): labels {labels} of {len(class_names)} "
                "classes"
            )
    if not findings and digest.hexdigest() != shard.sha256:
        findings.append(f"{shard.name}: its records are not those that were written")
    return findings, counts
