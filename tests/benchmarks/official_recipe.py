"""gin/recipe/imagenet_official.gin beside the official code: what both make of the same pictures.

    .venv/bin/python tests/benchmarks/official_recipe.py CHECKOUT

CHECKOUT is a clone of github.com/google-research/nested-transformer, of which `libml/preprocess.py`
and `augment/` run in an environment with TensorFlow, made once below .venv-benchmarks; --python
names another one. TensorFlow Addons is no more: its three transforms of images are below.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import input_speed
import numpy as np

PICTURES, SIDE, GROUP, CLASSES = 2000, 224, 64, 10
STAGES = ("crop and flip", "RandAugment", "jitter, normalized, erasing", "mixing")
SMOOTHING = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout")
    parser.add_argument("--python", help="of an environment with TensorFlow")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--only", choices=("ours", "official"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure = {"ours": ours, "official": lambda it: official(it, options.checkout)}
        print(json.dumps(measure[options.only](pathlib.Path(options.folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(pathlib.Path(folder), options.pictures)
        found = {}
        pythons = {"official": options.python or input_speed.environment("tensorflow")}
        for name in ("ours", "official"):
            command = [pythons.get(name, sys.executable), __file__, options.checkout]
            command += ["--only", name, "--folder", folder]
            more = {"TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **more}
            )
            found[name] = json.loads(done.stdout.splitlines()[-1])
    show(found["official"], found["ours"])


def write_pictures(folder: pathlib.Path, count: int) -> None:
    """Random rectangles of photographs, at random scales, as JPEGs."""
    sys.path.insert(0, str(input_speed.TOP / "tests"))
    import cv2
    from support import photographs

    rng = np.random.default_rng(0)
    names = ("astronaut", "coffee", "motorcycle", "chelsea", "rocket")
    for number in range(count):
        image = photographs.photograph(names[number % len(names)])
        H, W, _ = image.shape
        height, width = rng.integers(H // 2, H + 1), rng.integers(W // 2, W + 1)
        top, left = rng.integers(H - height + 1), rng.integers(W - width + 1)
        part = image[top : top + height, left : left + width, ::-1]
        scale = 2 ** rng.uniform(-0.5, 0.5)
        part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), part, [cv2.IMWRITE_JPEG_QUALITY, 95])


def read(folder: pathlib.Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]


def told(images: np.ndarray) -> dict[str, list[float]]:
    """Mean and spread of the pixels of each image [N, H, W, C]."""
    each = images.reshape(len(images), -1).astype(np.float64)
    return {"mean": each.mean(1).tolist(), "spread": each.std(1).tolist()}


def told_labels(labels: np.ndarray) -> dict[str, list[float]]:
    """Of label weights [N, classes]: the largest, the second, and that of the picture itself."""
    ordered, own = np.sort(labels, axis=1), np.arange(len(labels)) % CLASSES
    return {
        "largest": ordered[:, -1].tolist(),
        "second": ordered[:, -2].tolist(),
        "own": labels[np.arange(len(labels)), own].tolist(),
    }


def ours(folder: pathlib.Path) -> dict[str, dict[str, list[float]]]:
    """The transforms of the recipe, then its inputs on the device."""
    sys.path.insert(0, str(input_speed.TOP))
    import dataclasses

    import jax
    import jax.numpy as jnp

    from nest_dist.data.transforms import decode
    from nest_dist.experiment import run as runs

    files = ("data/synthetic.gin", "model/nest_tiny.gin", "recipe/imagenet_official.gin")
    run = runs.load((*files, "mesh/data_parallel.gin"), ("num_classes = 10",))
    crop, flip, randaugment = run.data.transforms
    found: dict[str, list] = {"areas": [], STAGES[0]: [], STAGES[1]: []}
    for number, picture in enumerate(read(folder)):
        rng = np.random.default_rng(number)
        H, W = decode.pixels(picture).shape[:2]
        _, _, height, width = crop.rectangle(H, W, np.random.default_rng(number))
        found["areas"].append(height * width / (H * W))
        image = flip(crop(picture, rng), rng)
        found[STAGES[0]].append(image)
        found[STAGES[1]].append(randaugment(image, rng))
    images = np.stack(found[STAGES[1]])
    targets = jax.nn.one_hot(np.arange(len(images)) % CLASSES, CLASSES)
    targets = targets * (1 - SMOOTHING) + SMOOTHING / CLASSES
    made: dict[str, list] = {stage: [] for stage in (*STAGES[2:], "labels")}
    unmixed = jax.jit(dataclasses.replace(run.step.inputs, mixing=None))
    mixed = jax.jit(run.step.inputs)
    for first in range(0, len(images) - len(images) % GROUP, GROUP):
        rows, key = jnp.arange(GROUP), jax.random.key(first)
        group = images[first : first + GROUP], targets[first : first + GROUP], key, rows
        made[STAGES[2]].append(np.asarray(unmixed(*group)[0]))
        for name, array in zip((STAGES[3], "labels"), mixed(*group), strict=True):
            made[name].append(np.asarray(array))
    return {
        "crop": {"area": found["areas"]},
        **{stage: told(np.stack(found[stage])) for stage in STAGES[:2]},
        **{stage: told(np.concatenate(made[stage])) for stage in STAGES[2:]},
        "labels": told_labels(np.concatenate(made["labels"])),
    }


def official(folder: pathlib.Path, checkout: str) -> dict[str, dict[str, list[float]]]:
    """The official functions with the values of configs/imagenet_nest.py, in groups of 64."""
    import tensorflow as tf

    add_stand_ins(tf)
    sys.path.insert(0, checkout)
    from libml import preprocess

    mean = tf.constant(preprocess.IMAGENET_DEFAULT_MEAN)[None, None]
    std = tf.constant(preprocess.IMAGENET_DEFAULT_STD)[None, None]
    randaugment = Params(
        type="randaugment",
        randaugment_num_layers=2,
        randaugment_cutout=False,
        randaugment_magnitude=9,
        randaugment_magstd=0.5,
        randaugment_prob_to_apply=0.5,
        size=SIDE,
    )
    whole = preprocess.get_augment_preprocess(
        randaugment,
        colorjitter_params=Params(type="colorjitter", colorjitter_strength=0.3, size=SIDE),
        randerasing_params=Params(erase_prob=0.25),
        mean=mean,
        std=std,
    )
    steps = (
        lambda it: {**it, "image": tf.saturate_cast(255 * it["image"], tf.uint8)},
        lambda it: {**it, "image": tf.cast(tf.round(255 * it["image"]), tf.uint8)},
        lambda it: it,
    )
    functions = (preprocess.train_preprocess, preprocess.get_augment_preprocess(randaugment), whole)
    pictures = read(folder)

    def example(number, picture):
        seed = tf.stack([number, 7])
        return {"image": picture, "label": number % CLASSES, "rng": seed}

    numbered = tf.data.Dataset.from_tensor_slices(
        (np.arange(len(pictures), dtype=np.int32), pictures)
    ).map(example)
    found = {"crop": {"area": areas(tf, pictures)}}
    for stage, function, last in zip(STAGES, functions, steps, strict=False):
        data = numbered.map(lambda it, function=function, last=last: last(function(dict(it))))
        made = list(data.batch(GROUP).as_numpy_iterator())
        if stage == STAGES[2]:
            made = [it for it in made if len(it["image"]) == GROUP]
        found[stage] = told(np.concatenate([it["image"] for it in made]))
    mix = preprocess.create_mix_augment(CLASSES, SMOOTHING, mixup_alpha=0.8, prob_to_apply=1.0)
    mixed = [mix({**it, "rng": tf.constant([at, 9])}) for at, it in enumerate(made)]
    found[STAGES[3]] = told(np.concatenate([it["image"].numpy() for it in mixed]))
    found["labels"] = told_labels(np.concatenate([it["label"].numpy() for it in mixed]))
    return found


def areas(tf, pictures: list[bytes]) -> list[float]:
    """The shares of pictures that the official call of TensorFlow crops."""
    shares = []
    for number, picture in enumerate(pictures):
        shape = tf.io.extract_jpeg_shape(picture)
        _, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros([0, 0, 4]),
            seed=(number, 8),
            area_range=(0.05, 1.0),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        shares.append(float(size[0] * size[1]) / float(shape[0] * shape[1]))
    return shares


class Params(dict):
    """As much of ml_collections.ConfigDict as the official code uses."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def to_dict(self):
        return dict(self)


