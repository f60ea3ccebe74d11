"""`nest-dist inspect-data`: what the pipeline makes of the pictures, and which stage is slow."""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nest_dist.base import checks, failures, files, picture_grid
from nest_dist.commands import cli
from nest_dist.data import batch, classes, contact_sheet, targets
from nest_dist.data.sources import retries
from nest_dist.data.transforms import decode
from nest_dist.experiment import gallery
from nest_dist.experiment import run as runs
from nest_dist.train import inputs, objectives, step

MEASURED_PICTURES = 200
MEASURED_SECONDS = 5.0
DEVICE_ROUNDS = 3
# Share of a thread's time without a core, from which a speed says little.
DISTURBED = 0.1


def run(options: cli.Options) -> None:
    """Writes OUTPUT/batch_STEP.png and prints a table of speeds."""
    if not options.output:
        raise failures.BadInput("--output is not given; give a folder for the contact sheet.")
    checks.in_range("--images", options.images, 1)
    checks.in_range("--batch_step", options.batch_step, 0, np.iinfo(np.int32).max)
    configured = runs.load(options.gin_file or (), options.gin_bindings or ())
    folder = files.output_folder(options.output)
    source = retries.opened("the training split", configured.data.source)
    path = folder / f"batch_{options.batch_step}.png"
    sheet = contact_sheet.draw(*_seen(configured, source, options.batch_step, options.images))
    with files.claimed(path):
        path.write_bytes(decode.encode(sheet, "png"))
    each = f", {configured.data.views} views of each" if configured.data.views > 1 else ""
    batch_name = f"the batch of step {options.batch_step}"
    print(f"{path}: the first pictures of {batch_name}{each}, left to right")
    for line in _table(configured, source):
        print(line)


