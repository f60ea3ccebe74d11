import itertools
import os
import pathlib
import pickle
import re
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from support import batches, datasets, fake_hub, parquet

from nest_dist.base import failures
from nest_dist.data.sources import huggingface, retries


@pytest.fixture
def paths(tmp_path):
    return parquet.write(tmp_path / "data")


@pytest.fixture
def server(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    with parquet.served(tmp_path / "data") as running:
        yield running


def config(files, **fields):
    given = {"dataset": "parquet", "split": "train", "virtual_shards": 2, "block": 4, **fields}
    return huggingface.HuggingFace(files=tuple(files), **given)


def addresses(server, paths):
    return [f"{server.address}/{path.rpartition('/')[2]}" for path in paths]


def examples(stream, count=40, shard=0, position=None):
    reader = stream.train(shard, 5, position)
    found = [next(reader) for _ in range(count)]
    reader.close()
    return [(bytes(each["image"]), each["label"]) for each in found]


def test_a_stream_knows_its_length_classes_and_pictures(paths):
    stream = config(paths).open()
    assert len(stream) == 36
    assert stream.shard_lengths == (26, 10)
    assert stream.class_names == datasets.CLASSES
    found = [each for shard in (0, 1) for each in stream.evaluate(shard)]
    assert sorted((bytes(each["image"]), each["label"]) for each in found) == sorted(
        (picture, label) for _, label, picture in datasets.pictures(12)
    )
    assert re.search(r"train-0000\d-of-00004.parquet: rocket/\d+.jpg", found[-1]["key"])


def test_patterns_folders_and_http_give_the_same_stream(paths, server, tmp_path):
    reference = config(paths).open()
    others = [
        config([f"{tmp_path}/data/*.parquet"]),
        config([], dataset=f"{tmp_path}/data"),
        config(addresses(server, paths)),
    ]
    for other in others:
        stream = pickle.loads(pickle.dumps(other.open()))
        assert stream.fingerprint == reference.fingerprint
        assert examples(stream) == examples(reference)


OPEN = """
from nest_dist.base import failures
from nest_dist.data.sources import huggingface
for name in {names}:
    try:
        print(huggingface.HuggingFace(name, "train", 2, block=4, attempts=1).open().fingerprint)
    except failures.BadInput as refusal:
        print(refusal)
"""


def test_a_data_set_of_the_hub_is_found_by_its_name(paths, tmp_path):
    with fake_hub.served(tmp_path / "data") as server:
        done = subprocess.run(
            [sys.executable, "-c", OPEN.format(names=(fake_hub.NAME, "someone/else"))],
            env={**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
    found, refusal = done.stdout.splitlines()
    assert found == config(paths).open().fingerprint
    assert refusal.startswith("there is no data set 'someone/else' (")
    assert refusal.endswith("; correct HuggingFace.dataset, and for a private one set HF_TOKEN.")


def test_more_virtual_shards_than_files_share_the_rows(paths):
    stream = config(paths, virtual_shards=6).open()
    assert stream.shard_lengths == (13, 5, 7, 3, 6, 2)
    found = [each for shard in range(6) for each in stream.evaluate(shard)]
    assert sorted(bytes(each["image"]) for each in found) == sorted(
        picture for _, _, picture in datasets.pictures(12)
    )
    reference, _ = batches.training(stream, global_batch=12, steps=6)
    _, positions = batches.training(stream, global_batch=12, steps=2, processes=3)
    found, _ = batches.training(
        stream, global_batch=12, steps=4, processes=2, first_step=2, positions=positions
    )
    assert batches.digests(found) == batches.digests(reference[2:])


def test_the_fingerprint_tells_other_content_and_another_deal_apart(paths, tmp_path):
    first = config(paths).open().fingerprint
    assert re.fullmatch(r"\w{16} in 2 virtual shards of blocks of 4", first)
    assert config(paths, virtual_shards=4).open().fingerprint != first
    assert config(paths, block=5).open().fingerprint != first
    others = parquet.write(tmp_path / "other", pictures_each=11)
    assert config(others).open().fingerprint != first


def test_files_may_be_opened_by_many_threads_at_once(monkeypatch):
    # Threads that find no lock here remove it in the end, each of them, and all but one fail.
    shared = huggingface.datasets.utils.tqdm
    monkeypatch.delattr(shared, "_lock", raising=False)
    huggingface._quiet.cache_clear()
    huggingface._quiet()
    assert hasattr(shared, "_lock")


def test_a_failing_server_changes_no_batch(paths, server, caplog):
    reference, _ = batches.training(config(paths).open(), steps=6)
    stream = config(addresses(server, paths)).open()
    answers = itertools.cycle((200, 500, 200, 200, 503, 200, 0, 200))
    server.fails = lambda _: next(answers)
    found, positions = batches.training(stream, steps=4, processes=2)
    assert batches.digests(found) == batches.digests(reference[:4])
    found, _ = batches.training(stream, steps=2, first_step=4, positions=positions)
    assert batches.digests(found) == batches.digests(reference[4:])
    assert len(server.asked) > 32  # each kind of failure four times at least
    assert "attempt 2 of 8" in caplog.text


@pytest.mark.parametrize("status", [500, 0])
def test_a_server_that_keeps_failing_ends_the_run_after_the_stated_attempts(
    paths, server, status, caplog
):
    stream = config(addresses(server, paths), attempts=3).open()
    asked = len(server.asked)
    server.fails = lambda _: status
    with pytest.raises(
        failures.Unavailable,
        match=r"http://127.*parquet could not be read in 3 attempts in a row \(.+\); when the stor",
    ) as ended:
        examples(stream)
    assert "\n" not in str(ended.value)
    assert ended.value.exit_code == failures.PEER_LOST  # a restart may help
    assert "attempt 3 of 3" in caplog.text
    assert asked + 3 <= len(server.asked) < asked + 60


def test_pauses_grow_up_to_a_limit(monkeypatch):
    pauses = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)

    def fail():
        raise ConnectionError("gone")

    with pytest.raises(failures.Unavailable, match=r"x could not be read in 9 attempts .*\(gone\)"):
        retries.Retries(9).run("x", fail)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60]


def test_a_fault_of_ours_is_not_repeated():
    calls = itertools.count()

    def fail():
        next(calls)
        raise TypeError("ours")

    with pytest.raises(TypeError):
        retries.Retries(5).run("x", fail)
    assert next(calls) == 1


@pytest.mark.parametrize("status", [404, 403])
def test_what_is_not_there_or_forbidden_is_refused_at_once(paths, server, status):
    server.fails = lambda _: status
    with pytest.raises(
        failures.BadInput, match=rf"is not there or may not be read \({status}.*; correct its name"
    ):
        config(addresses(server, paths)).open()
    assert len(server.asked) <= len(paths)


def test_an_address_without_a_file_is_refused(server):
    with pytest.raises(failures.BadInput, match=r"none.parquet is not there .*404 not found"):
        config([f"{server.address}/none.parquet"], virtual_shards=1).open()


def refused(message, *arguments, **fields):
    with pytest.raises(failures.BadInput, match=message) as error:
        config(*arguments, **fields).open()
    assert "\n" not in str(error.value)


def test_columns_splits_and_files_that_are_not_there_are_named_with_those_that_are(paths, tmp_path):
    refused(
        "HuggingFace.image is 'img', which.* mean image\\? There are caption, image, label",
        paths,
        image="img",
    )
    refused("HuggingFace.label is 'labels', .*did you mean label", paths, label="labels")
    refused(
        "HuggingFace.split is 'tran', .*did you mean train",
        [],
        dataset=f"{tmp_path}/data",
        split="tran",
    )
    refused(
        "HuggingFace.files has '/none/.*.parquet', where there is no file; give paths",
        ["/none/*.parquet"],
    )
    refused("HuggingFace.virtual_shards is 0; it must be at least 1", paths, virtual_shards=0)
    refused("HuggingFace.dataset is 'parquet' and HuggingFace.files has 0 names; give files if", [])


def test_what_is_no_parquet_or_has_other_columns_is_refused(paths, tmp_path):
    refused(
        "the column 'caption' holds Value.*no classes; set HuggingFace.label",
        paths,
        label="caption",
    )
    (tmp_path / "note.txt").write_text("hello")
    refused(
        "note.txt is no Parquet file; set HuggingFace.revision to 'refs/convert/parquet'",
        [f"{tmp_path}/note.txt"],
        virtual_shards=1,
    )
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(pathlib.Path(paths[0]).read_bytes()[:-10])
    refused(
        r"broken.parquet is no whole Parquet file \(.+\); fetch it again", [str(broken)], attempts=1
    )
    schema = pyarrow.schema([("image", pyarrow.binary()), ("label", pyarrow.int64())])
    empty = tmp_path / "empty.parquet"
    pyarrow.parquet.write_table(schema.empty_table(), empty)
    refused("empty.parquet has no rows; leave it out", [str(empty)], virtual_shards=1)


def test_plain_columns_of_bytes_and_integers_need_the_number_of_classes(tmp_path):
    pictures = datasets.pictures(2)
    table = pyarrow.table(
        {"jpg": [picture for _, _, picture in pictures], "cls": [label for _, label, _ in pictures]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    given = {"image": "jpg", "label": "cls", "virtual_shards": 1}
    refused(
        "the column 'cls' holds integers without names; set HuggingFace.num_classes",
        [f"{tmp_path}/a.parquet"],
        **given,
    )
    stream = config([f"{tmp_path}/a.parquet"], num_classes=3, **given).open()
    assert stream.class_names == ("0", "1", "2")
    assert [bytes(each["image"]) for each in stream.evaluate(0)] == [each[2] for each in pictures]


def test_a_picture_that_is_not_there_is_unreadable(tmp_path):
    table = pyarrow.table({"image": [None, None], "label": [0, 0]})
    table = table.set_column(0, "image", pyarrow.array([None, None], pyarrow.binary()))
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    stream = config([f"{tmp_path}/a.parquet"], virtual_shards=1, num_classes=1).open()
    with pytest.raises(
        failures.BadInput, match=r"example 0 .*a.parquet\) is unreadable: it is empty"
    ):
        batches.training(stream, steps=1, global_batch=1)


def test_code_that_comes_with_a_data_set_is_never_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refused(
        r"the data set '.*scripted' cannot be streamed \(.*script.*\); correct|there is no data",
        [],
        dataset=str(folder),
    )
    assert not (tmp_path / "ran").exists()


def test_blocks_that_do_not_fit_the_memory_are_refused(paths):
    with pytest.raises(
        failures.BadInput,
        match=r"TrainingData.read_ahead_bytes is 5000, 2 virtual shards of a process keep \d+ byte",
    ):
        batches.training(config(paths).open(), read_ahead_bytes=5000)


def test_a_checkpoint_without_the_position_of_a_shard_is_refused(paths):
    stream = config(paths).open()
    with pytest.raises(failures.BadInput, match="has no position for virtual shard 0 of the data"):
        batches.training(stream, first_step=3, positions={})
