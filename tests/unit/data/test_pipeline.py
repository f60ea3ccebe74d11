"""The laws of the pipeline, for every source: a batch depends on seed and step alone."""

import collections
import dataclasses

import numpy as np
import pytest
from support import batches, datasets, parquet

from nest_dist.base import failures
from nest_dist.data import batch, pipeline
from nest_dist.data.sources import parquet as parquet_source
from nest_dist.data.sources import synthetic
from nest_dist.data.transforms import crop, decode
from nest_dist.train import inputs

SOURCES = ("array_record", "image_folder", "tfds", "idx", "digits", "synthetic", "parquet")
GREY = ("idx", "digits")


def transforms_of(name):
    return batches.GREY_RECIPE if name in GREY else batches.RECIPE


def opened(name, root):
    if name == "parquet":
        paths = parquet.write(root, files=5)
        return parquet_source.Parquet(tuple(paths), "train", virtual_shards=4).open()
    return datasets.opened(name, root)


@pytest.fixture(params=SOURCES)
def named_source(request, tmp_path):
    return request.param, opened(request.param, tmp_path)


def test_batches_depend_on_neither_processes_nor_threads(named_source):
    name, source = named_source
    recipe = transforms_of(name)
    reference = batches.training(source, transforms=recipe)
    assert len(set(batches.digests(reference))) == 3
    for processes, threads in ((2, 1), (4, 3)):
        loaded = batches.training(source, transforms=recipe, processes=processes, threads=threads)
        assert batches.digests(loaded) == batches.digests(reference)


def test_any_step_can_be_the_first(named_source):
    name, source = named_source
    recipe = transforms_of(name)
    # Beyond an epoch, of 12 examples in the smallest source.
    reference = batches.training(source, steps=9, transforms=recipe)
    for first_step in (1, 4, 7):
        loaded = batches.training(
            source,
            steps=9 - first_step,
            processes=2,
            first_step=first_step,
            transforms=recipe,
        )
        assert batches.digests(loaded) == batches.digests(reference[first_step:])


class Half:
    """Makes pixels of another type."""

    def __call__(self, image, rng):
        raise AssertionError

    def output(self, image):
        return dataclasses.replace(image, dtype="float16")


class Counted:
    """A source that counts how often it is read."""

    def __init__(self, source):
        self.source, self.reads = source, 0

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads += 1
        return self.source[index]


def test_step_one_million_reads_no_more_than_the_first():
    pictures = synthetic.Synthetic(num_examples=1_281_167, image_side=32, num_classes=1000)
    sources = [Counted(pictures.open()) for _ in range(2)]
    for source, first_step in zip(sources, (0, 1_000_000), strict=True):
        batches.training(source, steps=1, first_step=first_step)
    # More batches are read ahead on one thread than on another.
    assert all(8 <= source.reads < 1000 for source in sources)


def test_another_seed_gives_another_order_and_other_crops(named_source):
    name, source = named_source
    first, other = (
        batches.training(source, steps=1, transforms=transforms_of(name), seed=seed)[0]
        for seed in (0, 1)
    )
    assert (first["image"] != other["image"]).any()


