"""Several views of a picture: the same transforms, other random numbers; and no labels."""

import dataclasses

import numpy as np
import pytest
from support.refusals import refusal

from nest_dist.base import failures
from nest_dist.data import batch, pipeline, targets
from nest_dist.data.transforms import crop

ROWS = np.arange(4)


class Unlabelled(batch.Arrays):
    """Pictures of no class."""

    def __getitem__(self, index):
        return {"image": self.images[index], "labels": ()}


@dataclasses.dataclass(frozen=True)
class Noise:
    kind: type = batch.Arrays

    def open(self):
        images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
        return self.kind(images, np.arange(6) % 2, ("even", "odd"))


def batches(views, rows=ROWS, first_step=0, count=3, kind=batch.Arrays, labels=targets.FORMS[0]):
    transforms = (crop.PaddedCrop(8, 2), crop.Flip(0.5))
    data = pipeline.TrainingData(Noise(kind), transforms, views=views)
    opened = data.batches(
        data.source.open(),
        global_batch=4,
        rows=rows,
        seed=5,
        first_step=first_step,
        labels=labels,
    )
    taken = [{name: x.copy() for name, x in next(opened).items()} for _ in range(count)]
    opened.close()
    return taken


def test_the_first_view_has_the_bytes_of_a_single_one_and_the_second_others():
    for one, two in zip(batches(1), batches(2), strict=True):
        assert two["image"].shape == (4, 2, 8, 8, 1)
        np.testing.assert_array_equal(two["image"][:, 0], one["image"])
        np.testing.assert_array_equal(two["label"], one["label"])
        assert not np.array_equal(two["image"][:, 1], one["image"])


def test_a_view_depends_on_seed_position_and_view_alone():
    whole = batches(2)
    (later,) = batches(2, first_step=2, count=1)
    np.testing.assert_array_equal(later["image"], whole[2]["image"])
    (half,) = batches(2, rows=ROWS[2:], count=1)
    np.testing.assert_array_equal(half["image"], whole[0]["image"][2:])


def test_the_last_stage_declares_all_views():
    data = pipeline.TrainingData(Noise(), (crop.PaddedCrop(8, 2),), views=2)
    *_, last = data.specs(data.source.open())
    assert last.shape == (2, 8, 8, 1)
    assert str(last) == "2 views of uint8 [8, 8, 1]"


def test_pictures_of_no_class_serve_where_no_labels_are_needed():
    (labelled,) = batches(1, count=1)
    (without,) = batches(1, count=1, kind=Unlabelled, labels=targets.NoLabels())
    assert without.keys() == {"image"}
    np.testing.assert_array_equal(without["image"], labelled["image"])
    with pytest.raises(failures.BadInput, match="has 0 classes"):
        batches(1, count=1, kind=Unlabelled)


@pytest.mark.parametrize("views", [0, 3])
def test_other_numbers_of_views_are_refused(views):
    text = f"TrainingData.views is {views}; it must be in [1, 2]"
    with refusal(text):
        pipeline.TrainingData(Noise(), (), views=views)
