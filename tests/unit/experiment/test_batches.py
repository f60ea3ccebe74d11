import numpy as np
import pytest

import nest_dist
from nest_dist.base import failures
from nest_dist.experiment import build
from nest_dist.experiment import run as runs

QUICK_START, FOUR = "runs/quickstart.gin", "Run.global_batch = 4"


def test_a_step_has_the_same_batch_whenever_it_is_asked_for():
    with nest_dist.batches(QUICK_START, FOUR) as data:
        early = [next(data) for _ in range(3)]
        assert data.step == 3
        fourth = next(data)
    assert not np.array_equal(early[0]["image"], early[1]["image"])
    with nest_dist.batches([QUICK_START], [FOUR], step=3) as data:
        again = next(data)
    assert again.keys() == {"image", "label"}
    for name, values in fourth.items():
        np.testing.assert_array_equal(again[name], values)


def test_batches_are_those_of_the_run():
    run = runs.load([QUICK_START], ["Run.global_batch = 8"])
    experiment = build.build(run)
    trained = experiment.training_batches(2)
    with nest_dist.batches(QUICK_START, "Run.global_batch = 8", step=2) as data:
        batch, of_run = next(data), next(trained)
    trained.close()
    for name, values in batch.items():
        np.testing.assert_array_equal(values, of_run[name])


def test_an_evaluation_has_each_example_once():
    with nest_dist.batches(QUICK_START, "Run.global_batch = 100", split="evaluation") as data:
        labels, weights = [], []
        for batch in data:
            assert batch["image"].shape == (100, 32, 32, 1)
            labels.append(batch["label"])
            weights.append(batch["weight"])
        assert np.concatenate(weights).sum() == data.num_examples == 359
        assert data.step == 4
    with nest_dist.batches(
        QUICK_START, "Run.global_batch = 100", split="evaluation", step=3
    ) as data:
        np.testing.assert_array_equal(next(data)["label"], labels[3])


def test_it_tells_what_it_is():
    with nest_dist.batches(QUICK_START, FOUR) as data:
        assert repr(data) == "nest_dist.Batches(step=0, 4 of 1438 examples, 10 classes)"
        assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "split is 'test', which is unknown; known are evaluation, train."),
        ({"step": -1}, "step is -1; it must be at least 0."),
        ({"gin_file": "runs/quikstart.gin"}, "did you mean runs/quickstart.gin?"),
    ],
)
def test_what_is_not_there_is_refused(changes, message):
    with pytest.raises(failures.BadInput, match=message.replace("?", r"\?")):
        nest_dist.batches(**{"gin_file": QUICK_START, **changes})