def test_an_epoch_holds_each_example_once_and_each_epoch_has_its_own_order(tmp_path):
    source = datasets.opened("array_record", tmp_path)
    uncropped = (crop.ResizedCentreCrop(side=16, shorter_side=16),)
    loaded = batches.training(source, steps=6, global_batch=4, transforms=uncropped)
    images = [image.tobytes() for arrays in loaded for image in arrays["image"]]
    first, second = images[:12], images[12:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 12
    assert first != second


def test_an_example_is_augmented_anew_in_each_epoch(tmp_path):
    source = datasets.opened("array_record", tmp_path)
    loaded = batches.training(source, steps=6, global_batch=4)
    assert len({image.tobytes() for arrays in loaded for image in arrays["image"]}) == 24


@pytest.mark.medium
@pytest.mark.parametrize("name", ["array_record", "parquet"])
def test_batches_do_not_depend_on_worker_processes(name, tmp_path):
    source = opened(name, tmp_path)
    loaded = batches.training(source, workers=2, threads=1)
    assert batches.digests(loaded) == batches.digests(batches.training(source))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_of_every_source_do_not_depend_on_processes_and_workers(
    named_source, processes, workers
):
    name, source = named_source
    recipe = transforms_of(name)
    reference = batches.training(source, transforms=recipe)
    loaded = batches.training(source, transforms=recipe, processes=processes, workers=workers)
    assert batches.digests(loaded) == batches.digests(reference)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_counts_each_example_once_on_any_number_of_processes(named_source, processes):
    name, source = named_source
    fields = {"transforms": ()} if name in GREY else {}
    loaded = batches.evaluation(source, processes=processes, **fields)
    weights = np.concatenate([arrays["weight"] for arrays in loaded])
    assert weights.sum() == len(source)
    assert set(weights) <= {0.0, 1.0}
    labels = np.concatenate([arrays["label"] for arrays in loaded])[weights == 1]
    assert collections.Counter(labels) == collections.Counter(
        source[index]["labels"][0] for index in range(len(source))
    )
    images = np.concatenate([arrays["image"] for arrays in loaded])[weights == 1]
    if name != "digits":  # some of which were written twice
        assert len({image.tobytes() for image in images}) == len(source)
    assert batches.digests(loaded) == batches.digests(batches.evaluation(source, **fields))


@pytest.mark.medium
def test_evaluation_by_workers_is_the_same(tmp_path):
    source = opened("parquet", tmp_path)
    loaded = batches.evaluation(source, workers=2)
    assert batches.digests(loaded) == batches.digests(batches.evaluation(source))


@dataclasses.dataclass(frozen=True)
class PartlyCorrupt(batch.Source):
    """A source with some pictures cut short."""

    source: batch.Source
    cut_short: tuple[int, ...]
    fingerprint = "corrupt"

    @property
    def class_names(self):
        return self.source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        if index in self.cut_short:
            return {**example, "image": bytes(example["image"])[:100]}
        return example


@pytest.fixture
def partly_corrupt(tmp_path):
    return PartlyCorrupt(datasets.opened("array_record", tmp_path), cut_short=(2, 3))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.medium)])
def test_a_corrupt_picture_stops_the_run_with_its_key_and_index(partly_corrupt, workers):
    with pytest.raises(
        failures.BadInput,
        match=r"example 2 \(.*jpg\) is corrupt: rgb jpeg, cut short or altered; repair|"
        r"example 3 \(.*jpg\) is corrupt",
    ):
        batches.training(partly_corrupt, steps=2, workers=workers)


def test_corrupt_pictures_are_replaced_deterministically_and_counted(partly_corrupt, caplog):
    share = {"max_corrupt_fraction": 0.2}
    loaded = batches.training(partly_corrupt, **share)
    assert {record.args[0] for record in caplog.records} == {2, 3}
    for processes in (2, 4):
        other = batches.training(partly_corrupt, processes=processes, **share)
        assert batches.digests(other) == batches.digests(loaded)
    with pytest.raises(
        failures.BadInput,
        match=r"2 corrupt examples were read, TrainingData.max_corrupt_fraction is 0.1, which "
        r"allows 1 of 12; repair",
    ):
        batches.training(partly_corrupt, max_corrupt_fraction=0.1)


def test_corrupt_pictures_do_not_count_in_evaluation(partly_corrupt):
    loaded = batches.evaluation(partly_corrupt, processes=2, max_corrupt_fraction=0.5)
    assert sum(arrays["weight"].sum() for arrays in loaded) == 10
    with pytest.raises(failures.BadInput, match=r"example 2 .* is corrupt"):
        batches.evaluation(partly_corrupt)


@dataclasses.dataclass(frozen=True)
class Mislabelled(PartlyCorrupt):
    labels: tuple[int, ...] = (3,)

    def __getitem__(self, index):
        return {**self.source[index], "labels": self.labels}


