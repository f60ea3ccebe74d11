"""A program for tests of the cache: reads random ranges of a file through it, again and again.

    python -m support.caching ADDRESS COPY FOLDER MAX_BYTES SEED READS

`COPY` is the file itself. It says so and fails when a range has other bytes.
"""

import random
import sys
import time

from nest_dist.data.sources import byte_ranges, range_cache, retries

RANGES = 24


def ranges(size):
    """The ranges of which every process asks, of several lengths."""
    drawn = random.Random(7)
    return [(drawn.randrange(size - 40_000), drawn.choice((1, 900, 40_000))) for _ in range(RANGES)]


def main(address, copy, folder, max_bytes, seed, reads):
    with open(copy, "rb") as file:
        content = file.read()
    retries.FIRST_PAUSE_SECONDS = 0.01
    trying, drawn = retries.Retries(30), random.Random(seed)
    cache = range_cache.Cache(folder, int(max_bytes))
    opened = trying.run(address, byte_ranges.File(address, cache=cache).now)
    print("opened", flush=True)
    for _ in range(int(reads)):
        start, length = drawn.choice(ranges(len(content)))
        read = trying.run(address, lambda start=start, length=length: opened.read(start, length))
        if read != content[start : start + length]:
            sys.exit(f"other bytes at {start}")
        time.sleep(drawn.random() * 1e-3)


if __name__ == "__main__":
    main(*sys.argv[1:])