def _seen(
    run: runs.Run, source: batch.Source, at: int, images: int
) -> tuple[list[str], list[list[picture_grid.Cell]]]:
    """Titles and rows: a picture before and after each transform, on the host and the device.

    Each view of a picture has a row.
    """
    data, names, views = run.data, source.class_names, run.data.views
    group = run.step.inputs.mixing_group
    count = min(-(-images // group) * group, run.global_batch)
    stored = data.examples(source, seed=run.seed, global_batch=run.global_batch, step=at)
    titles = ["picture", *(type(transform).__name__ for transform in data.transforms)]
    rows, labels = [], []
    form = targets.form_of(run.step.objective.needs)
    for row, example in enumerate(itertools.islice(stored, count)):
        caption = classes.few([names[label] for label in example["labels"]]) or "none"
        for view in range(views):
            labels.append(form.of(example, len(names)))
            _, *changed = data.stages(example, run.seed, at * run.global_batch + row, view)
            stages = decode.pixels(example["image"], decode.of(data.transforms)), *changed
            rows.append([picture_grid.Cell(image, [caption]) for image in stages])
    last = np.stack([cells[-1].image for cells in rows])
    recipes = dict(_device_stages(run))
    titles += recipes
    on_device = _on_device(run, recipes.values(), len(names), at)
    for seen, mixed in on_device(last, {form.name: np.array(labels)}):
        pixels, shares = np.asarray(run.step.inputs.normalize.inverted(seen)), np.asarray(mixed)
        for row, cells in enumerate(rows):
            caption = ", ".join(gallery.label_text(shares[row], names))
            cells.append(picture_grid.Cell(pixels[row], [caption]))
    return titles, rows[: images * views]


def _device_stages(run: runs.Run) -> Iterator[tuple[str, inputs.Inputs]]:
    """The name of each transform of the device, and a recipe that ends with it."""
    recipe = inputs.Inputs(run.step.inputs.normalize)
    for field in ("color_jitter", "random_erasing", "mixing"):
        if (transform := getattr(run.step.inputs, field)) is not None:
            recipe = dataclasses.replace(recipe, **{field: transform})
            yield type(transform).__name__, recipe


def _on_device(
    run: runs.Run, recipes: Iterable[inputs.Inputs], num_classes: int, at: int
) -> Callable[..., list[tuple[jax.Array, jax.Array]]]:
    """A function from a batch to its inputs and targets at a step, by each of the recipes."""
    key, _ = step.keys(run.seed, at)

    def apply(images: jax.Array, labels: objectives.Batch) -> list[tuple[jax.Array, jax.Array]]:
        shares = run.step.objective.shares(labels, num_classes)
        return [recipe(images, shares, key, jnp.arange(len(images))) for recipe in recipes]

    return jax.jit(apply)


def _table(run: runs.Run, source: batch.Source) -> Iterator[str]:
    """Lines with the time of each stage, on one thread, and of the pipeline as configured."""
    waited = _waiting_seconds()
    seconds, pictures = _stage_seconds(run, source)
    total = sum(seconds.values())
    disturbed = (_waiting_seconds() - waited) / max(total, 1e-9)
    yield f"{'stage':<22}{'ms/image':>10}{'images/s':>10}{'share':>8}  gives"
    for (name, spent), spec in zip(seconds.items(), run.data.specs(source), strict=True):
        speed = pictures / max(spent, 1e-9)
        yield f"{name:<22}{1000 / speed:>10.3f}{speed:>10.0f}{spent / total:>8.0%}  {spec}"
    speeds = {
        "one thread, in all": pictures / total,
        f"{run.data.threads} threads, {run.data.workers} workers": _pipeline_speed(run, source),
        f"on {jax.devices()[0].device_kind}": _device_speed(run, source),
    }
    for name, speed in speeds.items():
        yield f"{name:<22}{1000 / speed:>10.3f}{speed:>10.0f}"
    if disturbed > DISTURBED:
        yield (
            f"other work held the cores for {disturbed:.0%} of the time of one thread; measure "
            "again when it is done"
        )


def _waiting_seconds() -> float:
    """How long this thread was ready to run and had no core; 0 where the system does not tell."""
    try:
        return int(pathlib.Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _stage_seconds(run: runs.Run, source: batch.Source) -> tuple[dict[str, float], int]:
    """Seconds by stage over some pictures, read as a run reads them, and their number."""
    data = run.data
    names = ["read", *(type(transform).__name__ for transform in data.transforms)]
    seconds = dict.fromkeys(names, 0.0)
    stored = data.examples(source, seed=run.seed, global_batch=run.global_batch, step=0)
    limit = time.perf_counter() + MEASURED_SECONDS
    position = 0
    while position < MEASURED_PICTURES and (position < 2 or time.perf_counter() < limit):
        before = time.perf_counter()
        example = next(stored)
        for view in range(data.views):
            stages = data.stages(example, run.seed, position, view)
            for name in names:
                next(stages)
                now = time.perf_counter()
                if position:  # the first picture also pays for imports and caches
                    seconds[name] += now - before
                before = now
        position += 1
    return seconds, position - 1


def _pipeline_speed(run: runs.Run, source: batch.Source) -> float:
    """Images a second of the pipeline of one process, after its first batch."""
    rows = np.arange(run.global_batch)
    batches = run.data.batches(
        source,
        seed=run.seed,
        global_batch=run.global_batch,
        rows=rows,
        labels=targets.form_of(run.step.objective.needs),
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


def _device_speed(run: runs.Run, source: batch.Source) -> float:
    """Images a second of the device's share of the recipe, on one device."""
    spec = run.data.specs(source)[-1]
    count = run.global_batch * spec.views
    images = jnp.zeros((count, spec.height, spec.width, spec.channels), jnp.uint8)
    form, num_classes = targets.form_of(run.step.objective.needs), len(source.class_names)
    labels = {form.name: jnp.asarray(form.empty(count, num_classes))}
    apply = _on_device(run, [run.step.inputs], num_classes, 0)
    jax.block_until_ready(apply(images, labels))
    start = time.perf_counter()
    jax.block_until_ready([apply(images, labels) for _ in range(DEVICE_ROUNDS)])
    return DEVICE_ROUNDS * run.global_batch / (time.perf_counter() - start)
