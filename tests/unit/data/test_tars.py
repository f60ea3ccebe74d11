"""Tars in webdataset's form: by number, listed once, and refused in one line."""

import json

import pytest
from support import archives, batches, datasets, refusals

from nest_dist.base import failures
from nest_dist.data.sources import retries, tar_archive, tars

PICTURES = datasets.pictures()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def members(number, count=4, label=str, suffix="cls"):
    """Some pictures of three photographs, each with its class and a text beside it."""
    found = []
    for name, label_number, picture in PICTURES[number * count : (number + 1) * count]:
        key = name.replace("/", "_").removesuffix(".jpg")
        found += [
            (f"{key}.jpg", picture),
            (f"{key}.{suffix}", str(label(label_number)).encode()),
            (f"{key}.txt", b"a caption"),
        ]
    return found


def write(folder, count=3, **fields):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        content = archives.tar_bytes(members(number, **fields))
        (folder / f"set-train-{number:04d}.tar").write_bytes(content)
    return folder


def opened(folder, split="train", **fields):
    return retries.opened("a split", tars.Tars((str(folder),), split, **fields))


def test_examples_are_read_by_their_number(tmp_path):
    source = opened(write(tmp_path / "data"))
    assert len(source) == 12
    assert source.class_names == ("0", "1", "2")
    for number in (11, 0, 5):
        name, label, picture = PICTURES[number]
        example = source[number]
        assert (example["image"], example["labels"]) == (picture, (label,))
        stored = name.replace("/", "_")
        assert example["key"] == f"set-train-{number // 4:04d}.tar: {stored}"
    assert source.known_labels().tolist() == [label for _, label, _ in PICTURES]
    part = opened(tmp_path / "data", "train[!::4]")
    assert [part[0]["key"], len(part)] == [source[1]["key"], 9]


def test_batches_of_tars_are_the_same_on_any_number_of_processes(tmp_path):
    source = opened(write(tmp_path / "data"))
    alone = batches.digests(batches.training(source, steps=3, threads=1))
    for first, processes in ((0, 4), (2, 2)):
        fields = {"steps": 3 - first, "first_step": first, "processes": processes}
        assert batches.digests(batches.training(source, threads=1, **fields)) == alone[first:]


@pytest.mark.parametrize(
    ("label", "suffix", "binding"),
    [
        (lambda it: datasets.CLASSES[it], "cls", "cls"),
        (lambda it: json.dumps({"label": datasets.CLASSES[it]}), "json", "json:label"),
        (lambda it: datasets.CLASSES[it], "class.txt", "class.txt"),
    ],
)
def test_classes_may_have_names(label, suffix, binding, tmp_path):
    folder = write(tmp_path / "data", label=label, suffix=suffix)
    source = opened(folder, label=binding)
    assert source.class_names == datasets.CLASSES
    assert source.known_labels().tolist() == [label for _, label, _ in PICTURES]


def test_an_archive_is_listed_once(tmp_path, monkeypatch):
    first = opened(write(tmp_path / "data"))
    listed = []
    walk = tar_archive.members
    monkeypatch.setattr(
        tar_archive,
        "members",
        lambda file: (listed.append(file.storage.name.rpartition("/")[2]), walk(file))[1],
    )
    assert opened(tmp_path / "data").fingerprint == first.fingerprint
    assert listed == []
    # One that has changed, and one whose index is damaged.
    changed = tmp_path / "data" / "set-train-0001.tar"
    changed.write_bytes(archives.tar_bytes(members(1)[3:]))
    (tmp_path / "data" / "set-train-0002.tar.index").write_bytes(b"PK\3\4 cut short")
    second = opened(tmp_path / "data")
    assert sorted(listed) == ["set-train-0001.tar", "set-train-0002.tar"]
    assert (len(second), second.fingerprint == first.fingerprint) == (11, False)


def test_the_fingerprint_is_of_the_content_wherever_it_lies(tmp_path):
    first, second = (opened(write(tmp_path / name)) for name in ("one", "other"))
    assert first.fingerprint == second.fingerprint


