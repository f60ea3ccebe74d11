"""`nest-dist predict`: what a trained model sees in pictures."""

import csv
import json
import pathlib
import sys
import typing
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nest_dist.base import checks, failures, files
from nest_dist.commands import cli
from nest_dist.data.sources import image_folder
from nest_dist.pretrained import load, outputs
from nest_dist.pretrained import stored as stored_weights
from nest_dist.telemetry import pictures

TOP = 5
LARGEST_BATCH = 32
FORMATS = ("table", "json")
ALL_FORMATS = (*FORMATS, "csv")
SHEET = "least_certain.png"


def run(options: cli.Options) -> None:
    """Prints the most likely classes of each picture, with their probabilities.

    With --output it also draws the pictures whose likeliest class has the lowest probability.
    """
    if not options.arguments:
        raise failures.BadInput("predict got no picture; give one path or several, or folders.")
    checks.one_of("--format", options.format, ALL_FORMATS)
    checks.in_range("--images", options.images, 1)
    pretrained = loaded(options.checkpoint, options.step)
    names = class_names(options.class_names, pretrained)
    folder = files.output_folder(options.output) if options.output else None
    paths = _pictures(options.arguments)
    refused: list[failures.BadInput] = []
    found = [
        {"image": path, "top_5": _best(row, names)}
        for path, row in _probabilities(paths, pretrained, refused)
    ]
    if found or options.format != "table":
        _show(found, options.format)
    if found and folder is not None:
        # Of CSV and JSON nothing but rows goes to the output.
        said = sys.stdout if options.format == "table" else sys.stderr
        sheet, drawn = folder / SHEET, min(options.images, len(found))
        _draw(sheet, sorted(found, key=_certainty)[:drawn], pretrained)
        print(f"{sheet}: the {drawn} least certain of {len(found)} pictures", file=said)
    require_none(refused, len(paths), "predicted")


def require_none(refused: Sequence[failures.BadInput], count: int, done: str) -> None:
    """Ends a command that has done what it could.

    Args:
        refused: why pictures were left out.
        count: pictures in all.
        done: what was to be done with them.
    Raises:
        BadInput: if there are any; several are named first, each in a line.
    """
    if len(refused) == 1:
        raise refused[0]
    for refusal in refused:
        print(refusal, file=sys.stderr)
    if refused:
        raise failures.BadInput(
            f"{len(refused)} of {count} pictures are not {done}, the first: {refused[0]}"
        )


def loaded(checkpoint: str | None, step: int | None) -> load.Pretrained:
    """The trained model of --checkpoint.

    Raises:
        BadInput: if there is none, or it has no head.
    """
    stored_weights.require_trained(checkpoint)
    pretrained = load.load(str(checkpoint), step)
    if pretrained.model.num_classes == 0:
        raise failures.BadInput(
            f"--checkpoint is {checkpoint}, a model without head; fine-tune it on classes first."
        )
    return pretrained


def class_names(path: str | None, pretrained: load.Pretrained) -> Sequence[str]:
    """The names of --class_names, of the model, or numbers."""
    classes = pretrained.model.num_logits
    if path is None:
        return pretrained.class_names or [f"class {label}" for label in range(classes)]
    return names_in(path, classes)


def names_in(path: str, classes: int) -> Sequence[str]:
    """The names of --class_names, for a model of so many classes.

    Raises:
        BadInput: if the file cannot be read or has another number of names.
    """
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


def _pictures(paths: Sequence[str]) -> list[str]:
    """The paths, with the pictures below a folder in its place."""
    found: list[str] = []
    for path in paths:
        root = pathlib.Path(path).expanduser()
        if not root.is_dir():
            found.append(path)
            continue
        below = image_folder.listed(root).pictures
        if not below:
            raise failures.BadInput(
                f"{root.absolute()} holds no pictures; give one that does, or paths of pictures."
            )
        found += [str(root / picture.name) for picture in below]
    return found


