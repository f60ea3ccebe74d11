"""`nest-dist predict`: what a trained model sees in pictures."""

import json
import pathlib
import typing

import jax
import numpy as np

from nest_dist.base import checks, failures
from nest_dist.commands import cli, pretrained

TOP = 5
LARGEST_BATCH = 32
FORMATS = ("table", "json")


def run(options: cli.Options) -> None:
    """Prints the most likely classes of each picture, with their probabilities."""
    if not options.arguments:
        raise failures.BadInput("predict got no picture; give one path or several.")
    if options.checkpoint is None:
        raise failures.BadInput(
            "--checkpoint is not given; give a file of weights, a workdir, or a repository of the "
            "Hugging Face Hub."
        )
    checks.one_of("--format", options.format, FORMATS)
    pretrained.require_trained(options.checkpoint)
    loaded = pretrained.load(options.checkpoint, options.step)
    if loaded.model.num_classes == 0:
        raise failures.BadInput(
            f"--checkpoint is {options.checkpoint}, a model without head; fine-tune it on classes "
            "first."
        )
    names = _class_names(options.class_names, loaded)
    found = [
        {"image": path, "top_5": _best(row, names)}
        for path, row in zip(
            options.arguments, _probabilities(options.arguments, loaded), strict=True
        )
    ]
    print(json.dumps(found, indent=2) if options.format == "json" else _table(found))


def _probabilities(paths: typing.Sequence[str], loaded: pretrained.Pretrained) -> np.ndarray:
    """[pictures, classes]; every batch has the same size, so that one is compiled."""
    size = min(len(paths), LARGEST_BATCH)
    rows = []
    for start in range(0, len(paths), size):
        batch = list(paths[start : start + size])
        images = loaded.preprocess(batch)
        padding = [(0, size - len(batch))] + [(0, 0)] * (images.ndim - 1)
        logits = loaded.logits(np.pad(images, padding))
        rows.append(np.asarray(jax.nn.softmax(logits))[: len(batch)])
    return np.concatenate(rows)


def _best(probabilities: np.ndarray, names: typing.Sequence[str]) -> list[dict[str, typing.Any]]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [
        {"class": int(label), "name": names[label], "probability": float(probabilities[label])}
        for label in order
    ]


def _class_names(path: str | None, loaded: pretrained.Pretrained) -> typing.Sequence[str]:
    classes = loaded.model.num_classes
    if path is None:
        return loaded.class_names or [f"class {label}" for label in range(classes)]
    try:
        names = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise failures.BadInput(
            f"--class_names is {path}, which cannot be read ({error}); give a text file with one "
            "name a line."
        ) from None
    if len(names) != classes:
        raise failures.BadInput(
            f"--class_names is {path} with {len(names)} lines, the model has {classes} classes; "
            "give one name a line, in the order of the labels."
        )
    return names


def _table(found: list[dict[str, typing.Any]]) -> str:
    lines = []
    for prediction in found:
        lines.append(prediction["image"])
        width = max(len(best["name"]) for best in prediction["top_5"])
        lines += [
            f"  {best['probability']:>6.1%}  {best['name']:<{width}}  (label {best['class']})"
            for best in prediction["top_5"]
        ]
    return "\n".join(lines)
