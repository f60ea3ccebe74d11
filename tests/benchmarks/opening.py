"""Opening 13 million examples in 2,048 files: seconds, and memory beyond JAX and the package.

Each file is a hard link to one with 6,348 small records, so that the page cache holds all of it:

    python tests/benchmarks/opening.py
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil

FILES, EXAMPLES = 2048, 6348
BATCH, STEPS = 1024, 20
KINDS = ("array_record", "parquet", "tars")


def main(kind: str | None, folder: str = "") -> None:
    """Makes the files and measures in a process for each kind; or measures in this one."""
    if kind is not None:
        return measure(kind, pathlib.Path(folder))
    for each in KINDS:
        with tempfile.TemporaryDirectory() as made:
            make(each, pathlib.Path(made))
            for _ in range(2):  # the first fills the page cache, and lists tars
                subprocess.run([sys.executable, __file__, each, made], check=True)
    return None


def make(kind: str, folder: pathlib.Path) -> None:
    """One file and its links."""
    first = folder / "first"
    if kind == "array_record":
        from nest_dist.data import manifest
        from nest_dist.data.sources import array_record

        array_record.write(first, [array_record.pack("", (0,), b"x")] * EXAMPLES)
        names = [f"{number:05d}.array_record" for number in range(FILES)]
        shards = tuple(manifest.Shard(it, EXAMPLES, first.stat().st_size, "") for it in names)
        (folder / "train").mkdir()
        manifest.write(folder / "train", manifest.Manifest({"a": 1}, {}, "", shards))
        names = [f"train/{name}" for name in names]
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        columns = {"image": [b"x"] * EXAMPLES, "label": [0] * EXAMPLES}
        pyarrow.parquet.write_table(pyarrow.table(columns), first, row_group_size=100)
        names = [f"train-{number:05d}.parquet" for number in range(FILES)]
    else:
        import io
        import tarfile

        with tarfile.open(first, "w") as archive:
            for number in range(EXAMPLES):
                for suffix, content in ("jpg", b"x"), ("cls", b"0"):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        names = [f"train-{number:05d}.tar" for number in range(FILES)]
        from nest_dist.data.sources import byte_ranges, tars

        tars._index(byte_ranges.File(str(first)), "cls")
        for name in names:  # the stamp of an index is that of the file, so links share it
            os.link(f"{first}{tars.INDEX}", folder / f"{name}{tars.INDEX}")
    for name in names:
        os.link(first, folder / name)


def measure(kind: str, folder: pathlib.Path) -> None:
    """Opens the split, and draws examples of some batches."""
    import jax  # noqa: F401  # memory is counted beyond it

    from nest_dist.data import drawing
    from nest_dist.data.sources import array_record, retries, tars

    config: object = array_record.ArrayRecord(str(folder), "train")
    if kind == "parquet":
        from nest_dist.data.sources import parquet

        config = parquet.Parquet((str(folder),), "train", virtual_shards=64)
    elif kind == "tars":
        config = tars.Tars((str(folder),), "train")
    process = psutil.Process()
    before, started, cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    source = retries.opened("a split", config)
    opened, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory = (process.memory_info().rss - before) / 1e6
    order, rows, told = drawing.order(source, BATCH, 0), np.arange(BATCH), []
    for step in range(STEPS):
        started = time.perf_counter()
        found = order.at(step * 100, rows)
        told.append(time.perf_counter() - started)
        if kind != "parquet":  # every file is read soon
            for example in found.examples[:: BATCH // 128].tolist():
                retries.example(source, example)
    after = (process.memory_info().rss - before) / 1e6
    print(
        f"{kind}: {len(source):,} examples in {FILES:,} files open in {opened:.2f} s ({cpu:.2f} s "
        f"of CPU) and take {memory:.0f} MB; the order of a batch of {BATCH} takes "
        f"{1e3 * np.median(told):.1f} ms; {after:.0f} MB after {STEPS} batches"
    )


if __name__ == "__main__":
    main(*sys.argv[1:] or (None,))
