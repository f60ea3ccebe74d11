"""`nest-dist inspect-data`: what the pipeline makes of the pictures, and which part is slow."""

import dataclasses
import itertools
import pathlib
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import checks, failures
from nest_dist.commands import cli, configuration
from nest_dist.commands import run as runs
from nest_dist.data import batch, contact_sheet, decode, preparation
from nest_dist.train import inputs, losses, step

MEASURED_PICTURES = 200
MEASURED_SECONDS = 5.0
DEVICE_ROUNDS = 3


def run(options: cli.Options) -> None:
    """Writes OUTPUT/batch_STEP.png and prints a table of speeds."""
    if not options.output:
        raise failures.BadInput("--output is not given; give a folder for the contact sheet.")
    checks.in_range("--images", options.images, 1)
    checks.in_range("--batch_step", options.batch_step, 0)
    configured = configuration.load(options.gin_file or (), options.gin_bindings or ())
    folder = pathlib.Path(options.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failures.BadInput(
            f"--output is {folder}, which cannot be made ({error.strerror}); give another folder."
        ) from None
    source = configured.training_data.source.open()
    path = folder / f"batch_{options.batch_step}.png"
    sheet = contact_sheet.draw(*_seen(configured, source, options.batch_step, options.images))
    path.write_bytes(decode.encode(sheet, "png"))
    print(f"{path}: the first pictures of the batch of step {options.batch_step}, left to right")
    for line in _table(configured, source):
        print(line)


def _seen(
    run: runs.Run, source: batch.Source | batch.Stream, at: int, images: int
) -> tuple[list[str], list[list[contact_sheet.Cell]]]:
    """Titles and rows: a picture before and after each transform, on the host and the device."""
    data, names = run.training_data, source.class_names
    # Mixing pairs neighbours.
    taken = min(images + images % 2, run.global_batch)
    prepare = preparation.Preparation(data.transforms, run.seed, len(names))
    stored = data.examples(source, seed=run.seed, global_batch=run.global_batch, step=at)
    titles = ["picture", *(type(each).__name__ for each in data.transforms)]
    rows, labels = [], []
    for row, example in enumerate(itertools.islice(stored, taken)):
        labels.append(int(example["label"]))
        made = prepare.stages(example, at * run.global_batch + row)
        rows.append([contact_sheet.Cell(image, names[labels[-1]]) for image in made])
    last = np.stack([cells[-1].image for cells in rows])
    parts = dict(_device_parts(run))
    titles += parts
    for seen, targets in _on_device(run, parts.values(), len(names), at)(last, np.array(labels)):
        pixels, shares = np.asarray(run.pixels.inverted(seen)), np.asarray(targets)
        for row, cells in enumerate(rows):
            cells.append(contact_sheet.Cell(pixels[row], _mixture(shares[row], names)))
    return titles, rows[:images]


def _device_parts(run: runs.Run) -> Iterator[tuple[str, inputs.Inputs]]:
    """Each transform of the device, together with those before it."""
    whole = run.inputs()
    part = inputs.Inputs(whole.pixels)
    for field in ("color_jitter", "random_erasing", "mixing"):
        if (transform := getattr(whole, field)) is not None:
            part = dataclasses.replace(part, **{field: transform})
            yield type(transform).__name__, part


def _on_device(
    run: runs.Run, parts: Iterable[inputs.Inputs], classes: int, at: int
) -> Callable[..., list[tuple[jax.Array, jax.Array]]]:
    """A function from a batch to what each of the parts makes of it in a step."""
    key, _ = step.keys(run.seed, at)

    def made(images: jax.Array, labels: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        targets = losses.smoothed_targets(labels, classes, 0.0)
        return [part(images, targets, key, jnp.arange(len(labels))) for part in parts]

    return jax.jit(made)


def _mixture(target: np.ndarray, names: Sequence[str]) -> str:
    """Such as "0.7 cat, 0.3 dog"."""
    classes = [int(label) for label in np.argsort(-target) if target[label] > 0.005][:2]
    if len(classes) == 1:
        return names[classes[0]]
    return ", ".join(f"{target[label]:.2f} {names[label]}" for label in classes)


def _table(run: runs.Run, source: batch.Source | batch.Stream) -> Iterator[str]:
    """Lines with the time of each stage, on one thread, and of the pipeline as configured."""
    seconds, pictures = _stage_seconds(run, source)
    total = sum(seconds.values())
    yield f"{'stage':<22}{'ms/image':>10}{'images/s':>10}{'share':>8}"
    for name, spent in seconds.items():
        each = max(spent / pictures, 1e-9)
        yield f"{name:<22}{1000 * each:>10.3f}{1 / each:>10.0f}{spent / total:>8.0%}"
    each = total / pictures
    yield f"{'one thread, in all':<22}{1000 * each:>10.3f}{1 / each:>10.0f}"
    data = run.training_data
    speed = _pipeline_speed(run, source)
    title = f"{data.threads} threads, {data.workers} workers"
    yield f"{title:<22}{1000 / speed:>10.3f}{speed:>10.0f}"
    speed = _device_speed(run, source)
    title = f"on {jax.devices()[0].device_kind}"
    yield f"{title:<22}{1000 / speed:>10.3f}{speed:>10.0f}"


def _stage_seconds(
    run: runs.Run, source: batch.Source | batch.Stream
) -> tuple[dict[str, float], int]:
    """Seconds by stage over some pictures, read as a run reads them, and how many those were."""
    data = run.training_data
    prepare = preparation.Preparation(data.transforms, run.seed, len(source.class_names))
    names = ["read", "decode", *(type(each).__name__ for each in data.transforms)]
    seconds = dict.fromkeys(names, 0.0)
    stored = data.examples(source, seed=run.seed, global_batch=run.global_batch, step=0)
    limit = time.perf_counter() + MEASURED_SECONDS
    position = 0
    while position < MEASURED_PICTURES and (position < 2 or time.perf_counter() < limit):
        before = time.perf_counter()
        example = next(stored)
        stages = prepare.stages(example, position)
        for name in names:
            if name != "read":
                next(stages)
            now = time.perf_counter()
            if position:  # the first picture also pays for imports and caches
                seconds[name] += now - before
            before = now
        position += 1
    return seconds, position - 1


def _pipeline_speed(run: runs.Run, source: batch.Source | batch.Stream) -> float:
    """Images a second of the pipeline of one process, once it is under way."""
    rows = np.arange(run.global_batch)
    batches = run.training_data.batches(
        source, seed=run.seed, global_batch=run.global_batch, rows=rows, first_step=0
    )
    try:
        next(batches)
        start, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - start < MEASURED_SECONDS:
            next(batches)
            count += 1
        return count * run.global_batch / (time.perf_counter() - start)
    finally:
        batches.close()


def _device_speed(run: runs.Run, source: batch.Source | batch.Stream) -> float:
    """Images a second of the device's share of the recipe, on one device."""
    shape = run.training_data.image_shape(source)
    images = jnp.zeros((run.global_batch, *shape), jnp.uint8)
    labels = jnp.zeros(run.global_batch, jnp.int32)
    made = _on_device(run, [run.inputs()], len(source.class_names), 0)
    jax.block_until_ready(made(images, labels))
    start = time.perf_counter()
    for _ in range(DEVICE_ROUNDS):
        result: typing.Any = made(images, labels)
    jax.block_until_ready(result)
    return DEVICE_ROUNDS * run.global_batch / (time.perf_counter() - start)
