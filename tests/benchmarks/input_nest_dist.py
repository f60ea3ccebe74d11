"""Our pipeline, Grain and all, and the same decoding and pixel work without it."""

import json
import os
import pathlib
import sys
import time

import input_speed
import numpy as np

from nest_dist.base import allocator
from nest_dist.data import batch, drawing, parts, pipeline
from nest_dist.data.sources import mixture
from nest_dist.data.transforms import crop, decode, randaugment

SIDE = 224
BATCH = 32
CUT = (crop.RandomResizedCrop(side=SIDE, area=(0.05, 1.0)), crop.Flip())
RECIPE = (*CUT, randaugment.RandAugment(translation=100))
# As many as ImageNet has, each picture many times: Grain's shuffling is slow for a few hundred.
EXAMPLES = 1_281_167


class Pictures(batch.Source):
    """JPEGs in memory, so that no disk is measured."""

    class_names = ("a", "b")
    fingerprint = "benchmark"

    def __init__(self, pictures: list[bytes]) -> None:
        self.pictures = pictures

    def open(self) -> "Pictures":
        return self

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> batch.Example:
        return {"image": self.pictures[index % len(self.pictures)], "labels": (index % 2,)}


def batches(source, transforms, **fields) -> batch.Batches:
    data = pipeline.TrainingData(source, transforms, **fields)
    rows = np.arange(BATCH)
    return data.batches(source.open(), seed=0, global_batch=BATCH, rows=rows, first_step=0)


def mixed(source: Pictures) -> mixture.Mixture:
    """Two parts of the pictures, three to one."""
    both = (parts.Part(source, "[::2]"), parts.Part(source, "[!::2]"))
    return mixture.Mixture(both, ("one", "two"), (3, 1))


def piped(source: batch.SourceConfig, transforms) -> float:
    """CPU milliseconds an image, through threads and batches."""
    loaded = batches(source, transforms, threads=1, read_ahead_bytes=BATCH * SIDE * SIDE * 3 * 4)
    next(loaded)
    time.sleep(0.5)  # what is read ahead is ready now, and as much will be at the end
    start = time.process_time()
    steps = 3 * input_speed.PICTURES // BATCH
    for _ in range(steps):
        next(loaded)
    time.sleep(0.5)
    spent = time.process_time() - start
    loaded.close()
    return 1000 * spent / (steps * BATCH)


def finding(source: batch.SourceConfig) -> float:
    """CPU milliseconds an image, to find it and fetch its bytes from memory."""
    opened, rows, steps = source.open(), np.arange(BATCH), 40
    order = drawing.order(opened, BATCH, 0, phases=getattr(source, "phases", ()))
    order.at(0, rows)
    start = time.process_time()
    for step in range(steps):
        for number in order.at(step, rows).examples.tolist():
            opened[number]
    return 1000 * (time.process_time() - start) / (steps * BATCH)


def bare(source: Pictures, transforms) -> float:
    """CPU milliseconds an image, decoding and pixel work alone."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    for picture in source.pictures:
        image = picture if transforms else decode.pixels(picture)
        for transform in transforms:
            image = transform(image, rng)
    return 1000 * (time.process_time() - start) / len(source.pictures)


def images_per_second(source: Pictures, workers: int) -> float:
    """In wall time, by worker processes with a thread each."""
    loaded = batches(source, RECIPE, threads=1, workers=workers)
    for _ in range(8 * workers):
        next(loaded)
    start, steps = time.perf_counter(), 60
    for _ in range(steps):
        next(loaded)
    spent = time.perf_counter() - start
    loaded.close()
    return steps * BATCH / spent


def bare_per_second(source: Pictures) -> float:
    """In wall time, decoding and pixel work alone, from when a line is read on."""
    bare(source, RECIPE)
    print("ready", flush=True)
    sys.stdin.readline()
    start, rounds = time.perf_counter(), 8
    for _ in range(rounds):
        bare(source, RECIPE)
    return rounds * len(source.pictures) / (time.perf_counter() - start)


def read(folder: str) -> Pictures:
    return Pictures([path.read_bytes() for path in sorted(pathlib.Path(folder).glob("*.jpg"))])


def main() -> None:
    allocator.keep_freed()  # as every worker does, and on a CPU every command
    if sys.argv[1] == "--scaling":
        source = read(sys.argv[2])
        found = [(images_per_second(source, 1), images_per_second(source, 2)) for _ in range(5)]
        one, two = sorted(found, key=lambda pair: pair[1] / pair[0])[len(found) // 2]
        print(json.dumps({"one": one, "two": two}))
        return
    if sys.argv[1] == "--bare":
        print(bare_per_second(read(sys.argv[2])))
        return
    os.sched_setaffinity(0, {0})
    folders = {kind: pathlib.Path(sys.argv[1], name) for kind, name in input_speed.KINDS.items()}
    sources = {kind: read(str(folder)) for kind, folder in folders.items()}
    for _ in sys.stdin:
        times = {"the whole picture decoded and no more": bare(sources[""], ())}
        for kind, source in sources.items():
            if source.pictures:
                times |= {
                    f"recipe{kind}": piped(source, RECIPE),
                    f"recipe, pixels alone{kind}": bare(source, RECIPE),
                    f"decode, crop, flip{kind}": piped(source, CUT),
                }
        part, mixture_of_two = parts.Part(sources[""], "[:98%]"), mixed(sources[""])
        times |= {
            "decode, crop, flip of a part": piped(part, CUT),
            "decode, crop, flip of a mixture of two": piped(mixture_of_two, CUT),
            "finding an example": finding(sources[""]),
            "finding an example of a part": finding(part),
            "finding an example of a mixture of two": finding(mixture_of_two),
        }
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
