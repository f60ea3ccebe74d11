"""`nest-dist predict`: what a trained model sees in pictures."""

import json
import pathlib
import sys
import typing
from collections.abc import Iterator

import jax
import numpy as np

from nest_dist.base import checks, failures
from nest_dist.commands import cli
from nest_dist.pretrained import load

TOP = 5
LARGEST_BATCH = 32
FORMATS = ("table", "json")


def run(options: cli.Options) -> None:
    """Prints the most likely classes of each picture, with their probabilities."""
    if not options.arguments:
        raise failures.BadInput("predict got no picture; give one path or several.")
    checks.one_of("--format", options.format, FORMATS)
    pretrained = loaded(options.checkpoint, options.step)
    names = class_names(options.class_names, pretrained)
    refused: list[failures.BadInput] = []
    found = [
        {"image": path, "top_5": _best(row, names)}
        for path, row in _probabilities(options.arguments, pretrained, refused)
    ]
    if found or options.format == "json":
        print(json.dumps(found, indent=2) if options.format == "json" else _table(found))
    if len(refused) > 1:
        for refusal in refused:
            print(refusal, file=sys.stderr)
        raise failures.BadInput(
            f"{len(refused)} of {len(options.arguments)} pictures are not predicted, the first: "
            f"{refused[0]}"
        )
    if refused:
        raise refused[0]


def loaded(checkpoint: str | None, step: int | None) -> load.Pretrained:
    """The trained model of --checkpoint.

    Raises:
        BadInput: if there is none, or it has no head.
    """
    if checkpoint is None:
        raise failures.BadInput(
            "--checkpoint is not given; give a file of weights, a workdir, or a repository of the "
            "Hugging Face Hub."
        )
    load.require_trained(checkpoint)
    pretrained = load.load(checkpoint, step)
    if pretrained.model.num_classes == 0:
        raise failures.BadInput(
            f"--checkpoint is {checkpoint}, a model without head; fine-tune it on classes first."
        )
    return pretrained


def class_names(path: str | None, pretrained: load.Pretrained) -> typing.Sequence[str]:
    """The names of --class_names, of the model, or numbers.

    Raises:
        BadInput: if the file cannot be read or has another number of names.
    """
    classes = pretrained.model.num_classes
    if path is None:
        return pretrained.class_names or [f"class {label}" for label in range(classes)]
    try:
        names = pathlib.Path(path).read_text(encoding="utf-8-sig").splitlines()
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


def _probabilities(
    paths: typing.Sequence[str], loaded: load.Pretrained, refused: list[failures.BadInput]
) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures and their [classes]; every batch has the same size, so that one is compiled.

    Args:
        paths: of the pictures.
        loaded: the model.
        refused: receives why a picture has no probabilities.
    """
    size = min(len(paths), LARGEST_BATCH)
    for start in range(0, len(paths), size):
        images: list[tuple[str, np.ndarray]] = []
        for path in paths[start : start + size]:
            try:
                images.append((path, loaded.preprocess(path)[0]))
            except failures.BadInput as refusal:
                refused.append(refusal)
        if not images:
            continue
        batch = np.stack([image for _, image in images])
        padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        logits = loaded.logits(np.pad(batch, padding))
        for (path, _), row in zip(images, np.asarray(jax.nn.softmax(logits)), strict=False):
            if np.isnan(row).any():  # would sort as the least likely of all
                raise failures.BadInput(
                    f"{path} gets probabilities that are NaN; the weights of --checkpoint are not "
                    "finite or overflow: give an earlier --step or other weights."
                )
            yield path, row


def _best(probabilities: np.ndarray, names: typing.Sequence[str]) -> list[dict[str, typing.Any]]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [
        {"class": int(label), "name": names[label], "probability": float(probabilities[label])}
        for label in order
    ]


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
