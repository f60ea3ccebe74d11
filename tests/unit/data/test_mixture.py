"""Mixtures: the shares of the weights everywhere, and each source as if it were alone."""

import collections
import os
import random

import numpy as np
import pytest
from support import batches, refusals

from nest_dist.data import batch, drawing, index, mixture
from nest_dist.data.sources import mixture as mixtures

SEED = int(os.environ.get("NEST_DIST_TEST_SEED") or random.randrange(1 << 31))


@pytest.fixture(autouse=True)
def _quick_shuffle(monkeypatch):
    monkeypatch.setattr(index.OneByOne, "_shuffled", property(batches.Shuffled))


def source(length, first=0, names=("a", "b"), groups=None):
    """Images of 1 x 1 pixels that hold the numbers from `first` on."""
    numbers = np.arange(first, first + length)
    images = np.stack([numbers >> 8, numbers % 256, 0 * numbers], -1).astype(np.uint8)
    made = batch.Arrays(images[:, None, None], numbers % len(names), names)
    if groups:
        made.row_groups = groups
    return made


def row_groups(lengths, shards=4, window=2):
    return batch.RowGroups(tuple(lengths), (100,) * len(lengths), shards, window)


def config(sources, weights, **fields):
    names = tuple(f"source {number}" for number in range(len(sources)))
    return mixtures.Mixture(tuple(map(batches.Opened, sources)), names, weights, **fields)


def order(sources, weights, global_batch=8, seed=0):
    configured = config(sources, weights)
    return drawing.order(configured.open(), global_batch, seed, phases=configured.phases)


def drawn(of, steps, first=0):
    """The examples of rows [steps, global batch]."""
    rows = np.arange(of.global_batch)
    return np.stack([of.at(step, rows).examples for step in range(first, first + steps)])


def sources_of(examples, lengths):
    return np.searchsorted(np.cumsum(lengths), examples, side="right")


def furthest(sequence, weights):
    """How far a source is from its share, at most, after each draw of a sequence."""
    taken = np.cumsum(sequence[:, None] == np.arange(len(weights)), axis=0)
    draws = np.arange(1, len(sequence) + 1)[:, None]
    return float(np.abs(taken - draws * np.asarray(weights) / sum(weights)).max())


@pytest.mark.parametrize("weights", [(3, 1), (98, 2), (1, 1, 1), (7, 0, 5, 1), (1,), (0.5, 0.125)])
def test_a_turn_keeps_every_source_within_one_draw_of_its_share(weights):
    turn = mixture.turn(mixture.reduced(weights))
    assert furthest(np.tile(turn.sources, 2), weights) < 1
    assert np.bincount(turn.sources, minlength=len(weights)).tolist() == list(turn.weights)
    draws = np.arange(3 * len(turn.sources) + 1)
    for number in range(len(weights)):
        counted = np.concatenate([[0], np.cumsum(np.tile(turn.sources, 3) == number)])
        assert turn.count(number, draws).tolist() == counted.tolist()


@pytest.mark.parametrize(("weights", "global_batch"), [((3, 1), 256), ((98, 2), 1024)])
def test_the_shares_hold_in_each_row_and_in_each_batch(weights, global_batch):
    lengths = (700, 300)
    examples = drawn(order([source(700), source(300)], weights, global_batch), 120)
    numbers = sources_of(examples, lengths)
    assert max(furthest(numbers[:, row], weights) for row in range(global_batch)) < 2
    rare = (numbers == 1).sum(axis=1)
    assert np.abs(rare - global_batch * weights[1] / sum(weights)).max() <= 4


@pytest.mark.parametrize("weights", [(3, 1), (98, 2), (1, 6)])
def test_the_shares_hold_in_each_virtual_shard(weights):
    lengths = (40, 24)
    grouped = [source(40, groups=row_groups((8,) * 5)), source(24, groups=row_groups((6,) * 4))]
    numbers = sources_of(drawn(order(grouped, weights, 16), 200), lengths)
    for shard in range(4):
        own = numbers[:, 4 * shard : 4 * shard + 4].ravel()
        assert furthest(own, weights) < 2


def test_each_source_has_its_own_epochs_whatever_the_others():
    lengths = (30, 11)
    examples = drawn(order([source(30), source(11)], (2, 1)), 200).ravel()
    numbers = sources_of(examples, lengths)
    for number, length in enumerate(lengths):
        own = examples[numbers == number]
        epochs = own[: len(own) // length * length].reshape(-1, length)
        assert len(epochs) > 10
        assert (np.sort(epochs) == np.sort(epochs[0])).all()
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)