def test_an_index_goes_to_the_cache_where_the_folder_may_not_be_written(
    tmp_path, monkeypatch, caplog
):
    folder = write(tmp_path / "data")
    written = tars.files.write_durably

    def refuse(path, writer):
        if path.parent == folder or refused_everywhere:
            raise PermissionError(13, "Permission denied")
        written(path, writer)

    refused_everywhere = False
    monkeypatch.setattr(tars.files, "write_durably", refuse)
    opened(folder)
    assert not list(folder.glob("*.index"))
    cached = list((tmp_path / "cache" / "nest_dist" / "tars").glob("*.index"))
    assert len(cached) == 3
    monkeypatch.setattr(tar_archive, "members", lambda path: pytest.fail("listed again"))
    assert len(opened(folder)) == 12
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    refused_everywhere = True
    monkeypatch.setattr(tars.files, "write_durably", refuse)
    assert len(opened(folder)) == 12
    assert "cannot be kept (Permission denied); each start lists it anew" in caplog.text


def test_an_archive_that_changes_while_it_is_read_is_told(tmp_path):
    source = opened(write(tmp_path / "data"))
    path = tmp_path / "data" / "set-train-0000.tar"
    for content in (archives.tar_bytes(members(0)[3:]), b""):
        path.write_bytes(content)
        with pytest.raises(failures.BadInput, match=r"0.tar has changed since it was opened"):
            source[0]


@pytest.mark.parametrize(
    ("content", "label", "refusal"),
    [
        (
            b"\x1f\x8b rest",
            "cls",
            "is compressed, so its members cannot be read by their offset; d",
        ),
        (b"no tar" * 500, "cls", "is no complete tar archive: "),
        (
            archives.tar_bytes(members(0))[:3000],
            "cls",
            "is no complete tar archive: it has no end at byte 2560 of 3000",
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("b.cls", b"0")]),
            "cls",
            (
                "has a.jpg and no a.cls; give each picture its class, or set Tars.label to the "
                "suffix of its member."
            ),
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.png", b"2"), ("a.cls", b"0")]),
            "cls",
            ("has two pictures of key 'a', a.jpg and a.png; give each example a key of its own."),
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.json", b"{}")]),
            "json:label",
            "train.tar tells no class ('label'); correct it, or Tars.label.",
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.json", b'{"label": [1]}')]),
            "json:label",
            "tells the class [1]; give a number or a text, or correct Tars.label.",
        ),
        (
            archives.tar_bytes(
                [("a.jpg", b"1"), ("a.cls", b"0"), ("b.jpg", b"1"), ("b.cls", b"cat")]
            ),
            "cls",
            "has numbers and texts as classes; give each picture one kind.",
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.cls", b"0"), ("a.cls", b"1")]),
            "cls",
            "train.tar says that 'a' is 0 and 1; give each example one class.",
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.cls", b"20260101000001")]),
            "cls",
            "has label 20260101000001, labels are 0 to 999999; give the number of a class",
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.cls", b"1" * 30)]),
            "cls",
            "labels are 0 to 999999; give the number of a class",
        ),
        (
            archives.tar_bytes([("a.txt", b"1")]),
            "cls",
            "and others hold no pictures; give tars that",
        ),
        (
            archives.tar_bytes([("a.jpg", b"1"), ("a.cls", b"-1")]),
            "cls",
            "and others have label -1, labels are 0 to -1; correct the label, or Tars.num_classes.",
        ),
    ],
    ids=range(13),
)
def test_what_is_no_data_set_is_refused_in_a_line(content, label, refusal, tmp_path):
    (tmp_path / "train.tar").write_bytes(content)
    with refusals.refusal(refusal) as raised:
        opened(tmp_path, label=label)
    assert "\n" not in str(raised.value)


def test_files_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(
        failures.BadInput, match=r"^Tars.files has 'missing', which matches no file"
    ):
        opened("missing")
    with pytest.raises(failures.BadInput, match="has no tars of split 'test', by their names: it"):
        opened(write(tmp_path / "data"), "test")
    with pytest.raises(failures.BadInput, match=r"^Tars.files is empty; give at least one file or"):
        tars.Tars((), "train").open()
    with pytest.raises(
        failures.BadInput, match="label 2, labels are 0 to 1; correct the label, or"
    ):
        opened(tmp_path / "data", num_classes=2)