def test_a_label_out_of_range_is_refused(partly_corrupt):
    wrong = Mislabelled(partly_corrupt.source, ())
    with pytest.raises(
        failures.BadInput, match=r"jpg has label 3, the data has 3 classes, labels 0 to 2; correct"
    ):
        batches.training(wrong)
    of_two = dataclasses.replace(wrong, labels=(0, 2))
    with pytest.raises(failures.BadInput, match="jpg has 2 classes, Classification takes pictures"):
        batches.training(of_two)


class Undeclared(PartlyCorrupt):
    """Its pictures are larger than it says."""

    image_spec = batch.ImageSpec(8, 8, 3)

    def __getitem__(self, index):
        return {**self.source[index], "image": np.zeros((9, 8, 3), np.uint8)}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.medium)])
def test_a_picture_that_is_not_as_declared_is_refused(partly_corrupt, workers):
    uneven = Undeclared(partly_corrupt.source, ())
    with pytest.raises(
        failures.BadInput,
        match=r"an image is uint8 \[9, 8, 3\] where source and transforms declare uint8 "
        r"\[8, 8, 3\]; correct image_spec",
    ):
        batches.training(uneven, transforms=(), workers=workers)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ((), r"transforms end in encoded pictures, .* \(encoded pictures\); begin them with"),
        (
            (crop.Flip(), crop.CentrePad(side=8)),
            r"end in encoded pictures, .* \(encoded pictures -> Flip: encoded pictures\); begin",
        ),
        ((Half(),), r"end in float16 \[H, W, 3\], a batch takes uint8 images of one size \(enc"),
    ],
)
def test_a_chain_that_makes_no_batch_is_refused_before_any_picture_is_read(
    partly_corrupt, transforms, message
):
    with pytest.raises(failures.BadInput, match=message):
        batches.training(Counted(partly_corrupt.source), transforms=transforms)


def test_a_batch_larger_than_the_split_is_refused(partly_corrupt):
    with pytest.raises(
        failures.BadInput, match=r"has 12 examples, fewer than one batch of 16; lower Run.global_b"
    ):
        batches.training(partly_corrupt, global_batch=16)


def test_memory_that_holds_no_batch_is_refused(partly_corrupt):
    with pytest.raises(
        failures.BadInput,
        match=r"TrainingData.read_ahead_bytes is 100, less than 1 batches of \d+ bytes for 0 work",
    ):
        batches.training(partly_corrupt.source, read_ahead_bytes=100)


@pytest.mark.parametrize(
    ("field", "value"),
    [("threads", 0), ("workers", -1), ("read_ahead_bytes", 0), ("max_corrupt_fraction", 1.5)],
)
def test_a_field_out_of_range_is_refused(partly_corrupt, field, value):
    with pytest.raises(failures.BadInput, match=f"TrainingData.{field} is {value}; it must be"):
        batches.training(partly_corrupt, **{field: value})


@pytest.mark.parametrize("wrong", [3, inputs.Normalize(mean=(0.5,), std=(0.5,))])
def test_an_object_that_is_no_transform_is_refused(partly_corrupt, wrong):
    with pytest.raises(failures.BadInput, match=r"TrainingData.transforms is \(.*\), .* type tupl"):
        batches.training(partly_corrupt, transforms=(wrong,))


def test_an_object_that_is_no_source_is_refused():
    with pytest.raises(failures.BadInput, match=r"TrainingData.source is @Flip.*; give a value of"):
        pipeline.TrainingData(crop.Flip(), ())


def test_encoded_and_decoded_pictures_give_the_same_batches(partly_corrupt):
    @dataclasses.dataclass(frozen=True)
    class Decoded(PartlyCorrupt):
        image_spec = batch.ImageSpec(60, 80, 3)

        def __getitem__(self, index):
            example = self.source[index]
            return {**example, "image": decode.pixels(example["image"])}

    loaded = batches.training(Decoded(partly_corrupt.source, ()))
    assert batches.digests(loaded) == batches.digests(batches.training(partly_corrupt.source))
