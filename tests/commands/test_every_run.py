"""Every shipped run holds what it promises, and takes a step."""

import dataclasses
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import commands, family

from nest_dist.base import failures, tree_paths
from nest_dist.config import run_json, shipped
from nest_dist.data import pipeline
from nest_dist.data.transforms import crop, randaugment
from nest_dist.experiment import build, changes, teachers
from nest_dist.experiment import run as runs
from nest_dist.model import parameters
from nest_dist.train import inputs, step
from nest_dist.train.augment import erasing, jitter, mixing
from nest_dist.train.objectives import (
    distillation,
    masked_images,
    multi_label,
    pretext,
    two_views,
)

RUNS = shipped.names("runs")
# Their steps differ by numbers alone from those of runs that are stepped beside them.
ALIKE = (
    "runs/nest_base_imagenet21k_finetuned.gin",
    "runs/nest_base_imagenet_lamb_16384.gin",
    "runs/nest_tiny_imagenet_distilled.gin",
)
STEPPED = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in RUNS]
SIZES = ("tiny", "small", "base")
LEARNING_RATE_PER_256 = 2.5e-4

# What all official recipes have in common.
RANDOM_ERASING = erasing.RandomErasing(probability=0.25, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))
MIXING = mixing.Mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mixup_share=0.5)
RAND_AUGMENT = {
    "operations": 2,
    "magnitude": 9.0,
    "magnitude_deviation": 0.5,
    "probability": 0.5,
}
# Of the three sizes.
MODELS = {
    "imagenet": {
        "image_size": (224, 224, 224),
        "patch_size": (4, 4, 4),
        "dim": (96, 96, 128),
        "heads": (3, 3, 4),
        "num_hierarchies": (3, 3, 3),
        "block_repeats": ((2, 2, 8), (2, 2, 20), (2, 2, 20)),
        "widen": (True, True, True),
        "multi_query": (False, False, False),
        "stochastic_depth": (0.2, 0.3, 0.5),
    },
    "cifar": {
        "image_size": (32, 32, 32),
        "patch_size": (1, 1, 1),
        "dim": (192, 384, 768),
        "heads": (3, 6, 12),
        "num_hierarchies": (4, 4, 4),
        "block_repeats": ((3, 3, 3, 3),) * 3,
        "widen": (False, False, False),
        "multi_query": (True, True, True),
        "stochastic_depth": (0.1, 0.1, 0.1),
    },
}
CIFAR_PER_DEVICE_BATCHES = (192, 64, 32)
CIFAR_DEVICES = (1, 2, 2)
CIFAR_PIXELS = {
    10: inputs.Normalize((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: inputs.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def assert_official(run, family, size, num_classes):
    index = SIZES.index(size)
    for field, values in MODELS[family].items():
        assert getattr(run.model, field) == values[index], field
    assert run.model.num_classes == num_classes
    assert run.num_epochs == 300
    assert run.step.objective.label_smoothing == 0.1
    assert run.step.inputs.random_erasing == RANDOM_ERASING
    assert run.step.inputs.mixing == MIXING
    optimizer = run.step.optimizer
    assert type(optimizer).__name__ == "AdamW"
    assert optimizer.peak_learning_rate == pytest.approx(
        LEARNING_RATE_PER_256 * run.global_batch / 256
    )
    assert (optimizer.weight_decay, run.step.schedule.final_learning_rate) == (0.05, 0)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.999, 1e-8)
    assert parameters.NO_WEIGHT_DECAY == ("*/position_embedding",)


@pytest.mark.parametrize("size", SIZES)
def test_the_imagenet_runs_hold_the_official_recipe(size):
    run = runs.load([f"runs/nest_{size}_imagenet.gin"], [])
    assert_official(run, "imagenet", size, 1000)
    assert run.global_batch == 1024
    assert run.step.schedule.warmup_epochs == 20
    assert run.step.inputs.color_jitter == jitter.ColorJitter(
        strength=0.3, probability=0.8, grey_probability=0.2
    )
    assert run.data.transforms == (
        crop.RandomResizedCrop(side=224, area=(0.05, 1.0), aspect=(0.75, 1.33)),
        crop.Flip(probability=0.5),
        randaugment.RandAugment(translation=100, **RAND_AUGMENT),
    )
    assert run.evaluation.data.transforms == (crop.ResizedCentreCrop(side=224, shorter_side=256),)
    assert run.step.inputs.normalize == inputs.Normalize(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize(("classes", "size"), list(itertools.product((10, 100), SIZES)))
def test_the_cifar_runs_hold_the_official_recipe(classes, size):
    run = runs.load([f"runs/cifar{classes}_nest_{size}.gin"], [])
    assert_official(run, "cifar", size, classes)
    index = SIZES.index(size)
    assert run.global_batch == CIFAR_PER_DEVICE_BATCHES[index] * CIFAR_DEVICES[index]
    assert run.step.schedule.warmup_epochs == 5
    assert run.step.inputs.color_jitter is None
    assert run.data.transforms == (
        crop.PaddedCrop(side=32, padding=2),
        crop.Flip(probability=0.5),
        randaugment.RandAugment(translation=10, **RAND_AUGMENT),
    )
    assert run.evaluation.data.transforms == (crop.ResizedCentreCrop(side=32, shorter_side=32),)
    assert run.step.inputs.normalize == CIFAR_PIXELS[classes]


def test_larger_batches_of_lamb_have_rates_by_their_roots_and_21k_the_recipe_of_swin():
    small, large = (
        runs.load([f"runs/nest_base_imagenet_lamb_{batch}.gin"], []) for batch in (4096, 16384)
    )
    rates = [run.step.optimizer.peak_learning_rate for run in (small, large)]
    assert rates[1] / rates[0] == (large.global_batch / small.global_batch) ** 0.5 == 2
    whole = runs.load(["runs/nest_base_imagenet21k.gin"], [])
    assert (whole.num_epochs, whole.global_batch) == (90, 4096)
    assert (whole.step.optimizer.peak_learning_rate, whole.step.optimizer.weight_decay) == (
        1e-3,
        0.01,
    )
    assert whole.data.source.num_classes == whole.model.num_classes == 21841
    tuned = runs.load(["runs/nest_base_imagenet21k_finetuned.gin"], [])
    assert tuned.init_from == "workdirs/nest_base_imagenet21k"
    assert tuned.model == runs.load(["runs/nest_base_imagenet.gin"], []).model


@pytest.mark.parametrize("size", SIZES)
def test_the_masked_runs_hold_the_recipe_of_simmim_and_are_tuned_by_the_official_one(size):
    masked = runs.load([f"runs/nest_{size}_imagenet_masked.gin"], [])
    objective, optimizer = masked.step.objective, masked.step.optimizer
    assert (objective.unit, objective.share) == (32, 0.6)
    assert (optimizer.peak_learning_rate, optimizer.weight_decay) == (8e-4, 0.05)
    assert (masked.num_epochs, masked.global_batch) == (100, 2048)
    assert masked.data.transforms == (
        crop.RandomResizedCrop(side=224, area=(0.67, 1.0), aspect=(0.75, 1.33)),
        crop.Flip(probability=0.5),
    )
    tuned = runs.load([f"runs/nest_{size}_imagenet_finetuned.gin"], [])
    official = runs.load([f"runs/nest_{size}_imagenet.gin"], [])
    assert tuned.init_from == f"workdirs/nest_{size}_imagenet_masked"
    assert tuned.step.parameters.layer_decay == 0.8
    assert (tuned.num_epochs, tuned.global_batch) == (100, 2048)
    assert tuned.model == official.model
    assert (tuned.data, tuned.step.inputs) == (official.data, official.step.inputs)
    assert tuned.step.objective == official.step.objective


def shrunk(name, *more):
    """The run, and the same with its recipe on a model and on data of a few bytes."""
    whole = runs.load([name], [])
    bindings = [
        f"Run.global_batch = {2 * jax.device_count()}",
        "NesT.image_size = 8",
        "NesT.patch_size = 4",
        "NesT.dim = 4",
        "NesT.heads = 1",
        "NesT.num_hierarchies = 1",
        "NesT.block_repeats = (1,)",
        f"Synthetic.num_channels = {whole.model.num_channels}",
        "image_side = 8",
        "train/Synthetic.num_examples = 64",
        "evaluate/Synthetic.num_examples = 64",
    ]
    transforms = (*whole.data.transforms, *whole.evaluation.data.transforms)
    sides = {type(each).__name__ for each in transforms if hasattr(each, "side")}
    bindings += [f"{each}.side = 8" for each in sides]
    if isinstance(whole.step.objective, masked_images.MaskedImages):
        bindings.append("MaskedImages.unit = 4")
    if whole.model.num_classes is None:  # noise has none to count
        bindings.append("num_classes = 3")
    bindings += more
    return whole, runs.load([name, "data/synthetic.gin"], bindings)


@pytest.mark.parametrize("name", STEPPED)
def test_every_run_takes_a_step(name):
    whole, run = shrunk(name)
    same = whole.step
    if isinstance(same.objective, masked_images.MaskedImages):
        same = dataclasses.replace(same, objective=masked_images.MaskedImages(unit=4))
    assert run.step == same
    assert len(run.data.transforms) == len(whole.data.transforms)
    assert_takes_a_step(run)


def assert_takes_a_step(run):
    wired = build.build(run, teacher=constant_teacher)
    lowered = wired.traced_train_step().lower()
    compiled = lowered.compile({"xla_backend_optimization_level": "0"})  # in a third of the time
    batches = wired.training_batches(0)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), wired.state_shapes
    )
    state, metrics = wired.taught(compiled)(zeros, next(batches))
    batches.close()
    assert state.step == 1
    assert metrics["train/loss"] == pytest.approx(loss_of_zeros(run), rel=1e-5)


def loss_of_zeros(run):
    """The loss of parameters that are all zero."""
    objective = run.step.objective
    if isinstance(objective, two_views.TwoViews):
        # All features are alike, in both views.
        return 2 * objective.variance * (1 - two_views.VARIANCE_EPSILON**0.5)
    if isinstance(objective, masked_images.MaskedImages):
        return mean_of_hidden_pixels(run)
    # Every class has the same chance, whatever the picture.
    if isinstance(objective, multi_label.MultiLabel):
        return run.model.num_classes * math.log(2)
    if isinstance(objective, distillation.Distillation):
        logits = constant_logits(run.model.num_classes) / objective.temperature
        taught = np.exp(logits) / np.exp(logits).sum()
        apart = (taught * np.log(run.model.num_classes * taught)).sum()
        return objective.temperature**2 * apart
    return math.log(run.model.num_classes)


def constant_logits(num_classes):
    return np.arange(num_classes) % 5.0


def constant_teacher(run):
    """A teacher that says the same of every picture."""
    params = jax.tree.map(np.zeros_like, family.random_params(run.model))
    params["head"]["bias"] = np.float32(constant_logits(run.model.num_classes))
    flat = tree_paths.flatten(params)
    return teachers.TeacherWeights("it", run.model, flat, run.step.inputs.normalize, ())


def mean_of_hidden_pixels(run):
    """Of the absolute values of the first batch, since zeros paint black."""
    rows = np.arange(run.global_batch)
    source = run.data.source.open()
    batches = run.data.batches(source, global_batch=len(rows), rows=rows, seed=run.seed)
    images = run.step.inputs.normalize(next(batches)["image"])
    batches.close()
    key = jax.random.fold_in(step.keys(run.seed, 0)[0], pretext.OF_TASK)
    hidden = run.step.objective.hidden(run.model, key, rows)
    pixels = hidden.repeat(run.model.patch_size, 1).repeat(run.model.patch_size, 2)
    return np.abs(np.asarray(images))[np.asarray(pixels)].mean()


@pytest.fixture
def official(tmp_path):
    """A run of NesT-T by the recipe that is official to the line."""
    path = tmp_path / "official.gin"
    names = ("data/array_record", "model/nest_tiny", "recipe/imagenet_official")
    lines = [f"include '{name}.gin'" for name in (*names, "mesh/data_parallel")]
    path.write_text("\n".join([*lines, "data_folder = 'data/imagenet'", "num_classes = 1000\n"]))
    return str(path)


def test_the_official_recipe_differs_from_the_shipped_one_in_what_is_not_official(official):
    before, after = (
        run_json.dump(runs.load([name], [])) for name in ("runs/nest_tiny_imagenet.gin", official)
    )
    found = {change.binding: change.after for change in changes.between(before, after)}
    assert found == {
        "Run.new_head": "'zeros'",
        "Cosine.first_step": "1",
        "RandomResizedCrop.rounding": "'down'",
        "RandAugment.rounding": "'down'",
        "ColorJitter.order": "'picture'",
        "ColorJitter.rounding": "'down'",
        "Inputs.mixing": "@GroupMixing()",
        "GroupMixing.rows": "64",
        "Mixing.mixup_share": None,
    }


def test_the_official_recipe_takes_a_step(official):
    _, run = shrunk(official, "GroupMixing.rows = 2")
    assert_takes_a_step(run)


def test_there_is_a_file_for_each_source():
    folder = commands.TOP / "nest_dist/data/sources"
    sources = [
        path.stem for path in folder.glob("*.py") if "@settings.register\n" in path.read_text()
    ]
    assert len(sources) > 5
    named = "".join(path.read_text() for path in (commands.TOP / "gin/data").glob("*.gin"))
    for source in {*sources} - {"mixture", "range_cache"}:  # of other sources
        assert f"import nest_dist.data.sources.{source}\n" in named


def test_a_later_file_replaces_a_part_of_an_earlier_one():
    run = runs.load(["runs/quickstart.gin", "data/synthetic.gin"], ["Synthetic.num_channels = 1"])
    assert type(run.data.source).__name__ == "Synthetic"
    assert isinstance(run.data, pipeline.TrainingData)
    assert len(run.data.transforms) == 1


def test_what_the_last_file_binds_in_vain_is_refused(tmp_path):
    extra = pathlib.Path(tmp_path / "extra.gin")
    extra.write_text("Flip.probability = 0.1\n")
    with pytest.raises(failures.BadInput, match=r"Flip.probability is set and noth"):
        runs.load(["runs/quickstart.gin", str(extra)], [])
