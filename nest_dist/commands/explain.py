"""`nest-dist explain`: where in a picture a model finds the evidence for its classes."""

import json
import pathlib
import typing
from collections.abc import Iterator, Sequence

import numpy as np

from nest_dist.base import checks, failures, files
from nest_dist.commands import cli, predict
from nest_dist.data.transforms import decode
from nest_dist.explain import drawing, gradcat, views
from nest_dist.pretrained import load

LARGEST_BATCH = 4
FOLDER = "explanations"


def run(options: cli.Options) -> None:
    """Draws a sheet for each picture, and prints classes and leaves."""
    if not options.arguments:
        raise failures.BadInput("explain got no picture; give one path or several.")
    checks.one_of("--format", options.format, predict.FORMATS)
    loaded = predict.loaded(options.checkpoint, options.step)
    gradcat.require_explainable(loaded.model)
    names = predict.class_names(options.class_names, loaded)
    label = _label(getattr(options, "class"), names)
    folder = files.output_folder(options.output or FOLDER)
    refused: list[failures.BadInput] = []
    found: list[dict[str, typing.Any]] = []
    for path, image, seen in _seen(options.arguments, loaded, label, refused):
        name = _free_name(pathlib.Path(path).stem, [each["sheet"] for each in found])
        sheet = drawing.sheet(image, seen, loaded.model, names, pathlib.Path(path).name)
        with files.claimed(folder / name):
            (folder / name).write_bytes(decode.encode(sheet, "png"))
        classes = _described(seen, loaded, names)
        found.append({"image": path, "sheet": str(folder / name), "classes": classes})
    if found or options.format == "json":
        print(json.dumps(found, indent=2) if options.format == "json" else _table(found))
    predict.require_none(refused, len(options.arguments), "explained")


def _seen(
    paths: Sequence[str],
    loaded: load.Pretrained,
    label: int | None,
    refused: list[failures.BadInput],
) -> Iterator[tuple[str, np.ndarray, views.Views]]:
    """Path, uint8 image and views of each picture that can be read."""
    images = predict.readable(paths, lambda path: loaded.preprocess.images([path])[0], refused)
    size = min(len(images), LARGEST_BATCH)
    for start in range(0, len(images), max(size, 1)):
        group = images[start : start + size]
        batch = loaded.preprocess([image for _, image in group])
        seen = views.views(
            loaded.model,
            loaded.variables,
            predict.padded(batch, size),
            label,
            probabilities=loaded.of_logits,
        )
        for row, (path, image) in enumerate(group):
            predict.require_numbers(path, seen.probabilities[row])
            yield path, image, views.of_image(seen, row)


def _label(given: str | None, names: Sequence[str]) -> int | None:
    """The label of a class given by name, or by number where no class has that name."""
    if given is None or given in names:
        return None if given is None else list(names).index(given)
    if given.isdecimal() and int(given) < len(names):
        return int(given)
    checks.one_of("--class", given, names)
    return None


def _free_name(stem: str, taken: Sequence[str]) -> str:
    """STEM.png, or with a number where pictures of several folders have one name."""
    used = {pathlib.Path(path).name for path in taken}
    candidates = [f"{stem}.png", *(f"{stem}_{number}.png" for number in range(2, len(used) + 2))]
    return next(name for name in candidates if name not in used)


def _described(
    seen: views.Views, loaded: load.Pretrained, names: Sequence[str]
) -> list[dict[str, typing.Any]]:
    """Classes with their probabilities, logits and paths, from the last level to the leaf."""
    found = []
    for index, label in enumerate(seen.gradcat.classes[0]):
        path = [
            {
                "level": level + 1,
                "block": int(block),
                "box": gradcat.box(loaded.model, level, int(block))._asdict(),
            }
            for level, block in enumerate(seen.gradcat.path[0, index])
        ]
        found.append(
            {
                "class": int(label),
                "name": names[label],
                "probability": float(seen.probabilities[0, label]),
                "logit": float(seen.gradcat.logits[0, index]),
                "path": path[::-1],
            }
        )
    return found


def _table(found: list[dict[str, typing.Any]]) -> str:
    lines = []
    for explained in found:
        lines.append(f"{explained['image']}: {explained['sheet']}")
        width = max(len(each["name"]) for each in explained["classes"])
        for each in explained["classes"]:
            box = gradcat.Box(**each["path"][-1]["box"])
            lines.append(
                f"  {each['probability']:>6.1%}  {each['name']:<{width}}  "
                f"rows {box.top}-{box.top + box.height - 1}, "
                f"columns {box.left}-{box.left + box.width - 1}"
            )
    return "\n".join(lines)
