"""What classes were taken for which: tables, pictures and the examples themselves."""

import csv
import functools
import io
import math
import pathlib
import typing
from collections.abc import Mapping, Sequence

import numpy as np

from nest_dist.base import files
from nest_dist.data import batch
from nest_dist.data.sources import retries
from nest_dist.experiment import gallery, open_evaluation
from nest_dist.telemetry import confusion as drawings
from nest_dist.telemetry import pictures, records
from nest_dist.telemetry import report as reports
from nest_dist.train import evaluators
from nest_dist.train.evaluators import confusion

FOLDER = "evaluations"
LISTED = 20  # classes and pairs in a text


class Drawn(typing.NamedTuple):
    """A picture uint8 [H, W, 3], and whether PNG is the format for it."""

    image: np.ndarray
    lossless: bool


def record(
    report: reports.Report,
    workdir: pathlib.Path,
    opened: open_evaluation.OpenEvaluation,
    confused: evaluators.Confused,
    step: int,
) -> None:
    """Records text and pictures, and writes the tables of the last evaluation into the workdir."""
    prefix, names = opened.config.prefix, opened.class_names
    report.text(f"{prefix}confusion", confusion.table(confused, names, LISTED), step)
    for name, picture in drawn(opened, confused).items():
        report.picture(f"{prefix}{name}", picture.image, picture.lossless, step)
    folder = workdir / FOLDER / opened.config.name
    with records.tolerated(folder):
        write(folder, tables(confused, names))


def write(
    folder: pathlib.Path, texts: Mapping[str, str], images: Mapping[str, Drawn] | None = None
) -> None:
    """Writes texts into files of these names, and pictures as PNG or JPEG, durably."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        files.write_text_durably(folder / name, text)
    for name, (image, lossless) in (images or {}).items():
        data = pictures.encoded(image, lossless)
        path = folder / f"{name}.{'png' if lossless else 'jpg'}"
        files.write_durably(path, functools.partial(_write, data))


def tables(confused: evaluators.Confused, names: Sequence[str]) -> dict[str, str]:
    """CSV by the name of its file."""
    return {
        "accuracy_by_class.csv": _csv(confusion.rows_by_class(confused, names)),
        "confusion.csv": _csv(confusion.rows_of_pairs(confused, names)),
    }


def drawn(
    opened: open_evaluation.OpenEvaluation, confused: evaluators.Confused
) -> dict[str, Drawn]:
    """The matrix, and the most confused pairs if there are any."""
    names, wrong = opened.class_names, confusion.wrong_pairs(confused)
    labels = list(range(len(names)))
    if len(names) > drawings.MOST_CLASSES:
        both = [label for pair in wrong for label in (pair.label, pair.predicted)]
        involved = [label for label in dict.fromkeys(both) if label >= 0]
        labels = sorted(involved[: drawings.MOST_CLASSES])
    matrix = drawings.draw_matrix(
        confusion.matrix(confused, labels), [names[label] for label in labels]
    )
    done = {"confusion": Drawn(matrix, True)}
    H, W, _ = opened.config.data.specs(opened.source)[-1].shape
    side = math.isqrt(pictures.room(H, W))  # pairs, and examples of each
    shown = (_examples(opened, confused, pair, side) for pair in wrong[:side])
    if rows := sorted(filter(None, shown), key=len, reverse=True):
        small = H < pictures.SMALLEST_SIDE
        done["confused_pairs"] = Drawn(drawings.draw_pairs(rows), small)
    return done


def _examples(
    opened: open_evaluation.OpenEvaluation,
    confused: evaluators.Confused,
    pair: confusion.Pair,
    most: int,
) -> list[tuple[np.ndarray, pictures.Caption]]:
    """The first examples of a pair, as the model saw them; corrupt ones are left out."""
    chosen = (confused.labels == pair.label) & (confused.predicted == pair.predicted)
    found = []
    for example_id in confused.ids[chosen][:most].tolist():
        try:
            example = retries.example(opened.source, example_id)
            *_, image = opened.config.data.stages(example, 0, example_id)
        except batch.Corrupt:
            continue
        caption = gallery.judged((pair.label,), pair.predicted, opened.class_names)
        found.append((image, caption))
    return found


def _write(data: bytes, path: pathlib.Path) -> None:
    path.write_bytes(data)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