def test_row_groups_of_a_source_are_fetched_as_if_it_were_alone():
    groups = row_groups((6,) * 20)
    of = order([source(120, groups=groups), source(50)], (1, 1), 16)
    shards_of = collections.defaultdict(set)
    for step in range(2 * 120 // 16):
        for shard in range(4):
            found = of.at(step, np.arange(4 * shard, 4 * shard + 4))
            for group in found.groups:
                shards_of[group].add(shard)
    assert set(shards_of) == set(range(20))
    # Three cuts go through row groups, and shards are up to two examples apart at the end.
    assert sum(map(len, shards_of.values())) <= 20 + 3 + 4


def test_examples_and_epochs_of_each_source_are_told():
    of = order([source(30), source(11)], (2, 1))
    told = of.metrics(50)
    numbers = sources_of(drawn(of, 50), (30, 11))
    for number, length in enumerate((30, 11)):
        count = int((numbers == number).sum())
        assert told[f"data/source {number}/examples"] == count
        assert told[f"data/source {number}/epochs"] == count / length
    assert index.order(None, 30, 8, 0).metrics(50) == {}


@pytest.mark.parametrize("groups", [None, row_groups((6,) * 5)])
def test_weights_that_change_leave_each_source_where_it_stood(groups):
    sources = [source(30, groups=groups), source(11)]
    steady, changed = (
        drawn(order(sources, weights), 300)
        for weights in ((2, 1), ((0, (2, 1)), (7, (1, 3)), (100, (0, 1)), (150, (5, 1))))
    )
    np.testing.assert_array_equal(changed[:7], steady[:7])
    numbers = sources_of(changed, (30, 11))
    assert np.abs((numbers[7:100] == 1).mean() - 0.75) < 0.02
    assert (numbers[100:150] == 1).all()
    own = changed.ravel()[numbers.ravel() == 1]
    epochs = own[: len(own) // 11 * 11].reshape(-1, 11)
    assert (np.sort(epochs) == np.arange(30, 41)).all()
    if groups is None:  # the very sequences of the steady mixture
        before = steady.ravel()[sources_of(steady, (30, 11)).ravel() == 1]
        count = min(len(own), len(before))
        np.testing.assert_array_equal(own[:count], before[:count])


@pytest.mark.parametrize(
    ("given", "stored", "step", "expected"),
    [
        ((3, 1), [3, 1], 50, (3, 1)),
        ((1, 1), [3, 1], 50, ((0, (3, 1)), (50, (1, 1)))),
        ((1, 1), [[0, [3, 1]], [50, [1, 1]]], 70, ((0, (3, 1)), (50, (1, 1)))),
        ((3, 1), [[0, [3, 1]], [50, [1, 1]]], 70, ((0, (3, 1)), (50, (1, 1)), (70, (3, 1)))),
        (((0, (3, 1)), (90, (1, 1))), [3, 1], 50, ((0, (3, 1)), (90, (1, 1)))),
        (((0, (3, 1)), (90, (1, 1))), [[0, [3, 1]], [90, [1, 1]]], 50, ((0, (3, 1)), (90, (1, 1)))),
        ((1, 1), [3, 1], 0, ((0, (1, 1)),)),
    ],
)
def test_a_run_that_goes_on_keeps_the_weights_of_its_past(given, stored, step, expected):
    configured = config([source(30), source(11)], given)
    assert configured.continued(stored, step).weights == expected


def classes_of(*names, **fields):
    return config([source(4, names=each) for each in names], (1,) * len(names), **fields).open()


def test_classes_are_those_of_all_sources_by_name():
    mixed = classes_of(("cat", "dog"), ("dog", "cat"))
    assert mixed.class_names == ("cat", "dog")
    assert [mixed[number]["labels"] for number in (0, 1, 4, 5)] == [(0,), (1,), (1,), (0,)]
    united = classes_of(("cat", "dog"), ("dog", "emu"), classes="union")
    assert united.class_names == ("cat", "dog", "emu")
    assert [united[number]["labels"] for number in (0, 1, 4, 5)] == [(0,), (1,), (1,), (2,)]
    assert mixed.fingerprint != united.fingerprint


def nested():
    inner = mixtures.Mixture((batches.Opened(source(4)),), ("inner",), (1,))
    return mixtures.Mixture((inner,), ("outer",), (1,)).open()


def differing_images():
    grey = batch.Arrays(np.zeros((4, 1, 1, 1), np.uint8), np.zeros(4, int), ("a", "b"))
    return config([source(4), grey], (1, 1)).open()


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (
            lambda: config([source(4)] * 2, (1, 2, 3)),
            (
                "Mixture.weights is (1, 2, 3) for 2 sources; give one number for each, such as "
                "(3, 1), or pairs of a first step and such numbers, as in ((0, (3, 1)), (5000, "
                "(1, 1))), steps ascending from 0, no number below 0 and not all 0."
            ),
        ),
        (lambda: config([source(4)] * 2, (-1, 2)), "Mixture.weights is (-1, 2) for 2 sources;"),
        (lambda: config([source(4)] * 2, (0, 0)), "Mixture.weights is (0, 0) for 2 sources;"),
        (lambda: config([source(4)] * 2, (True, 1)), "Mixture.weights is (True, 1) for 2"),
        (lambda: config([source(4)] * 2, ((5, (1, 1)),)), "steps ascending from 0"),
        (lambda: config([source(4)] * 2, ((0, (1, 1)), (0, (1, 2)))), "steps ascending from 0"),
        (
            lambda: config([source(4)] * 2, (0.123457, 0.3)),
            (
                "Mixture.weights is (0.123457, 0.3), whose smallest whole numbers (123457, 300000) "
                "add up to more than 100000; round them, as in (97, 3)."
            ),
        ),
        (
            lambda: mixtures.Mixture((batches.Opened(source(4)),) * 2, ("a", "a"), (1, 1)),
            (
                "Mixture.names is ('a', 'a'); give each of the 2 Mixture.sources a name of "
                "its own, without '/'."
            ),
        ),
        (
            lambda: classes_of(("cat", "dog"), ("dog", "emu")),
            (
                "class 'emu' is not in 'source 0' (cat, dog), but in others of the Mixture; give "
                "data sets with the same classes, or set Mixture.classes to 'union'."
            ),
        ),
        (nested, "'outer' in the Mixture is a Mixture itself; give its sources instead, with"),
        (
            differing_images,
            (
                "'source 1' in the Mixture has uint8 [1, 1, 1], 'source 0' has uint8 [1, 1, 3]; "
                "give data sets with the same."
            ),
        ),
        (
            lambda: order(
                [source(8, groups=row_groups((4, 4), 2)), source(8, groups=row_groups((4, 4), 4))],
                (1, 1),
            ),
            (
                "virtual_shards differ in the Mixture: 'source 0' 2 and 'source 1' 4; give all its "
                "sources the same."
            ),
        ),
        (
            lambda: drawing.order(config([source(8)], (1,)).open(), 4, None),
            (
                "an evaluation has a Mixture, which is drawn by weight in training alone; give one "
                "source."
            ),
        ),
    ],
)
def test_what_is_no_mixture_is_refused(make, refusal):
    with refusals.refusal(refusal):
        make()


