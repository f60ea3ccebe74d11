import itertools
import pathlib
import pickle
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import batches, datasets, parquet

from nest_dist.base import failures
from nest_dist.data.sources import parquet as sources
from nest_dist.data.sources import retries


@pytest.fixture
def paths(tmp_path):
    return parquet.write(tmp_path / "data")


@pytest.fixture
def server(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    with parquet.served(tmp_path / "data") as running:
        yield running


def config(files, **fields):
    return sources.Parquet(tuple(files), **{"split": "train", "virtual_shards": 2, **fields})


def addresses(server, paths):
    return [f"{server.address}/{path.rpartition('/')[2]}" for path in paths]


def contents(source):
    rows = [source[number] for number in range(len(source))]
    return [(bytes(row["image"]), row["labels"][0]) for row in rows]


def test_rows_are_found_by_number(paths):
    source = config(paths).open()
    assert len(source) == 36
    assert source.class_names == datasets.CLASSES
    assert contents(source) == [(picture, label) for _, label, picture in datasets.pictures(12)]
    assert source[35]["key"] == "rocket/011.jpg"
    assert source[35] == pickle.loads(pickle.dumps(source))[35]


def test_patterns_folders_and_http_give_the_same_rows(paths, server, tmp_path):
    reference = config(paths).open()
    others = (f"{tmp_path}/data/*.parquet",), (f"{tmp_path}/data",), addresses(server, paths)
    for files in others:
        source = config(files).open()
        assert source.fingerprint == reference.fingerprint
        assert contents(source) == contents(reference)


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    for split, count in (("train", 2), ("validation", 1)):
        parquet.write(tmp_path / "data" / "default", files=count, split=split)
    for split, count in (("train", 2), ("validation", 1)):
        groups = config([str(tmp_path)], split=split).open().groups
        assert len({group.file.name for group in groups}) == count
    refused(
        r"no Parquet files of split 'tran', by .* has train-00000-.*; give",
        [str(tmp_path)],
        split="tran",
    )


def test_a_path_that_exists_is_meant_literally(tmp_path):
    for name in ("a[1]*", "a1"):
        parquet.write(tmp_path / name, files=1, pictures_each=len(name))
    inside = str(tmp_path / "a[1]*" / "train-00000-of-00001.parquet")
    for files in ([inside], [str(tmp_path / "a[1]*")]):
        assert len(config(files).open()) == 15


def test_other_content_has_another_fingerprint_and_another_folder_the_same(paths, tmp_path):
    first = config(paths).open().fingerprint
    others = parquet.write(tmp_path / "other", pictures_each=11)
    assert config(others).open().fingerprint != first
    again = parquet.write(tmp_path / "again")
    assert config(again).open().fingerprint == first


def test_a_failing_server_changes_no_batch(paths, server, caplog):
    reference = batches.training(config(paths).open(), steps=6)
    source = config(addresses(server, paths)).open()
    answers = itertools.cycle((200, 500, 200, 200, 503, 200, 0, 200))
    server.fails = lambda _: next(answers)
    loaded = batches.training(source, steps=4, processes=2)
    assert batches.digests(loaded) == batches.digests(reference[:4])
    loaded = batches.training(source, steps=2, first_step=4)
    assert batches.digests(loaded) == batches.digests(reference[4:])
    assert "attempt 2 of 8" in caplog.text


@pytest.mark.parametrize("status", [500, 0])
def test_a_server_that_keeps_failing_ends_the_run_after_the_stated_attempts(
    paths, server, status, caplog
):
    source = config(addresses(server, paths), attempts=3).open()
    asked = len(server.asked)
    server.fails = lambda _: status
    with pytest.raises(
        failures.Unavailable,
        match=r"http://127.*parquet could not be read in 3 attempts in a row \(.+\); when the stor",
    ) as ended:
        contents(source)
    assert "\n" not in str(ended.value)
    assert ended.value.exit_code == failures.PEER_LOST  # a restart may help
    assert "attempt 3 of 3" in caplog.text
    assert len(server.asked) == asked + 3
    server.fails = lambda _: 200
    assert contents(source) == contents(config(paths).open())


def test_each_row_group_is_fetched_once_in_an_epoch_and_nothing_twice(paths, server):
    source = config(addresses(server, paths), virtual_shards=1).open()
    opening = server.sent
    batches.training(source, steps=3, global_batch=12, threads=1)
    read = [name for name in server.asked if server.asked.count(name) > 1]
    size = sum(pathlib.Path(path).stat().st_size for path in paths)
    # The caption is not read; what comes after the epoch is read ahead.
    ahead = 2 * max(group.bytes for group in source.groups)
    assert read
    assert server.sent - opening < size + ahead


def test_connections_to_a_server_stay_open(paths, server):
    contents(config(addresses(server, paths)).open())
    # The files are opened at the same time.
    assert server.connections <= len(paths) < len(server.asked) / 2


def test_footers_that_were_read_are_remembered_until_a_file_changes(paths, server):
    config(addresses(server, paths)).open()
    first = server.sent
    config(addresses(server, paths)).open()
    assert server.sent - first < first / 2
    parquet.write(pathlib.Path(paths[0]).parent, pictures_each=11)
    assert len(config(addresses(server, paths)).open()) == 33


def test_a_file_that_changes_while_it_is_read_ends_the_run(paths, server):
    for files in (paths, addresses(server, paths)):
        source = config(files).open()
        parquet.write(pathlib.Path(paths[0]).parent, pictures_each=11)
        with pytest.raises(failures.BadInput, match="has changed since it was opened; start the"):
            contents(source)
        parquet.write(pathlib.Path(paths[0]).parent)


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
def test_a_missing_or_forbidden_file_is_refused_at_once(paths, server, status):
    server.fails = lambda _: status
    with pytest.raises(
        failures.BadInput, match=rf"is not there or may not be read \(.*{status}.*; correct its na"
    ):
        config(addresses(server, paths)).open()
    assert len(server.asked) <= len(paths)


def test_a_server_without_ranges_is_refused(paths, server):
    server.ranges = False
    with pytest.raises(failures.BadInput, match="answers no requests for ranges of bytes; copy"):
        config(addresses(server, paths)).open()


def refused(message, *arguments, **fields):
    with pytest.raises(failures.BadInput, match=message) as error:
        config(*arguments, **fields).open()
    assert "\n" not in str(error.value)


def test_missing_columns_and_files_are_refused_with_the_names_of_the_others(paths):
    refused(
        r"Parquet.image is 'img', which.* mean image\? .*parquet has image, label, caption",
        paths,
        image="img",
    )
    refused("Parquet.label is 'labels', .*did you mean label", paths, label="labels")
    refused(
        r"Parquet.files has '/none/\*.parquet', which matches no file \(/none/.*\); give",
        ["/none/*.parquet"],
    )
    refused("Parquet.files is empty; give at least", [])
    refused("Parquet.virtual_shards is 0; it must be at least 1", paths, virtual_shards=0)
    refused("hf://datasets/x is no data set; write hf://datasets/OWNER/NAME", ["hf://datasets/x"])


def test_what_is_no_parquet_is_refused(paths, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    refused(r"note.txt is no complete Parquet file \(.+\); fetch it", [f"{tmp_path}/note.txt"])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(pathlib.Path(paths[0]).read_bytes()[:-10])
    refused(r"broken.parquet is no complete Parquet file \(.+\); fetch it again", [str(broken)])


def table(path, images, labels, kind=None):
    """Writes columns "image" and "label"."""
    columns = {"image": images, "label": pyarrow.array(labels, kind)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


PICTURES = [picture for _, _, picture in datasets.pictures(2)]
STRUCT = pyarrow.struct([("path", pyarrow.large_string()), ("bytes", pyarrow.large_binary())])


@pytest.mark.parametrize(
    ("labels", "kind", "names", "numbers"),
    [
        ([0, 2, 1, 0, 2, 1], "uint8", ("0", "1", "2"), [0, 2, 1, 0, 2, 1]),
        (["b", "a"] * 3, "string", ("a", "b"), [1, 0] * 3),
        (["b", "a"] * 3, "large_string", ("a", "b"), [1, 0] * 3),
        (["b", "a"] * 3, pyarrow.dictionary("int8", "string"), ("a", "b"), [1, 0] * 3),
        ([True, False] * 3, "bool", ("false", "true"), [1, 0] * 3),
    ],
)
def test_labels_may_be_numbers_texts_or_booleans(labels, kind, names, numbers, tmp_path):
    images = [{"path": None, "bytes": picture} for picture in PICTURES]
    path = table(tmp_path / "a.parquet", pyarrow.array(images, STRUCT), labels, kind)
    source = config([path]).open()
    assert source.class_names == names
    assert contents(source) == list(zip(PICTURES, numbers, strict=True))
    assert source[1]["key"] == "a.parquet row 1"


def test_more_classes_than_labels_may_be_stated(tmp_path):
    path = table(tmp_path / "a.parquet", PICTURES, [0] * 6)
    assert config([path], num_classes=3).open().class_names == ("0", "1", "2")
    path = table(tmp_path / "b.parquet", PICTURES, [7] * 6)
    refused(
        "column 'label' of .*b.parquet and others has label 7, labels are 0 to 2; take a",
        [path],
        num_classes=3,
    )


def test_numbers_of_pictures_are_no_classes(tmp_path):
    path = table(tmp_path / "a.parquet", PICTURES, [0, 10**15] * 3)
    refused("has label 1000000000000000, labels are 0 to 999999; give the number of a", [path])


def test_files_without_rows_are_passed_over(tmp_path):
    full = table(tmp_path / "a.parquet", PICTURES, [0, 1] * 3)
    empty = table(tmp_path / "b.parquet", pyarrow.array([], "binary"), [], "int64")
    assert len(config([full, empty]).open()) == 6
    refused("b.parquet and others have no rows", [empty])


def test_columns_of_other_types_are_refused(paths, tmp_path):
    refused(
        "Parquet.image is 'caption', of type string in .*; give a column of binary, or of struct",
        paths,
        image="caption",
    )
    path = table(tmp_path / "a.parquet", PICTURES, [0.5] * 6)
    refused("Parquet.label is 'label', of type double in .*; give a column of integers,", [path])
    path = table(tmp_path / "b.parquet", PICTURES, [None, *[0] * 5])
    refused("b.parquet has 1 rows without a value in column 'label'; leave them out, or", [path])


def test_a_missing_picture_is_corrupt(tmp_path):
    path = table(tmp_path / "a.parquet", pyarrow.array([None, None], "binary"), [0, 0])
    with pytest.raises(
        failures.BadInput, match=r"example \d \(a.parquet row \d\) is corrupt: it is e"
    ):
        batches.training(config([path]).open(), steps=1, global_batch=2)


def test_row_groups_that_do_not_fit_the_memory_are_refused_before_they_are_read(paths, server):
    source = config(addresses(server, paths)).open()
    asked = len(server.asked)
    with pytest.raises(
        failures.BadInput,
        match=r"TrainingData.read_ahead_bytes is 5000, less than \d+ bytes of row groups and 1 ba"
        r".*; raise it to \d+ or lower virtual_shards or window of the source, or TrainingData.wo",
    ):
        batches.training(source, read_ahead_bytes=5000)
    assert len(server.asked) == asked


def test_the_memory_of_row_groups_stays_within_the_stated_bytes(paths):
    source = config(paths, virtual_shards=4, window=1).open()
    stated = []

    class Watched(sources.Rows):
        def holding(self, groups, ahead, limit_bytes):
            stated.append((limit_bytes, self._cache._bytes()))
            return super().holding(groups, ahead, limit_bytes)

    watched = Watched(**source.__getstate__())
    loaded = batches.training(watched, steps=40)
    assert batches.digests(loaded) == batches.digests(batches.training(source, steps=40))
    limits, held = np.array(stated).T
    assert (held <= limits).all()
    assert held.max() > limits.max() / 4


def test_what_is_fetched_twice_is_told(paths, caplog):
    batches.training(config(paths).open(), steps=1, global_batch=6, processes=3)
    assert re.search(
        r"TrainingData: row groups are fetched 2\.0 times an epoch, since 3 processes do not "
        r"divide 2 virtual shards; 1, 2 processes do\.",
        caplog.text,
    )
