"""timm's recipe on Pillow to uint8 224: decode, random resized crop (bicubic), flip, RandAugment.

timm's package asks for torch; its RandAugment needs Pillow and numpy alone, and is loaded alone.
"""

import importlib.util
import io
import json
import math
import os
import pathlib
import random
import sys
import time

import numpy as np
from PIL import Image

SIDE = 224


def rand_augment():
    folder = pathlib.Path(importlib.util.find_spec("timm").origin).parent
    spec = importlib.util.spec_from_file_location("auto", folder / "data" / "auto_augment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = {"translate_const": 100, "img_mean": (124, 116, 104)}
    return module.rand_augment_transform("rand-m9-n2-mstd0.5-inc1", settings)


def crop(picture):
    """As timm.data.transforms.RandomResizedCropAndInterpolation."""
    W, H = picture.size
    for _ in range(10):
        area = random.uniform(0.05, 1.0) * W * H
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= W and height <= H:
            left, top = random.randint(0, W - width), random.randint(0, H - height)
            break
    else:
        left, top, width, height = 0, 0, W, H
    cut = picture.crop((left, top, left + width, top + height))
    return cut.resize((SIDE, SIDE), Image.BICUBIC)


def main():
    os.sched_setaffinity(0, {0})
    pictures = [path.read_bytes() for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jpg"))]
    augment = rand_augment()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # timm draws from it
    for _ in sys.stdin:
        times = {}
        for name in ("recipe", "decode, crop, flip"):
            start = time.process_time()
            for picture in pictures:
                image = crop(Image.open(io.BytesIO(picture)).convert("RGB"))
                if random.random() < 0.5:
                    image = image.transpose(Image.FLIP_LEFT_RIGHT)
                if name == "recipe":
                    image = augment(image)
                np.asarray(image)
            times[name] = 1000 * (time.process_time() - start) / len(pictures)
        print(json.dumps(times), flush=True)


main()
