"""The curves of a run as one picture, for those without TensorBoard."""

import math
import typing
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from nest_dist.telemetry import pictures

WIDTH, HEIGHT = 560, 320  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 78, 22, 40, 34  # between panel and axes
MOST_POINTS = 1000  # of a curve
FEW_POINTS = 50  # each gets a dot
MOST_TICKS = 6
BLACK, GREY = (40, 40, 40), (225, 225, 225)
COLOURS = ((31, 119, 180), (214, 90, 10))  # RGB: of training, of the evaluation


class Panel(typing.NamedTuple):
    """One pair of axes."""

    title: str
    curves: Mapping[str, str]  # metric by its label
    form: str = "{:g}"  # of a number beside the axis


def panels(split: str, of_sets: bool = False) -> tuple[Panel, ...]:
    """What is drawn of a run whose evaluation has this split.

    Args:
        split: name of the evaluation's.
        of_sets: whether a picture has a set of classes, of which the likeliest one is judged.
    """
    split = "evaluation" if split == "train" else split
    accuracy = {"train": "train/accuracy", split: "eval/top_1"}
    precision = {"train": "train/precision_at_1", split: "eval/precision_at_1"}
    return (
        Panel("loss", {"train": "train/loss", split: "eval/loss"}),
        Panel("precision at one", precision, "{:.0%}")
        if of_sets
        else Panel("accuracy", accuracy, "{:.0%}"),
        Panel("learning rate", {"": "train/learning_rate"}),
        Panel("images/s", {"": "speed/images_per_second"}, "{:,.0f}"),
    )


def draw(lines: Sequence[Mapping[str, typing.Any]], split: str) -> np.ndarray:
    """A picture uint8 [H, W, 3] of the lines of `metrics.jsonl`; what is not finite is left out."""
    of_sets = any("train/precision_at_1" in line for line in lines)
    return sheet(panels(split, of_sets), lines)


def sheet(chosen: Sequence[Panel], lines: Sequence[Mapping[str, typing.Any]]) -> np.ndarray:
    """Panels side by side, two in a row, uint8 [H, W, 3]; `lines` have a step and metrics."""
    last = max((line["step"] for line in lines), default=0) or 1
    drawn = [_panel(panel, lines, last) for panel in chosen]
    if len(drawn) > 1 and len(drawn) % 2:
        drawn.append(np.full_like(drawn[0], 255))
    return np.vstack([np.hstack(drawn[row : row + 2]) for row in range(0, len(drawn), 2)])


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not low < high:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / MOST_TICKS))
    size = next(it * power for it in (1, 2, 5, 10) if (high - low) / (it * power) <= MOST_TICKS)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [number * size for number in range(first, last + 1)]


def labels(values: Sequence[float], form: str) -> list[str]:
    """The values as texts that differ: with more digits than `form` has, where that needs them."""
    texts = [[form.replace(".0", f".{it}").format(x + 0.0) for x in values] for it in range(5)]
    return next((each for each in texts if len(set(each)) == len(each)), texts[-1])


def _panel(panel: Panel, lines: Sequence[Mapping[str, typing.Any]], last: int) -> np.ndarray:
    canvas = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    curves = {label: _points(lines, name) for label, name in panel.curves.items()}
    values = [value for points in curves.values() for _, value in points]
    pictures.write(canvas, panel.title, (LEFT, 26), BLACK, pictures.TEXT_SIZE + 2)
    if not values:
        pictures.write(canvas, "nothing yet", (LEFT, HEIGHT // 2), BLACK)
        return canvas
    low, high = min(values), max(values)
    margin = (high - low) / 20 or abs(high) / 2 or 1.0
    low, high = low - margin, high + margin

    def position(step: float, value: float) -> tuple[int, int]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        return round(x), round(y)

    marks = ticks(low, high)
    for value, text in zip(marks, labels(marks, panel.form), strict=True):
        y = position(0, value)[1]
        cv2.line(canvas, (LEFT, y), (WIDTH - RIGHT, y), GREY, 1)
        pictures.write(canvas, text, (LEFT - 8 - pictures.width_of(text), y + 5), BLACK)
    step_at = LEFT - 16 - pictures.width_of("step"), HEIGHT - 12
    pictures.write(canvas, "step", step_at, BLACK)
    for step in ticks(0, last):
        x, text = position(step, low)[0], f"{step:,.0f}"
        cv2.line(canvas, (x, HEIGHT - BOTTOM), (x, HEIGHT - BOTTOM + 4), BLACK, 1)
        pictures.write(
            canvas,
            text,
            (
                min(x - pictures.width_of(text) // 2, WIDTH - pictures.width_of(text) - 2),
                HEIGHT - 12,
            ),
            BLACK,
        )
    cv2.rectangle(canvas, (LEFT, TOP), (WIDTH - RIGHT, HEIGHT - BOTTOM), BLACK, 1)
    for points, colour in zip(curves.values(), COLOURS, strict=False):
        line = np.array([position(*point) for point in points], np.int32).reshape(-1, 1, 2)
        cv2.polylines(canvas, [line], False, colour, 2, cv2.LINE_AA)
        if len(points) < FEW_POINTS:
            for x, y in line[:, 0]:
                cv2.circle(canvas, (int(x), int(y)), 3, colour, -1, cv2.LINE_AA)
    right = WIDTH - RIGHT
    for label, colour in zip(reversed(curves), COLOURS[len(curves) - 1 :: -1], strict=True):
        right -= pictures.width_of(label) + 14
        pictures.write(canvas, label, (right, 26), colour)
    return canvas


def _points(lines: Sequence[Mapping[str, typing.Any]], name: str) -> list[tuple[int, float]]:
    """Step and value of a metric, thinned out evenly; NaN is null in JSON."""
    points = [
        (line["step"], float(line[name]))
        for line in lines
        if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
    ]
    every = math.ceil(len(points) / MOST_POINTS)
    return points[::-1][:: every or 1][::-1]  # the last one stays
