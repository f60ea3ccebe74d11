"""Runs that start from other weights; steps of length 0 show what they started with."""

import pytest
from support import commands

from nest_dist.base import tree_paths
from nest_dist.checkpointing import reader
from nest_dist.pretrained import load
from nest_dist.pretrained import stored as stored_weights


def train(workdir, start, *bindings):
    still = ("AdamW.peak_learning_rate = 0.0", "Run.num_epochs = 0.3", "Cosine.warmup_epochs = 0")
    flags = commands.tiny_flags(workdir, *still, f"Run.init_from = '{start}'", *bindings)
    return commands.nest_dist("train", *flags, devices=2)


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run on ten classes from weights for three."""
    workdir = tmp_path_factory.mktemp("run")
    done = train(workdir, trained.workdir, "Run.seed = 5")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_made_to_fit(run, trained):
    workdir, _ = run
    checkpoints = reader.Reader(workdir / "checkpoints")
    arrays = checkpoints.arrays(checkpoints.steps()[-1])
    model = trained.model.clone(num_classes=10)
    expected, _ = load.adapt(stored_weights.find(trained.workdir), model, seed=5)
    found = {
        name.removeprefix("params/"): leaf
        for name, leaf in arrays.items()
        if name.startswith("params/")
    }
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert found[name].tobytes() == leaf.tobytes(), name


def test_the_run_says_what_became_of_the_weights(run, trained):
    _, said = run
    assert f"starting from {trained.workdir}: a NesT of 2 levels" in said
    assert "42 parameters loaded as they are" in said
    assert "reinitialized for other classes: head/bias, head/kernel" in said


@pytest.mark.slow
def test_a_resumed_run_goes_on_from_its_own_checkpoint(run, trained):
    workdir, _ = run
    done = train(workdir, trained.workdir, "Run.seed = 5", "Run.num_epochs = 0.6")
    assert done.returncode == 0, done.stderr
    assert "starting from" not in done.stdout + done.stderr


@pytest.mark.slow
def test_weights_of_another_architecture_are_refused_in_one_line(trained, tmp_path):
    done = train(tmp_path, trained.workdir, "NesT.dim = 16")
    assert done.returncode == 2
    assert "NesT.dim is 16, the weights to start from have 8; only image_size, " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_first_head_of_a_fine_tuned_model_is_the_one_its_seed_gives(trained):
    model = trained.model.clone(num_classes=4)
    found = stored_weights.find(trained.workdir)
    (one, _), (again, _), (other, _) = (load.adapt(found, model, seed) for seed in (1, 1, 2))
    assert tree_paths.unflatten(one)["head"]["kernel"].tobytes() == again["head/kernel"].tobytes()
    assert one["head/kernel"].tobytes() != other["head/kernel"].tobytes()


def test_a_new_head_begins_at_zero_where_it_is_asked_to(trained):
    found = stored_weights.find(trained.workdir)
    for classes, begins_at_zero in ((4, True), (3, False)):
        model = trained.model.clone(num_classes=classes)
        params, _ = load.adapt(found, model, new_head="zeros")
        assert (not params["head/kernel"].any()) == begins_at_zero
        assert (not params["head/bias"].any()) == begins_at_zero
