"""What antialiased crops cost, and what decoding JPEGs at a part of their sides gives back.

Run it with an interpreter that has nest_dist and scikit-image; it takes a minute on one core.
"""

import pathlib
import statistics
import sys
import time

import cv2
import numpy as np

TOP = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(TOP / "tests"))
sys.path.insert(0, str(TOP))

from support import photographs  # noqa: E402

from nest_dist.data.transforms import crop, decode  # noqa: E402

ROUNDS, CROPS, SIDE = 3, 8, 224
SIDES = ((375, 500), (750, 1000), (3000, 4000))
RECIPE = {"side": SIDE, "area": (0.05, 1.0)}
PLAIN, SMOOTH = crop.RandomResizedCrop(**RECIPE), crop.RandomResizedCrop(**RECIPE, antialias=True)


def whole_scale(picture, rng):
    """As `SMOOTH`, but decoded at all of its sides."""
    pixels = decode.cut(picture, lambda H, W: SMOOTH.rectangle(H, W, rng))
    return crop.resized(pixels, SMOOTH.size, True)


WAYS = {"bilinear": PLAIN, "antialiased, all decoded": whole_scale, "antialiased": SMOOTH}


def seconds(way, pictures):
    start = time.process_time()
    for number in range(CROPS):
        way(pictures[number % len(pictures)], np.random.default_rng(number))
    return (time.process_time() - start) / CROPS


def main():
    names = ("chelsea", "coffee", "astronaut", "rocket")
    print("pictures a second on one core")
    print(f"{'JPEG':<14}{''.join(f'{name:>26}' for name in WAYS)}")
    for height, width in SIDES:
        pictures = [
            decode.encode(cv2.resize(photographs.photograph(name), (width, height)), "jpeg")
            for name in names
        ]
        rounds = [[seconds(way, pictures) for way in WAYS.values()] for _ in range(ROUNDS)]
        speeds = [1 / statistics.median(times) for times in zip(*rounds, strict=True)]
        print(f"{f'{height} x {width}':<14}{''.join(f'{speed:>26.0f}' for speed in speeds)}")


main()
