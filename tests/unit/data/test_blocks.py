import collections
import itertools
import json

import numpy as np
import pytest

from nest_dist.base import failures
from nest_dist.data import batch, blocks, dealing

LENGTHS = (7, 3, 8, 1, 12, 5, 4)
SHARDS = 3


class Numbers:
    """A file whose rows are pairs of its number and theirs."""

    def __init__(self, number: int, state: batch.Position | None) -> None:
        self._number = number
        self._row = state["row"] if state else 0

    def state(self) -> batch.Position:
        return {"row": self._row}

    def take(self, count: int) -> list[batch.Example]:
        rows = range(self._row, min(self._row + count, LENGTHS[self._number]))
        self._row = rows.stop
        return [{"image": np.full((1, 1, 1), row), "label": self._number} for row in rows]

    def close(self) -> None:
        pass


def shuffled(seed: int = 0, block: int = 4) -> blocks.Shuffled:
    return blocks.Shuffled(Numbers, len(LENGTHS), SHARDS, block, seed)


def read(reader: blocks.Blocks, count: int) -> list[tuple[int, int]]:
    examples = [next(reader) for _ in range(count)]
    return [(each["label"], int(each["image"][0, 0, 0])) for each in examples]


def sequence(shard: int, count: int, **given: int) -> list[tuple[int, int]]:
    reader = blocks.Blocks(shuffled(**given), shard)
    found = read(reader, count)
    reader.close()
    return found


def test_in_each_epoch_the_shards_together_hold_every_row_once():
    for epoch in range(3):
        files = [shuffled().files_of(shard, epoch) for shard in range(SHARDS)]
        assert sorted(itertools.chain(*files)) == list(range(len(LENGTHS)))
        for shard in range(SHARDS):
            before = sum(
                sum(LENGTHS[number] for number in shuffled().files_of(shard, earlier))
                for earlier in range(epoch)
            )
            length = sum(LENGTHS[number] for number in files[shard])
            rows = sequence(shard, before + length)[before:]
            wanted = [(number, row) for number in files[shard] for row in range(LENGTHS[number])]
            assert sorted(rows) == sorted(wanted)


def test_files_and_rows_come_in_another_order_in_each_epoch_and_for_each_seed():
    orders = {tuple(shuffled(seed).files_of(0, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) > 6
    assert sequence(0, 20) != sequence(0, 20, seed=1)
    assert sequence(0, 20) == sequence(0, 20)


def test_every_order_of_a_block_is_as_likely():
    firsts = collections.Counter(
        next(row for number, row in sequence(0, 30, seed=seed) if LENGTHS[number] >= 4)
        for seed in range(1200)
    )
    # Five standard deviations of a binomial around 300 of the four rows of a first block.
    assert set(firsts) == {0, 1, 2, 3}
    assert max(abs(count - 300) for count in firsts.values()) < 75


@pytest.mark.parametrize("block", [1, 4, 100])
def test_from_any_position_the_sequence_goes_on_with_the_very_next_row(block):
    reader = blocks.Blocks(shuffled(block=block), 1)
    positions, rows = [], []
    for _ in range(40):
        positions.append(json.loads(json.dumps(reader.position())))
        rows += read(reader, 1)
    reader.close()
    for at, position in enumerate(positions):
        again = blocks.Blocks(shuffled(block=block), 1, position)
        assert again.position() == position
        assert read(again, len(rows) - at) == rows[at:]
        again.close()


class Stream:
    """Three virtual shards; nothing is ever read."""

    shard_lengths = (10, 20, 10)
    shard_bytes = 1000
    class_names = ("a",)

    def __len__(self) -> int:
        return 40


@pytest.mark.parametrize(
    ("global_batch", "rows", "message"),
    [
        (
            32,
            range(32),
            "is 32, not a multiple of the stream's 3 virtual shards; set it to 33 or change virt",
        ),
        (
            36,
            range(9),  # of four processes
            "holds 9 rows of the batch, each of 3 virtual shards supplies 12, .*; set virtual",
        ),
    ],
)
def test_shards_that_do_not_fit_batch_and_processes_are_refused(global_batch, rows, message):
    with pytest.raises(failures.BadInput, match=message):
        dealing.Deal(Stream(), global_batch, np.array(rows))


def test_each_process_reads_the_shards_of_its_own_rows():
    deals = [dealing.Deal(Stream(), 6, np.arange(2 * each, 2 * each + 2)) for each in range(3)]
    assert [deal.own_shards for deal in deals] == [[0], [1], [2]]
    assert dealing.Deal(Stream(), 6, np.arange(6)).own_shards == [0, 1, 2]