def tried(rng):
    """Random weights, lengths, row groups and cuts: the laws, and any process alone."""
    count = rng.randint(1, 5)
    shards = rng.choice((1, 2, 3, 4, 8))
    global_batch = shards * rng.randint(1, 6)
    sources = []
    for number in range(count):
        lengths = [rng.choice((1, 2, 7, 12, 30)) for _ in range(rng.randint(1, 6))]
        while sum(lengths) < shards:
            lengths.append(12)
        grouped = row_groups(lengths, shards, rng.randint(1, 3)) if rng.random() < 0.6 else None
        sources.append(source(sum(lengths), 1000 * number, groups=grouped))
    phases = []
    for step in sorted({0, *(rng.randint(1, 40) for _ in range(rng.randint(0, 2)))}):
        weights = [rng.choice((0, 1, 2, 3, 17, 98)) for _ in range(count)]
        weights[rng.randrange(count)] = 1 + rng.randrange(5)
        phases.append((step, tuple(weights)))
    of, lengths = (
        order(sources, tuple(phases), global_batch, rng.randrange(1 << 32)),
        [*map(len, sources)],
    )
    steps = 50
    examples = drawn(of, steps)
    numbers = sources_of(examples, lengths)
    in_shards = shards if any(it.row_groups for it in sources) else global_batch
    for (first, weights), end in zip(
        phases, [step for step, _ in phases[1:]] + [steps], strict=True
    ):
        for shard in range(in_shards):
            rows = slice(shard * global_batch // in_shards, (shard + 1) * global_batch // in_shards)
            assert furthest(numbers[first:end, rows].ravel(), weights) < 2
    for number, length in enumerate(lengths):
        counts = np.bincount(examples[numbers == number] - sum(lengths[:number]), minlength=length)
        if sources[number].row_groups is None or shards == 1:
            assert counts.max() - counts.min() <= 1
        else:  # epochs of shards overlap by what these are apart
            assert counts.max() - counts.min() <= 3
        told = of.metrics(steps)[f"data/source {number}/examples"]
        assert told == counts.sum()
    step = rng.randrange(steps)
    rows = np.array(sorted(rng.sample(range(global_batch), rng.randint(1, global_batch))))
    np.testing.assert_array_equal(of.at(step, rows).examples, examples[step, rows])


@pytest.mark.parametrize(
    "settings", [60, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_mixtures_keep_their_laws(settings):
    print("NEST_DIST_TEST_SEED", SEED)
    for number in range(settings):
        try:
            tried(random.Random(SEED + number))
        except BaseException:
            print("setting", number, "of seed", SEED)
            raise
