"""Checkpoints on disk: complete or quarantined, and restored to the last bit."""

import errno
import gc
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from support import fake_buckets

from nest_dist.base import failures
from nest_dist.checkpointing import catalog, manager, orbax, reader, retention
from nest_dist.cluster import lease

RNG = np.random.default_rng(0)
STATE = {
    "step": jnp.int32(7),
    "params": {
        "large": jnp.asarray(RNG.standard_normal((300, 256)), jnp.float32),
        "small": jnp.asarray(RNG.standard_normal((5, 3)), jnp.bfloat16),
    },
}
METADATA = {"configuration": "", "class_names": []}


def abstract(state=STATE):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def opened(folder, **policy):
    return manager.Manager(folder, retention.Retention(**policy))


def saved(folder, steps, metrics=None, **policy):
    checkpoints = opened(folder, **policy)
    for step in steps:
        checkpoints.save(step, STATE, METADATA)
        if metrics:
            checkpoints.record(step, metrics[step])
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Checkpoints of steps 1, 2 and 3."""
    return saved(tmp_path_factory.mktemp("complete"), (1, 2, 3))


@pytest.fixture
def folder(complete, tmp_path):
    return pathlib.Path(shutil.copytree(complete, tmp_path / "checkpoints"))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def content_of(folder):
    return {path.name: path.read_bytes() for path in files(folder)}


def newest(checkpoints):
    """The step and the state from which a run goes on, and the notes about others."""
    while True:
        step, _ = checkpoints.newest()
        try:
            return step, checkpoints.restore(step, abstract()), checkpoints.notes()
        except catalog.Corrupt as corrupt:
            checkpoints.quarantine(step, str(corrupt))


def test_a_state_is_restored_to_the_last_bit(folder):
    checkpoints = opened(folder)
    assert checkpoints.steps() == [1, 2, 3]
    step, state, notes = newest(checkpoints)
    assert (step, notes) == (3, [])
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    checkpoints.close()


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_damage_to_any_file_is_found_or_changes_nothing(damage, complete, tmp_path):
    source, quarantined = complete / "3", set()
    for number, name in enumerate(path.relative_to(source) for path in files(source)):
        folder = pathlib.Path(shutil.copytree(complete, tmp_path / str(number)))
        victim = folder / "3" / name
        if not victim.stat().st_size and damage is not pathlib.Path.unlink:
            continue
        damage(victim)
        content = content_of(folder / "3")
        checkpoints = opened(folder)
        step, state, notes = newest(checkpoints)
        checkpoints.close()
        jax.tree.map(np.testing.assert_array_equal, state, STATE)
        if step == 2:
            (note,) = notes
            assert note.startswith("checkpoint 3 is corrupt (")
            assert note.endswith(f"); quarantined as {folder}/3.damaged")
            assert content_of(folder / "3.damaged") == content
            quarantined.add(name.parts[0] if len(name.parts) == 1 else name.parts[1])
        else:
            assert (step, notes) == (3, [])
    # What holds the arrays, their names, and our own metadata is never optional.
    assert quarantined >= {"metadata.json", "metadata.sha256", "d"}


def test_a_folder_without_its_marker_is_quarantined_beside_an_earlier_one(folder):
    (folder / "3" / catalog.MARKER).unlink()
    text = "checkpoint 3 is corrupt (metadata.sha256 is missing)"
    assert ("3", text, True) in list(reader.Reader(folder).verified())
    checkpoints = opened(folder)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.newest()[0] == 2
    (note,) = checkpoints.notes()
    assert "checkpoint 3 is corrupt (metadata.sha256 is missing); quarantined as" in note
    # The next one of the same step does not replace the first.
    shutil.copytree(folder / "3.damaged", folder / "3")
    checkpoints.newest()
    assert (folder / "3.damaged").exists()
    assert (folder / "3.damaged.2").exists()
    checkpoints.close()


def test_a_run_without_any_complete_checkpoint_does_not_begin_again(folder):
    for step in (1, 2, 3):
        truncate(folder / str(step) / "metadata.json")
    before = content_of(folder)
    checkpoints = opened(folder)
    for _ in range(2):
        text = r"has no complete checkpoint \(checkpoint 3 is corrupt .*; bring one back, give"
        with pytest.raises(failures.BadInput, match=text):
            checkpoints.newest()
    assert content_of(folder) == before
    for step in (1, 2, 3):
        checkpoints.quarantine(step, "why")
    with pytest.raises(failures.BadInput, match=r"complete checkpoint \(1.damaged\)"):
        checkpoints.newest()
    checkpoints.close()
    assert opened(folder.parent / "other").newest() == (0, {})


FOREIGN = ("notes", "0100", "-4", "4.5", "²", "٣٣", ".DS_Store", ".nfs0001", "9.unwanted")


def test_foreign_entries_are_left_alone(folder):
    for name in FOREIGN:
        (folder / name).mkdir()
    (folder / "99").write_text("a file")
    (folder / "77").symlink_to("77")
    for name in (".DS_Store", ".nfs0001", "desktop.ini"):
        (folder / "3" / name).write_text("x")
        (folder / "3" / "state" / name).write_text("x")
    checkpoints = opened(folder, last=1)
    step, state, notes = newest(checkpoints)
    assert (step, notes) == (3, [])
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    checkpoints.save(4, STATE, METADATA)
    checkpoints.close()
    assert checkpoints.notes() == []
    expected = {*FOREIGN, "4", "77", "99"}
    assert {path.name for path in folder.iterdir()} == expected


def _dangling(path):
    path.symlink_to("/nowhere")


@pytest.mark.parametrize("make", [pathlib.Path.mkdir, pathlib.Path.touch, _dangling])
def test_what_is_in_the_way_of_a_checkpoint_is_moved_aside(make, folder):
    checkpoints = opened(folder)
    checkpoints.newest()
    make(folder / "4")
    checkpoints.save(4, STATE, METADATA)
    checkpoints.close()
    assert checkpoints.steps() == [2, 3, 4]
    (note,) = checkpoints.notes()
    assert f"{folder}/4 was in the way of a checkpoint; quarantined as {folder}/4.dam" in note


def test_a_checkpoint_under_another_number_is_told_and_kept(folder):
    (folder / "3").rename(folder / "8")
    checkpoints = opened(folder)
    text = f"checkpoint {folder}/8 holds step 3; give the folder that name again"
    with pytest.raises(failures.BadInput, match=text):
        checkpoints.newest()
    assert ("8", text, True) in [(n, t[: len(text)], c) for n, t, c in checkpoints.verified()]
    checkpoints.close()
    assert (folder / "8").exists()


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(errno.ESTALE, failures.Unavailable, 75), (errno.EACCES, failures.BadInput, 2)],
)
@pytest.mark.parametrize("name", ["metadata.sha256", "metadata.json", "manifest.ocdbt"])
def test_what_cannot_be_read_just_now_is_not_corrupt(number, kind, code, name, folder, monkeypatch):
    monkeypatch.setattr("nest_dist.base.files.PAUSES_SECONDS", (0.0,))
    before = content_of(folder)
    read = catalog.Path.read_bytes

    def refuse(path):
        if path.name == name:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(catalog.Path, "read_bytes", refuse)
    if name == "manifest.ocdbt":  # which Orbax reads by itself: it is away for both

        def away(*_):
            raise ValueError("not found")

        monkeypatch.setattr(orbax.ocp, "load_checkpointables", away)
    checkpoints = opened(folder)
    with pytest.raises(kind, match=rf"cannot be read.*\({os.strerror(number)}\)") as raised:
        newest(checkpoints)
    assert raised.value.exit_code == code
    assert content_of(folder) == before
    if kind is failures.Unavailable:
        with pytest.raises(kind):
            list(checkpoints.verified())
    checkpoints.close()


def test_folders_that_cannot_be_looked_at_do_not_begin_a_run_again(folder, monkeypatch):
    monkeypatch.setattr("nest_dist.base.files.PAUSES_SECONDS", (0.0,))
    checkpoints = opened(folder)
    with monkeypatch.context() as patch:
        patch.setattr(catalog.Path, "stat", fail(errno.ESTALE))
        with pytest.raises(failures.Unavailable, match=r"cannot be read just now \(Stale file"):
            checkpoints.newest()
    assert newest(checkpoints)[0] == 3
    checkpoints.close()


def test_an_error_of_the_moment_is_tried_again(folder, monkeypatch):
    monkeypatch.setattr("nest_dist.base.files.PAUSES_SECONDS", (0.0, 0.0))
    read, refused = catalog.Path.read_bytes, []

    def refuse_once(path):
        if path not in refused:
            refused.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(catalog.Path, "read_bytes", refuse_once)
    checkpoints = opened(folder)
    assert newest(checkpoints)[0] == 3
    checkpoints.close()
    assert refused


@pytest.mark.parametrize("leaf", ["large", "small"])
def test_a_restored_leaf_that_differs_from_the_devices_is_named(leaf, folder, monkeypatch):
    """As if wrong arrays were written from the start."""
    path = folder / "3" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["fingerprints"][f"params/{leaf}"] = "00000000"
    rewrite(path, metadata)
    checkpoints = opened(folder)
    assert checkpoints.newest()[0] == 3
    with pytest.raises(catalog.Corrupt, match=f"fingerprint of params/{leaf} differs, 1 of 3"):
        checkpoints.restore(3, abstract())
    assert newest(checkpoints)[0] == 2
    checkpoints.close()


@pytest.mark.parametrize("key", ["step", "arrays", "fingerprints"])
def test_metadata_that_lack_something_are_corrupt(key, folder):
    path = folder / "3" / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata[key]
    rewrite(path, metadata)
    checkpoints = opened(folder)
    step, _, (note,) = newest(checkpoints)
    assert step == 2
    assert f"checkpoint 3 is corrupt (metadata.json has no {key}); quarantined" in note
    checkpoints.close()


def rewrite(path, metadata):
    """As another program with the same format would write it."""
    path.write_text(json.dumps(metadata))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(catalog.MARKER).write_text(f"{digest}  metadata.json\n")


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(99, "use a newer nest_dist"), (2, "use nest_dist 0.1; or convert the weights with it to")],
)
@pytest.mark.parametrize("marked", [True, False])
def test_another_format_is_refused_not_quarantined(folder, version, remedy, marked):
    path = folder / "3" / "metadata.json"
    rewrite(path, {**json.loads(path.read_text()), "format_version": version})
    if not marked:
        (folder / "3" / catalog.MARKER).unlink()
    checkpoints = opened(folder)
    text = f"3 has format {version}, this program reads 3; {remedy}"
    for read in (checkpoints.newest, lambda: checkpoints.metadata(3)):
        with pytest.raises(failures.BadInput, match=text):
            read()
    checkpoints.close()
    assert (folder / "3").exists()


def test_leftovers_of_an_interrupted_save_are_removed_by_the_next_run_only(folder):
    for name in ("4.saving", "5.saving.orbax-checkpoint-tmp", "1.removing"):
        (folder / name).mkdir()
    entries = reader.Reader(folder).verified()
    assert {name: text for name, text, _ in entries if text != "complete"} == dict.fromkeys(
        ("1.removing", "4.saving", "5.saving.orbax-checkpoint-tmp"),
        "not complete: being saved or removed, or left by a killed run",
    )
    assert (folder / "4.saving").exists()
    opened(folder).close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def fail(number):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    return failing


def failing_write(number, times):
    """`files.write_durably`, which fails at first."""
    write, left = catalog.files.write_durably, [None] * times

    def failing(*arguments):
        if left:
            left.pop()
            raise OSError(number, os.strerror(number))
        write(*arguments)

    return failing


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, failures.Unavailable),
        (errno.EIO, failures.Unavailable),
        (errno.ESTALE, failures.Unavailable),
        (errno.EROFS, failures.BadInput),
    ],
)
def test_a_save_that_fails_is_reported_in_one_line(number, kind, tmp_path, monkeypatch):
    checkpoints = opened(tmp_path)
    monkeypatch.setattr("nest_dist.base.files.PAUSES_SECONDS", (0.0, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr("nest_dist.base.files.write_durably", fail(number))
        checkpoints.save(1, STATE, METADATA)
        with pytest.raises(kind, match=rf"saved \({os.strerror(number)}\); make room"):
            checkpoints.wait()
    assert checkpoints.steps() == []
    assert checkpoints.newest() == (0, {})
    checkpoints.close()


def test_a_save_outlives_a_moment_of_trouble(tmp_path, monkeypatch):
    checkpoints = opened(tmp_path)
    monkeypatch.setattr("nest_dist.base.files.PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("nest_dist.base.files.write_durably", failing_write(errno.ESTALE, 2))
    checkpoints.save(1, STATE, METADATA)
    checkpoints.close()
    assert checkpoints.steps() == [1]


def test_orbax_that_cannot_begin_a_save_is_reported_likewise(tmp_path, monkeypatch):
    checkpoints = opened(tmp_path)
    monkeypatch.setattr(orbax, "save", fail(errno.EIO))
    with pytest.raises(failures.Unavailable, match=r"1 could not be saved \(Input/output error\)"):
        checkpoints.save(1, STATE, METADATA)
    checkpoints.close()


def test_arrays_that_were_not_stored_are_no_checkpoint(tmp_path, monkeypatch):
    checkpoints = opened(tmp_path)
    monkeypatch.setattr(orbax, "stored", lambda folder: {"step": STATE["step"]})
    checkpoints.save(1, STATE, METADATA)
    with pytest.raises(failures.Failure, match="holds params/large as None, this configuration"):
        checkpoints.close()
    assert checkpoints.steps() == []


@pytest.mark.parametrize("function", ["rename", "rmtree"])
def test_an_older_checkpoint_that_cannot_be_removed_is_noted(function, folder, monkeypatch):
    """EXDEV is the answer of an overlay to the renaming of a folder of its lower layer."""
    number = {"rename": errno.EXDEV, "rmtree": errno.EBUSY}[function]
    plain = getattr(catalog.Path, function)

    def failing(path, *more):
        if path.name in ("1", "1.removing"):
            raise OSError(number, os.strerror(number))
        return plain(path, *more)

    monkeypatch.setattr(catalog.Path, function, failing)
    checkpoints = opened(folder)
    checkpoints.save(4, STATE, METADATA)
    checkpoints.close()
    if function == "rename":
        assert (checkpoints.steps(), checkpoints.notes()) == ([2, 3, 4], [])
    else:
        (note,) = checkpoints.notes()
        assert (
            note
            == f"{folder}/1.removing stays, since it cannot be removed (Device or resource busy)"
        )


def test_damage_to_older_checkpoints_never_fails_a_save(folder):
    truncate(folder / "1" / "metadata.json")
    (folder / "2" / "metadata.json").unlink()
    (folder / "1" / "evaluation.json").write_text("{")
    checkpoints = opened(folder, last=1)
    checkpoints.save(4, STATE, METADATA)
    checkpoints.close()
    # One that may be the best is kept: its metrics cannot be read.
    assert checkpoints.steps() == [1, 4]


def test_nothing_older_is_removed_before_a_checkpoint_is_durable(tmp_path, monkeypatch):
    """The order of all syncs, renamings and removals of a save."""
    folder, events = saved(tmp_path / "checkpoints", (1,), last=1), []
    fsync, rename, replace, rmtree = os.fsync, os.rename, os.replace, catalog.Path.rmtree

    def synced(descriptor):
        fsync(descriptor)
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def renamed(name, how):
        def rename(source, target, **more):
            how(source, target, **more)
            events.append((name, os.fspath(target)))

        return rename

    def removed(path):
        rmtree(path)
        events.append(("remove", os.fspath(path)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed("rename", rename))
    monkeypatch.setattr(os, "replace", renamed("rename", replace))
    monkeypatch.setattr(catalog.Path, "rmtree", removed)
    checkpoints = opened(folder, last=1)
    checkpoints.save(2, STATE, METADATA)
    checkpoints.close()
    monkeypatch.undo()
    pending = f"{folder}/2.saving"
    marked = events.index(("rename", f"{pending}/{catalog.MARKER}"))
    before = {path for kind, path in events[:marked] if kind == "sync"}
    for path in (folder / "2").rglob("*"):
        if path.name not in (catalog.MARKER, catalog.METADATA):
            assert str(pending / path.relative_to(folder / "2")) in before, path
    named = events.index(("rename", f"{folder}/2"))
    assert {pending, str(folder)} <= before
    assert ("sync", pending) in events[marked:named]
    gone = events.index(("remove", f"{folder}/1.removing"))
    assert ("sync", str(folder)) in events[named:gone]


def test_a_restore_reads_each_byte_once(tmp_path):
    big = {"step": jnp.int32(1), "x": jnp.asarray(RNG.standard_normal(1 << 22), jnp.float32)}
    checkpoints = opened(tmp_path)
    checkpoints.save(1, big, METADATA)
    checkpoints.wait()
    size = sum(path.stat().st_size for path in files(tmp_path))
    before = psutil.Process().io_counters().read_chars
    checkpoints.newest()
    checkpoints.restore(1, abstract(big))
    assert psutil.Process().io_counters().read_chars - before < 1.1 * size
    checkpoints.close()


def test_the_lease_is_checked_before_each_save(folder):
    def require_held():
        raise lease.Lost("gone")

    before = content_of(folder)
    checkpoints = manager.Manager(folder, retention.Retention(), require_held)
    with pytest.raises(lease.Lost):
        checkpoints.save(4, STATE, METADATA)
    checkpoints.close()
    assert content_of(folder) == before


def test_an_evaluation_is_kept_beside_its_checkpoint(tmp_path):
    checkpoints = opened(tmp_path)
    checkpoints.save(1, STATE, METADATA)
    checkpoints.record(1, {"eval/top_1": 0.5, "eval/loss": math.nan})
    checkpoints.record(2, {"eval/top_1": 0.5})  # a step without a checkpoint
    checkpoints.save(3, STATE, METADATA)
    checkpoints.close()
    assert [bool(checkpoints.evaluation(step)) for step in (1, 3)] == [True, False]
    written = json.loads((tmp_path / "1" / "evaluation.json").read_text())
    assert written == {"eval/top_1": 0.5, "eval/loss": None}
    assert not (tmp_path / "2").exists()
    (tmp_path / "1" / "evaluation.json").write_text("")  # the evaluation is made again
    assert not checkpoints.evaluation(1)


def test_a_reader_turns_to_the_newest_when_a_run_removes_what_it_reads(folder):
    checkpoints, taken = reader.Reader(folder), []

    def read(step):
        taken.append(step)
        if step == 3:
            shutil.copytree(folder / "3", folder / "9.saving")
            path = folder / "9.saving" / "metadata.json"
            rewrite(path, {**json.loads(path.read_text()), "step": 9})
            (folder / "9.saving").rename(folder / "9")
            shutil.rmtree(folder / "3")
        return checkpoints.arrays(step)

    step, state = checkpoints.read(None, read)
    assert (step, taken) == (9, [3, 9])
    assert state.keys() == {"step", "params/large", "params/small"}
    shutil.rmtree(folder / "2")
    text = "has no checkpoint of step 2; give one of 1, 9"
    with pytest.raises(failures.BadInput, match=text):
        checkpoints.read(2, read)

    def removed(step):
        shutil.rmtree(folder / str(step))
        return checkpoints.arrays(step)

    text = "checkpoint .*/1 is being removed by its run; take another one"
    with pytest.raises(failures.Unavailable, match=text):
        checkpoints.read(1, removed)
    with pytest.raises(failures.BadInput, match="has no checkpoint yet; train first"):
        reader.Reader(folder / "none").read(None, read)


def test_the_newest_every_nth_and_the_best_are_retained(tmp_path):
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
        checkpoints.save(step, state, METADATA)
        if step % 5 == 0:
            checkpoints.wait()
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss / 2**20)
    checkpoints.close()
    print([round(size) for size in sizes], "MiB")
    # The caches of allocators fill at first; if a copy of each save stayed, that would be 8 MiB
    # each, 480 from the 40th to the 100th.
    assert max(sizes[-4:]) - max(sizes[4:8]) < 48


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ({"last": 2}, {3, 4}),
        ({"last": 1, "best": 1}, {2, 4}),
        ({"last": 1, "best": 1, "metric": "eval/loss"}, {1, 4}),
        ({"last": 1, "every_steps": 3}, {3, 4}),
        ({"last": 9}, {1, 2, 3, 4}),
    ],
)
def test_a_policy_retains_its_steps(policy, steps):
    measured = {
        1: {"eval/top_1": 0.1, "eval/loss": 0.1},
        2: {"eval/top_1": 0.9, "eval/loss": 0.9},
        3: {},
        4: {"eval/top_1": 0.5, "eval/loss": 0.5},
    }
    assert retention.Retention(**policy).retained(measured) == steps


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ({"last": 0}, "Retention.last is 0; it must be at least 1"),
        ({"every_steps": 0}, "Retention.every_steps is 0; it must be at least 1"),
        ({"best": -1}, "Retention.best is -1; it must be at least 0"),
        (
            {"metric": "eval/top1"},
            "Retention.metric is 'eval/top1', which is unknown; did",
        ),
    ],
)
def test_an_unknown_policy_is_refused(policy, text):
    with pytest.raises(failures.BadInput, match=text):
        retention.Retention(**policy)


def test_the_best_needs_an_evaluation_for_each_checkpoint():
    retention.Retention(best=1).require_evaluated(save_every=10, evaluate_every=5)
    with pytest.raises(failures.BadInput, match=r"each 5 steps has no\s+evaluation of its own"):
        retention.Retention(best=1).require_evaluated(save_every=5, evaluate_every=10)


@pytest.mark.parametrize("metric", retention.METRICS)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_an_evaluation_that_is_not_finite_never_displaces_the_best(metric, broken):
    policy = retention.Retention(last=1, best=2, metric=metric)
    first, second = (0.9, 0.7) if retention.METRICS[metric] else (0.1, 0.5)
    for order in itertools.permutations([0.1, 0.5, 0.7, 0.9, broken, broken]):
        retained = policy.retained({step: {metric: value} for step, value in enumerate(order)})
        assert {order.index(first), order.index(second)} <= retained


def test_a_checkpoint_after_a_broken_evaluation_leaves_the_best_on_disk(tmp_path):
    losses = (0.5, math.nan, 0.9, math.nan, math.inf)
    checkpoints = opened(tmp_path, last=1, best=1, metric="eval/loss")
    for step, loss in enumerate(losses):
        checkpoints.save(step, {"x": jnp.float32(step)}, METADATA)
        checkpoints.record(step, {"eval/loss": loss})
    checkpoints.close()
    assert opened(tmp_path).steps() == [0, 4]


@pytest.mark.slow
def test_a_bucket_holds_checkpoints_that_are_complete_or_absent(tmp_path, monkeypatch):
    with fake_buckets.Buckets(tmp_path / "buckets") as buckets:
        for name, value in buckets.environment.items():
            monkeypatch.setenv(name, value)
        (buckets.folder / "mine").mkdir()
        folder, objects = "gs://mine/run/checkpoints", buckets.folder / "mine" / "run"
        saved(folder, (1, 2, 3, 4), last=2)
        objects = objects / "checkpoints"
        assert sorted(path.name for path in objects.iterdir()) == ["3", "4"]
        flip(next((objects / "4" / "state" / "d").iterdir()))
        # Saves that were killed, before and after the metadata; and what another program left.
        for killed in ("5", "6"):
            shutil.copytree(objects / "3", objects / killed)
            (objects / killed / catalog.MARKER).unlink()
        (objects / "6" / catalog.METADATA).unlink()
        (objects / "7").mkdir()
        (objects / "7" / "notes").write_text("mine")
        states = {name: text for name, text, _ in reader.Reader(folder).verified()}
        assert states["3"] == "complete"
        assert "4 is corrupt (" in states["4"]
        assert states["5"].startswith("not complete: being saved")
        checkpoints = opened(folder, last=2)
        assert not {"5", "6"} & {path.name for path in objects.iterdir()}
        step, state, notes = newest(checkpoints)
        assert step == 3
        assert len(notes) == 2
        jax.tree.map(np.testing.assert_array_equal, state, STATE)
        checkpoints.save(8, STATE, METADATA)
        checkpoints.record(8, {"eval/top_1": 0.5})
        checkpoints.close()
        assert checkpoints.steps() == [3, 8]
        assert checkpoints.evaluation(8)
        left = sorted(path.name for path in objects.iterdir())
        assert left == ["3", "4.damaged", "7.damaged", "8"]