def add_stand_ins(tf) -> None:
    """Modules that the official code imports: transforms of images, label smoothing, a dict."""

    def transform(image, matrix):
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=tf.stack([tf.cast(it, tf.float32) for it in matrix])[None],
            output_shape=tf.shape(image)[:2],
            fill_value=0.0,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )[0]

    def rotate(image, angle):
        right, down = (tf.cast(tf.shape(image)[it] - 1, tf.float32) for it in (1, 0))
        cos, sin = tf.cos(angle), tf.sin(angle)
        x = (right - (cos * right - sin * down)) / 2
        y = (down - (sin * right + cos * down)) / 2
        return transform(image, [cos, -sin, x, sin, cos, y, 0.0, 0.0])

    def translate(image, offsets):
        return transform(image, [1.0, 0.0, -offsets[0], 0.0, 1.0, -offsets[1], 0.0, 0.0])

    addons, losses, collections = map(
        types.ModuleType, ("tensorflow_addons", "libml.losses", "ml_collections")
    )
    addons.image = types.SimpleNamespace(transform=transform, rotate=rotate, translate=translate)
    losses.apply_label_smoothing = lambda it, by: it * (1 - by) + by / CLASSES
    collections.ConfigDict = Params
    for module in (addons, losses, collections):
        sys.modules[module.__name__] = module


def show(theirs: dict, own: dict) -> None:
    """A table with the mean over pictures, and the difference in standard errors."""
    print("| | official | ours | difference, in standard errors |\n|---|---|---|---|")
    for stage, measures in theirs.items():
        for measure, values in measures.items():
            left, right = np.array(values), np.array(own[stage][measure])
            error = math.sqrt(left.var() / len(left) + right.var() / len(right))
            gap = (right.mean() - left.mean()) / error
            name = f"{stage}: {measure}"
            print(f"| {name} | {left.mean():.3f} | {right.mean():.3f} | {gap:+.1f} |")
    small = [float(np.mean(np.array(it["crop"]["area"]) < 0.2)) for it in (theirs, own)]
    print(f"| crops below a fifth of the picture | {small[0]:.1%} | {small[1]:.1%} | |")


if __name__ == "__main__":
    main()
