"""Checkpoints on disk: whole or set aside, and never anything else than what was saved."""

import errno
import gc
import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from nest_dist.base import failures
from nest_dist.checkpointing import digests, keep, manager, states

RNG = np.random.default_rng(0)
STATE = {
    "step": jnp.int32(7),
    "params": {
        "large": jnp.asarray(RNG.standard_normal((300, 256)), jnp.float32),
        "small": jnp.asarray(RNG.standard_normal((5, 3)), jnp.bfloat16),
    },
}
METADATA = {"configuration": "", "class_names": []}


def abstract():
    return states.abstract(STATE, jax.tree.map(lambda leaf: leaf.sharding, STATE))


def opened(folder, **policy):
    return manager.Manager(folder, keep.Keep(**policy))


def saved(folder, steps, metrics=None, **policy):
    checkpoints = opened(folder, **policy)
    for step in steps:
        checkpoints.save(step, STATE, METADATA, (metrics or {}).get(step, {}))
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3."""
    return saved(tmp_path_factory.mktemp("whole"), (1, 2, 3))


@pytest.fixture
def folder(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole, tmp_path / "checkpoints"))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def content_of(folder):
    return {path.name: path.read_bytes() for path in files(folder)}


def test_what_was_saved_comes_back_to_the_last_bit(folder):
    checkpoints = opened(folder)
    assert checkpoints.steps() == [1, 2, 3]
    assert checkpoints.newest_whole() == (3, [])
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(3, abstract()), STATE)
    checkpoints.close()


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_damage_to_any_file_is_seen_named_and_set_aside(damage, whole, tmp_path):
    for number, name in enumerate(path.relative_to(whole / "3") for path in files(whole / "3")):
        folder = pathlib.Path(shutil.copytree(whole, tmp_path / str(number)))
        victim = folder / "3" / name
        if not victim.stat().st_size and damage is not pathlib.Path.unlink:
            continue
        damage(victim)
        damaged = content_of(folder / "3")
        checkpoints = opened(folder)
        step, (note,) = checkpoints.newest_whole()
        checkpoints.close()
        assert step == 2
        assert "checkpoint 3 is damaged (" in note
        assert f"set aside as {folder}/3.damaged" in note
        if victim.name != digests.MANIFEST:
            assert str(name) in note
        assert content_of(folder / "3.damaged") == damaged


def test_a_folder_without_its_manifest_was_never_finished(folder):
    (folder / "3" / digests.MANIFEST).unlink()
    checkpoints = opened(folder)
    assert checkpoints.steps() == [1, 2]
    step, notes = checkpoints.newest_whole()
    assert (step, len(notes)) == (2, 1)
    assert "SHA256SUMS is missing: it was never finished" in notes[0]
    # The next one of the same step does not take the place of the first.
    shutil.copytree(folder / "3.damaged", folder / "3")
    checkpoints.newest_whole()
    assert (folder / "3.damaged").exists()
    assert (folder / "3.damaged.2").exists()
    checkpoints.close()


def test_a_file_that_nobody_saved_is_named(folder):
    (folder / "3" / "state" / "more").write_text("")
    assert digests.problem(folder / "3") == "state/more is not in SHA256SUMS"


def test_all_damaged_leaves_nothing_to_go_on_from_but_everything_on_disk(folder):
    for step in (1, 2, 3):
        truncate(folder / str(step) / "metadata.json")
    checkpoints = opened(folder)
    step, notes = checkpoints.newest_whole()
    checkpoints.close()
    assert (step, len(notes)) == (0, 3)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{step}.damaged" for step in (1, 2, 3)
    ]


@pytest.mark.parametrize("leaf", ["large", "small"])
def test_a_restored_leaf_that_is_not_what_the_devices_held_is_named(leaf, folder):
    """The content digests say nothing where something else was written from the start."""
    path = folder / "3" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["fingerprints"][f"params/{leaf}"] = "00000000"
    path.write_text(json.dumps(metadata))
    digests.write(manager.epath.Path(folder / "3"))
    checkpoints = opened(folder)
    assert checkpoints.newest_whole() == (3, [])
    with pytest.raises(manager.Damaged, match=f"fingerprint of params/{leaf} differs, 1 of 3"):
        checkpoints.restore(3, abstract())
    assert "3.damaged" in checkpoints.set_aside(3, "why")
    assert checkpoints.newest_whole() == (2, [])
    checkpoints.close()


def test_a_newer_format_is_refused_not_set_aside(folder):
    path = folder / "3" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    digests.write(manager.epath.Path(folder / "3"))
    checkpoints = opened(folder)
    assert checkpoints.newest_whole() == (3, [])
    with pytest.raises(failures.BadInput, match="has format 99, this program reads up to 1"):
        checkpoints.metadata(3)
    checkpoints.close()


def test_what_an_interrupted_save_left_is_removed_by_the_next_run_only(folder):
    for name in ("4.orbax-checkpoint-tmp", "1.unwanted"):
        (folder / name).mkdir()
    manager.Manager(folder, keep=None).close()
    assert (folder / "4.orbax-checkpoint-tmp").exists()
    opened(folder).close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_a_save_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(digests, "write", full)
        checkpoints.save(1, STATE, METADATA, {})
        with pytest.raises(failures.Failure, match=r"saved \(No space left on device\); make room"):
            checkpoints.wait()
    assert checkpoints.steps() == []
    checkpoints.close()


def test_the_newest_every_kth_and_the_best_stay(tmp_path):
    top_1 = dict(zip(range(1, 9), (0.1, 0.9, 0.2, 0.3, 0.8, 0.4, 0.3, 0.2), strict=True))
    metrics = {step: {"eval/top_1": value} for step, value in top_1.items()}
    folder = saved(tmp_path, range(1, 9), metrics, last=1, every_steps=4, best=2)
    checkpoints = opened(folder)
    assert checkpoints.steps() == [2, 4, 5, 8]
    checkpoints.close()


@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_saves(tmp_path):
    leaf = jnp.zeros((1 << 18,))  # 1 MiB
    checkpoints = opened(tmp_path, last=1)
    sizes = []
    for step in range(1, 101):
        state = {f"leaf_{number}": leaf + step for number in range(8)}
        checkpoints.save(step, state, METADATA, {})
        if step % 5 == 0:
            checkpoints.wait()
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss / 2**20)
    checkpoints.close()
    print([round(size) for size in sizes], "MiB")
    # The caches of allocators fill at first; a copy that is kept of each save would be 8 MiB each,
    # 480 from the 40th to the 100th.
    assert max(sizes[-4:]) - max(sizes[4:8]) < 48


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ({"last": 2}, {3, 4}),
        ({"last": 1, "best": 1}, {2, 4}),
        ({"last": 1, "best": 1, "metric": "eval/loss"}, {1, 4}),
        ({"last": 1, "every_steps": 3}, {3, 4}),
        ({"last": 9}, {1, 2, 3, 4}),
    ],
)
def test_a_policy_keeps_what_it_says(policy, kept):
    measured = {
        1: {"eval/top_1": 0.1, "eval/loss": 0.1},
        2: {"eval/top_1": 0.9, "eval/loss": 0.9},
        3: {},
        4: {"eval/top_1": 0.5, "eval/loss": 0.5},
    }
    assert keep.Keep(**policy).kept(measured) == kept


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"last": 0}, "Keep.last is 0; it must be at least 1"),
        ({"every_steps": 0}, "Keep.every_steps is 0; it must be at least 1"),
        ({"best": -1}, "Keep.best is -1; it must be at least 0"),
        ({"metric": "eval/top1"}, "Keep.metric is 'eval/top1', which is unknown; did you mean"),
    ],
)
def test_an_unknown_policy_is_refused(policy, text):
    with pytest.raises(failures.BadInput, match=text):
        keep.Keep(**policy)


def test_the_best_needs_an_evaluation_for_each_checkpoint():
    keep.Keep(best=1).require_evaluated(save_every=10, evaluate_every=5)
    with pytest.raises(failures.BadInput, match=r"each 5 steps has no\s+evaluation of its own"):
        keep.Keep(best=1).require_evaluated(save_every=5, evaluate_every=10)
