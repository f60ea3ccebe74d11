"""Balanced classes and repeated examples: how often each comes, whatever the processes."""

import itertools

import numpy as np
import pytest
from support import batches, datasets, refusals
from support import parquet as parquet_files

from nest_dist.data import batch, classes, drawing, index, parts
from nest_dist.data.sources import all_labels, parquet, retries
from nest_dist.data.sources import mixture as mixtures

COUNTS = (50, 7, 0, 1, 20)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


def source(labels=LABELS):
    images = np.broadcast_to(
        np.arange(len(labels), dtype=np.uint8)[:, None, None, None],
        (
            len(labels),
            8,
            8,
            1,
        ),
    )
    return batch.Arrays(images, labels, ("a", "b", "c", "d", "e"))


def drawn(of, steps, processes=1):
    rows = np.array_split(np.arange(of.global_batch), processes)
    return np.stack(
        [np.concatenate([of.at(step, own).examples for own in rows]) for step in range(steps)]
    )


@pytest.mark.parametrize("global_batch", [4, 8, 13, 64])
def test_each_class_comes_once_a_turn_and_each_example_as_often_as_its_class_allows(global_batch):
    of = drawing.order(source(), global_batch, 0, balanced=True)
    turns = 130
    examples = drawn(of, -(-4 * turns // global_batch)).ravel()[: 4 * turns]
    labels = LABELS[examples].reshape(turns, 4)
    assert (np.sort(labels) == [0, 1, 3, 4]).all()
    assert len({tuple(turn) for turn in labels.tolist()}) > 10
    times = np.bincount(examples, minlength=len(LABELS))
    for label, count in enumerate(COUNTS):
        if count:
            assert {*times[label == LABELS]} <= {turns // count, -(-turns // count)}
    first, second = (examples[LABELS[examples] == 0][at : at + 50] for at in (0, 50))
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_and_jumps_leave_balanced_batches_alone(processes):
    of = drawing.order(source(), 24, 3, balanced=True)
    alone = drawn(of, 40)
    np.testing.assert_array_equal(drawn(of, 40, processes), alone)
    fresh = drawing.order(source(), 24, 3, balanced=True)
    np.testing.assert_array_equal(fresh.at(30, np.arange(24)).examples, alone[30])
    np.testing.assert_array_equal(fresh.at(2, np.arange(24)).examples, alone[2])
    assert drawn(drawing.order(source(), 24, 4, balanced=True), 40).tolist() != alone.tolist()


def test_balanced_classes_are_those_of_the_run():
    swapped = classes.in_order(source(), ("e", "d", "c", "b", "a"), "", "")
    assert swapped.known_labels().tolist() == (4 - LABELS).tolist()


@pytest.mark.parametrize("repeats", [1, 2, 3, 12])
def test_each_example_comes_as_often_as_it_is_repeated(repeats):
    of = drawing.order(source(), 12, 0, repeats=repeats)
    once = index.order(None, len(LABELS), 12 // repeats, 0)
    for step in range(30):
        examples = of.at(step, np.arange(12)).examples
        distinct = once.at(step, np.arange(12 // repeats)).examples
        assert sorted(examples) == sorted(np.repeat(distinct, repeats))
    np.testing.assert_array_equal(drawn(of, 30, 4), drawn(of, 30))


def test_repeated_examples_have_other_random_numbers(tmp_path):
    opened = datasets.opened("image_folder", tmp_path)
    (images,) = (taken["image"] for taken in batches.training(opened, steps=1, repeats=2))
    assert all((one != other).any() for one, other in itertools.combinations(images, 2))
    alone, shared = (
        batches.training(opened, processes=processes, repeats=2, **fields)
        for processes, fields in ((1, {}), (4, {"threads": 1}))
    )
    assert batches.digests(alone) == batches.digests(shared)


def test_rows_of_parquet_are_repeated_within_their_virtual_shard(tmp_path):
    parquet_files.write(tmp_path)
    opened = parquet.Parquet((str(tmp_path),), "train", virtual_shards=2, window=2).open()
    of = drawing.order(opened, 8, 0, repeats=2)
    once = index.order(opened.row_groups, len(opened), 4, 0)
    for shard in (0, 1):
        rows = np.arange(4 * shard, 4 * shard + 4)
        found = of.at(5, rows)
        before = once.at(5, np.arange(2 * shard, 2 * shard + 2))
        assert found.examples.tolist() == [*before.examples, *before.examples]
        assert (found.groups, found.ahead) == (before.groups, before.ahead)
    assert [piece.tolist() for piece in of.pieces(np.arange(8), 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert of.bytes_in_hand(np.arange(8)) == once.bytes_in_hand(np.arange(4))


def test_a_mixture_is_repeated_too():
    mixed = mixtures.Mixture(
        (batches.Opened(source()), batches.Opened(source())), ("one", "two"), (3, 1)
    )
    taken = batches.training(
        mixed.open(), steps=4, global_batch=8, transforms=(), config=mixed, repeats=2
    )
    for arrays in taken:
        numbers = arrays["image"][:, 0, 0, 0]
        assert (numbers[:4] == numbers[4:]).all()


class Untold(batch.Arrays):
    def known_labels(self):
        return None


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (
            lambda: drawing.order(source(), 8, 0, repeats=3),
            (
                "Run.global_batch is 8, not a multiple of 3 of TrainingData.repeats (3); the "
                "nearest that fit are 6 or 9: set it to one of them, or change "
                "TrainingData.repeats."
            ),
        ),
        (
            lambda: drawing.order(
                Untold(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, int), ("a",)),
                2,
                0,
                balanced=True,
            ),
            (
                "TrainingData.balanced is True, but the source does not tell one class of each "
                "picture; set it to False, or give ArrayRecord, Parquet, Tars or an ImageFolder"
            ),
        ),
        (
            lambda: drawing.order(
                mixtures.Mixture((batches.Opened(source()),), ("one",), (1,)).open(),
                2,
                0,
                phases=((0, (1,)),),
                balanced=True,
            ),
            "TrainingData.balanced has a Mixture, which is drawn by weight in training alone; give",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(make, refusal):
    with refusals.refusal(refusal):
        make()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("name", ["array_record", "parquet", "tfds"])
def test_sources_that_tell_classes_with_their_pictures_are_read_once_to_balance_them(
    name, tmp_path, own_cache, monkeypatch
):
    if name == "parquet":
        paths = tuple(parquet_files.write(tmp_path / "data", files=2))
        opened = parquet.Parquet(paths, "train", virtual_shards=2).open()
    else:
        opened = datasets.opened(name, tmp_path / "data")
    labels = [opened[number]["labels"][0] for number in range(len(opened))]
    held_out = parts._part(opened, "[3:]", "x")
    for some, expected in ((opened, labels), (held_out, labels[3:])):
        assert some.read_labels().tolist() == expected
        flipped = classes.in_order(some, some.class_names[::-1], "", "")
        most = len(some.class_names) - 1
        assert flipped.read_labels().tolist() == [most - it for it in expected]
    monkeypatch.setattr(retries, "example", lambda *_: pytest.fail("read again"))
    assert opened.read_labels().tolist() == labels
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    fields = {"balanced": True, "global_batch": 6, "steps": 4}
    alone = batches.training(opened, **fields)
    assert (np.bincount(np.concatenate([it["label"] for it in alone])) == 8).all()
    for processes in (2, 3):
        again = batches.training(opened, processes=processes, **fields)
        assert batches.digests(again) == batches.digests(alone)


def test_kept_labels_of_another_length_are_read_anew(tmp_path, own_cache):
    opened = datasets.opened("array_record", tmp_path / "data")
    labels = opened.read_labels()
    (kept,) = (tmp_path / "home").rglob("*.npy")
    np.save(kept, labels[1:])
    np.testing.assert_array_equal(opened.read_labels(), labels)


def test_row_groups_of_more_than_the_memory_are_not_balanced(tmp_path):
    paths = tuple(parquet_files.write(tmp_path, files=2))
    opened = parquet.Parquet(paths, "train", virtual_shards=2).open()
    with refusals.refusal(
        "balanced draws from all row groups at once, of ",
        " bytes; TrainingData.read_ahead_bytes is 50000. Raise it, or make records of them by",
    ):
        batches.training(opened, balanced=True, read_ahead_bytes=50_000)


def test_a_corrupt_example_has_no_class_to_be_balanced(own_cache):
    class Cut(batch.Source):
        class_names, fingerprint = ("a",), "cut"

        def __len__(self):
            return 5

        def __getitem__(self, number):
            if number == 3:
                raise batch.Corrupt("cut short")
            return {"image": b"", "labels": (0,)}

        def read_labels(self):
            return all_labels.read_once(self)

    with refusals.refusal("example 3 is corrupt (cut short), so its class is not known; repair "):
        drawing.order(Cut(), 2, 0, balanced=True)