def _probabilities(
    paths: Sequence[str], loaded: load.Pretrained, refused: list[failures.BadInput]
) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures and their [classes].

    Args:
        refused: receives why a picture has no probabilities.
    """
    size = min(len(paths), LARGEST_BATCH)
    for start in range(0, len(paths), size):
        group = paths[start : start + size]
        if not (images := readable(group, lambda path: loaded.preprocess(path)[0], refused)):
            continue
        batch = padded(np.stack([image for _, image in images]), size)
        for (path, _), row in zip(images, np.asarray(loaded.probabilities(batch)), strict=False):
            require_numbers(path, row)
            yield path, row


def readable(
    paths: Sequence[str],
    read: Callable[[str], np.ndarray],
    refused: list[failures.BadInput],
) -> list[tuple[str, np.ndarray]]:
    """Paths and what is read of them; `refused` receives why others cannot be read."""
    images: list[tuple[str, np.ndarray]] = []
    for path in paths:
        try:
            images.append((path, read(path)))
        except failures.BadInput as refusal:
            refused.append(refusal)
    return images


def padded(batch: np.ndarray, size: int) -> np.ndarray:
    """A batch with rows of zeros up to a size: batches of one size share a compiled program."""
    return np.pad(batch, [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1))


def require_numbers(path: str, probabilities: np.ndarray) -> None:
    """Refuses probabilities that are NaN, which would sort as the least likely of all."""
    if np.isnan(probabilities).any():
        raise failures.BadInput(
            f"{path} gets probabilities that are NaN; the weights of --checkpoint are not finite "
            "or overflow: give an earlier --step or other weights."
        )


def _best(probabilities: np.ndarray, names: Sequence[str]) -> list[dict[str, typing.Any]]:
    return [
        {"class": it.label, "name": it.name, "probability": it.probability}
        for it in outputs.likeliest(probabilities, names, TOP)
    ]


def _certainty(prediction: dict[str, typing.Any]) -> float:
    return float(prediction["top_5"][0]["probability"])


def _show(found: list[dict[str, typing.Any]], form: str) -> None:
    if form == "json":
        print(json.dumps(found, indent=2))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["image", "rank", "class", "name", "probability"])
        for prediction in found:
            for rank, best in enumerate(prediction["top_5"], 1):
                writer.writerow([prediction["image"], rank, *best.values()])
    else:
        print(_table(found) if len(found) == 1 else _lines(found))


def _table(found: list[dict[str, typing.Any]]) -> str:
    """The likeliest classes of one picture, a line each."""
    (prediction,) = found
    width = max(len(best["name"]) for best in prediction["top_5"])
    lines = [
        f"  {best['probability']:>6.1%}  {best['name']:<{width}}  (label {best['class']})"
        for best in prediction["top_5"]
    ]
    return "\n".join([prediction["image"], *lines])


def _lines(found: list[dict[str, typing.Any]]) -> str:
    """A line for each picture: its two likeliest classes."""
    width = max(len(prediction["image"]) for prediction in found)
    return "\n".join(
        f"{prediction['image']:<{width}}  " + ", ".join(map(_described, prediction["top_5"][:2]))
        for prediction in found
    )


def _described(best: dict[str, typing.Any]) -> str:
    return f"{best['probability']:>6.1%} {best['name']}"


def _draw(
    path: pathlib.Path, found: Sequence[dict[str, typing.Any]], pretrained: load.Pretrained
) -> None:
    """Writes a sheet of pictures as the model saw them, over their two likeliest classes."""
    images = pretrained.preprocess.images([prediction["image"] for prediction in found])
    captions = [
        pictures.Caption(
            [
                *map(_described, prediction["top_5"][:2]),
                str(pathlib.Path(*pathlib.Path(prediction["image"]).parts[-2:])),
            ]
        )
        for prediction in found
    ]
    with files.claimed(path):
        path.write_bytes(pictures.encoded(pictures.page(images, captions), lossless=True))
