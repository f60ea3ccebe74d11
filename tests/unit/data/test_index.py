"""The order of examples: each once an epoch, and the same for any cut into processes and stops."""

import collections

import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.data import batch, index, sequences

LENGTHS = (7, 3, 8, 1, 12, 5, 4)  # 40 examples
STEPS = 60


def order(seed=0, shards=4, window=2, global_batch=8, lengths=LENGTHS):
    groups = batch.RowGroups(tuple(lengths), (100,) * len(lengths), shards, window)
    return index.order(groups, sum(lengths), global_batch, seed)


def sequence(of, steps=STEPS, processes=1):
    """Rows of batches [steps, global batch], joined from those of several processes."""
    rows = np.array_split(np.arange(of.global_batch), processes)
    return np.stack(
        [np.concatenate([of.at(step, own).examples for own in rows]) for step in range(steps)]
    )


def by_shard(of, steps=STEPS):
    """The sequence of each virtual shard."""
    batches = sequence(of, steps).reshape(steps, of.groups.virtual_shards, -1)
    return [batches[:, shard].ravel() for shard in range(of.groups.virtual_shards)]


@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("lengths", [LENGTHS, (40,), (1,) * 40])
def test_each_example_comes_once_an_epoch(shards, window, lengths):
    of = order(shards=shards, window=window, lengths=lengths)
    epochs = sequence(of, 20).reshape(4, 40)  # five batches each
    assert (np.sort(epochs) == np.arange(40)).all()


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_shards_that_do_not_divide_the_examples_stay_within_one_example(shards):
    of, examples = order(shards=shards, lengths=(4, 2, 5)), 11
    sequences = by_shard(of)
    for taken in range(1, 3 * examples):
        counts = collections.Counter(np.concatenate([own[:taken] for own in sequences]).tolist())
        even = taken * shards / examples
        # An epoch's longest and shortest pieces differ by one, so at most two epochs are open.
        assert even - 2 < min(counts[number] for number in range(examples))
        assert max(counts.values()) < even + 2
    assert set(
        collections.Counter(np.concatenate([own[:examples] for own in sequences]).tolist()).values()
    ) == {shards}


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
def test_the_rows_of_a_process_do_not_depend_on_the_others(processes):
    np.testing.assert_array_equal(sequence(order(), processes=processes), sequence(order()))


def test_another_epoch_and_another_seed_have_another_order():
    (own,) = by_shard(order(shards=1, window=2))
    assert len({tuple(own[start : start + 40]) for start in range(0, 400, 40)}) == 10
    assert sequence(order(seed=1)).tolist() != sequence(order()).tolist()
    assert sequence(order()).tolist() == sequence(order()).tolist()


def test_every_order_of_a_window_is_as_likely():
    firsts = collections.Counter(
        int(
            order(seed=seed, shards=1, window=1, lengths=(4,), global_batch=4)
            .at(0, np.arange(1))
            .examples[0]
        )
        for seed in range(1200)
    )
    # Five standard deviations of a binomial around 300.
    assert set(firsts) == {0, 1, 2, 3}
    assert max(abs(count - 300) for count in firsts.values()) < 75


def test_a_row_group_is_fetched_by_one_shard_or_by_two_where_a_cut_goes_through_it():
    of = order(lengths=(8,) * 50, window=2)
    shards_of = collections.defaultdict(set)
    for step in range(400 // 8):
        for shard in range(4):
            for group in of.at(step, np.arange(2 * shard, 2 * shard + 2)).groups:
                shards_of[group].add(shard)
    assert len(shards_of) == 50
    assert sum(map(len, shards_of.values())) <= 50 + 3
    assert max(map(len, shards_of.values())) == 2


def test_what_is_needed_next_is_told_before():
    of, told = order(lengths=(6,) * 30), set()
    for step in range(100):
        rows = of.at(step, np.arange(8))
        assert step == 0 or told >= set(rows.groups)
        told = {*rows.groups, *rows.ahead}


def test_in_order_each_example_comes_once_and_then_padding():
    for shards in (1, 2, 4, 8):
        of = order(seed=None, shards=shards)
        rows = sequence(of, of.steps())
        assert sorted(rows.ravel()) == [*[sequences.PADDING] * (rows.size - 40), *range(40)]
        for own in by_shard(of, of.steps()):
            real = own[own != sequences.PADDING]
            assert (np.diff(real) == 1).all()
            assert (own[len(real) :] == sequences.PADDING).all()


def test_words_of_the_bit_generator_alone_make_the_order():
    # Known since this order exists; NumPy promises the words of Philox.
    assert sequences.permutation(8, 3, 1, 2, 0).tolist() == [4, 1, 7, 5, 6, 3, 0, 2]


def test_a_step_a_million_epochs_away_is_as_near():
    of = order()
    (far,) = of.at(40_000_000 // 8 + 1, np.arange(1)).examples
    assert 0 <= far < 40


def test_a_batch_that_virtual_shards_do_not_divide_is_refused():
    with pytest.raises(
        failures.BadInput, match="is 30, not a multiple of 4 virtual shards; set it to 32 or change"
    ):
        order(global_batch=30)


def test_more_virtual_shards_than_examples_are_refused():
    with pytest.raises(
        failures.BadInput, match="is 64, the split has 40 examples; set it to 40 or"
    ):
        order(shards=64, global_batch=64)


@pytest.mark.parametrize(
    ("processes", "shards", "groups", "remarks"),
    [
        (2, 4, 40, []),
        (1, 1, 3, []),
        (
            2,
            4,
            12,
            [
                (
                    "row groups are fetched 1.2 times an epoch, since 4 virtual shards share 12 of "
                    "them; virtual_shards = 1 fits."
                )
            ],
        ),
        (
            3,
            4,
            40,
            [
                (
                    "row groups are fetched 1.5 times an epoch, since 3 processes do not divide 4 "
                    "virtual shards; 1, 2, 4 processes do."
                )
            ],
        ),
    ],
)
def test_bytes_that_are_fetched_twice_are_told_with_the_numbers_that_fit(
    processes, shards, groups, remarks
):
    of = order(shards=shards, global_batch=24, lengths=(5,) * groups)
    rows = np.split(np.arange(24), processes)
    assert of.remarks(rows[0]) == remarks
    assert not any(of.remarks(own) for own in rows[1:])
