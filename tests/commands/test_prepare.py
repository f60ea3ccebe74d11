"""`nest-dist prepare` as a user runs it, read back through the source that trains on it."""

import fcntl
import gzip
import io
import json
import os
import pty
import re
import resource
import shutil
import signal
import time

import numpy as np
import psutil
import pytest
from PIL import Image
from support import archives, commands, datasets, harness, photographs, program

from nest_dist.base import failures, files
from nest_dist.commands import cli
from nest_dist.data import manifest
from nest_dist.data.sources import array_record
from nest_dist.data.transforms import decode

CHELSEA = photographs.photograph("chelsea")[:60, :80]


def prepare(*arguments, output, split="train", workers=1):
    flags = (f"--output={output}", f"--split={split}", f"--workers={workers}")
    return program.succeeds("prepare", *arguments, *flags)


def refused(monkeypatch, *arguments, output, split="train"):
    flags = (f"--output={output}", f"--split={split}")
    return program.refuses(monkeypatch, "prepare", *arguments, *flags)


def opened(output, split="train"):
    return array_record.ArrayRecord(str(output), split).open()


def contents(source):
    examples = [source[index] for index in range(len(source))]
    return [(bytes(each["image"]), source.class_names[each["labels"][0]]) for each in examples]


def written(folder):
    """Every file of a prepared split."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def report(output, split="train"):
    lines = (output / split / "report.jsonl").read_text().splitlines()
    return {each["key"]: (each["outcome"], each["reason"]) for each in map(json.loads, lines)}


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


EXPECTED = [(picture, name.split("/")[0]) for name, _, picture in datasets.pictures()]


def made(form, root):
    """The same pictures in one of the formats, and the flags that it needs."""
    if form == "folder":
        datasets.image_folder(root)
        return [root / "train"]
    if form == "tar of tars":
        return [saved(root / "train.tar", archives.tar_of_tars(datasets.pictures()))]
    if form == "parquet":
        _, labels, pictures = zip(*datasets.pictures(), strict=True)
        return [
            archives.parquet(
                root / f"{number}.parquet",
                list(pictures[number::2]),
                list(labels[number::2]),
                datasets.CLASSES,
            )
            for number in range(2)
        ]
    datasets.tfds(root)
    return [root]


@pytest.mark.parametrize("form", ["folder", "tar of tars", "parquet", "tfds"])
def test_every_format_gives_its_pictures_byte_for_byte(form, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    said = prepare(*made(form, root), "--shards=5", output=tmp_path / "out")
    source = opened(tmp_path / "out")
    # The files of a data set are read one after the other, whatever the order of the pictures.
    assert sorted(contents(source)) == sorted(EXPECTED)
    assert source.class_names == datasets.CLASSES
    assert "train: 12 pictures of 3 classes in 5 shards, 0." in said
    about = json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())
    assert about["classes"] == dict.fromkeys(datasets.CLASSES, 4)
    assert about["examples"] == 12
    assert about["source"]["format"] == form.split()[0]
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == [
        *(f"0000{number}-of-00005.array_record" for number in range(5)),
        *("manifest.json", "report.jsonl"),
    ]
    assert report(tmp_path / "out") == {}


def test_idx_files_become_pictures_without_loss(tmp_path):
    images = np.stack([CHELSEA[..., 0], CHELSEA[..., 1], CHELSEA[..., 2]])
    for name, array in (("images-idx3", images), ("labels-idx1", np.array([1, 0, 1], np.uint8))):
        content = gzip.compress(datasets.idx_bytes(array))
        saved(tmp_path / "in" / f"t10k-{name}-ubyte.gz", content)
    names = saved(tmp_path / "names.txt", b"cat\ndog\nbird\n")
    prepare(tmp_path / "in", f"--class_names={names}", output=tmp_path, split="test")
    source = opened(tmp_path, "test")
    assert source.class_names == ("cat", "dog", "bird")
    assert [source[index]["labels"] for index in range(3)] == [(1,), (0,), (1,)]
    for index, image in enumerate(images):
        pixels = decode.pixels(source[index]["image"])
        np.testing.assert_array_equal(pixels, np.repeat(image[..., None], 3, axis=2))


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    path = saved(tmp_path / "train.tar", archives.tar_of_tars(datasets.pictures()))
    for workers in (1, 3):
        prepare(path, "--shards=4", output=tmp_path / str(workers), workers=workers)
    assert written(tmp_path / "1" / "train") == written(tmp_path / "3" / "train")


def encoded(mode, **options):
    image = Image.fromarray(CHELSEA).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(CHELSEA).convert("L"))
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


JPEG = photographs.jpeg("coffee", 60, 80)
# name: content, what becomes of it, what the report says; None for what is as it should be.
UNUSUAL = {
    "fine.jpg": (JPEG, "same", None),
    "fine.png": (encoded("RGB", format="PNG"), "same", None),
    "fine.webp": (encoded("RGB", format="WEBP"), "same", None),
    "progressive.JPEG": (encoded("RGB", format="JPEG", progressive=True), "same", None),
    "png.JPEG": (
        encoded("RGB", format="PNG"),
        "same",
        ("kept", "rgb png named as jpeg; its bytes decide"),
    ),
    "grey.jpg": (encoded("L", format="JPEG"), "same", ("kept", "grey jpeg, which is read as rgb")),
    "grey.png": (encoded("L", format="PNG"), "same", ("kept", "grey png, which is read as rgb")),
    "cmyk.jpg": (encoded("CMYK", format="JPEG"), "png", ("converted", "cmyk jpeg to rgb png")),
    "alpha.png": (
        encoded("RGBA", format="PNG"),
        "same",
        ("kept", "alpha png, which is read as rgb"),
    ),
    "alpha.webp": (
        encoded("RGBA", format="WEBP"),
        "same",
        ("kept", "alpha webp, which is read as rgb"),
    ),
    "palette.png": (encoded("P", format="PNG"), "png", ("converted", "palette png to rgb png")),
    "deep.png": (
        *(encoded("I;16", format="PNG"), "same"),
        ("kept", "grey 16-bit png, which is scaled to 8 bits when read"),
    ),
    "deep.tif": (
        *(encoded("F", format="TIFF"), "same"),
        ("kept", "32-bit tiff, which is scaled to 8 bits when read"),
    ),
    "bands.tif": (
        *(encoded("L", format="TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),),
        *("same", ("kept", "2-channel tiff, whose channels are bound for training")),
    ),
    "old.bmp": (encoded("RGB", format="BMP"), "png", ("converted", "bmp to rgb png")),
    "short.jpg": (JPEG[:-900], None, ("left out", "rgb jpeg, cut short or altered")),
    "head.png": (
        *(encoded("RGB", format="PNG")[:60], None),
        ("left out", "rgb png, cut short or altered"),
    ),
    "hole.jpg": (JPEG[:-900] + b"\xff\xd9", None, ("left out", "rgb jpeg, cut short or altered")),
    "progressive hole.jpg": (
        *(encoded("RGB", format="JPEG", progressive=True)[:-90] + b"\xff\xd9", None),
        ("left out", "Corrupt JPEG data: premature end of data segment"),
    ),
    "empty.jpg": (b"", None, ("left out", "it is empty")),
    "page.jpg": (b"<html>404", None, ("left out", "unknown, cut short or altered")),
}


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_unusual_pictures_are_kept_converted_or_left_out_and_all_are_reported(form, tmp_path):
    path = tmp_path / "in"
    if form == "folder":
        for name, (content, *_) in UNUSUAL.items():
            saved(path / "a" / name, content)
    else:
        saved(path, archives.tar_bytes((f"a/{name}", each[0]) for name, each in UNUSUAL.items()))
    said = prepare(path, "--shards=2", output=tmp_path / "out")
    source = opened(tmp_path / "out")
    found = {source[index]["key"]: bytes(source[index]["image"]) for index in range(len(source))}
    expected = {f"a/{name}": line for name, (_, _, line) in UNUSUAL.items() if line}
    assert report(tmp_path / "out") == expected
    for name, (content, fate, _) in UNUSUAL.items():
        if fate is None:
            assert f"a/{name}" not in found
            continue
        stored = found[f"a/{name}"]
        seen, before = (decode.pixels(each, decode.ANY_VALUES) for each in (stored, content))
        np.testing.assert_array_equal(seen, before)
        assert stored == content if fate == "same" else str(decode.describe(stored)) == "rgb png"
    assert "train: 15 pictures of 1 classes in 2 shards" in said
    assert (
        "report.jsonl lists what was unusual: 3 converted, 8 kept as they are, 6 left out" in said
    )


def test_data_of_corrupt_pictures_only_is_refused(tmp_path, monkeypatch):
    saved(tmp_path / "in" / "a" / "1.jpg", b"")
    line = refused(monkeypatch, tmp_path / "in", output=tmp_path)
    assert re.search("all 1 pictures of in are corrupt, .* reason: it is empty; fetch", line)


@pytest.fixture(scope="module")
def photographs_tar(tmp_path_factory):
    """A tar of tars with 480 photographs of the size that ImageNet has."""
    whole = {name: photographs.photograph(name) for name in datasets.CLASSES}
    parts = [
        (f"{name}/{number}.JPEG", 0, decode.encode(whole[name][number:300, :400].copy(), "jpeg"))
        for name in datasets.CLASSES
        for number in range(8)
    ]
    everything = [
        (name.replace(".JPEG", f"_{copy}.JPEG"), label, picture)
        for name, label, picture in parts
        for copy in range(20)
    ]
    path = tmp_path_factory.mktemp("photographs") / "photographs.tar"
    return saved(path, archives.tar_of_tars(everything))


def start(*arguments, **more):
    return harness.Process([*commands.NEST_DIST, "prepare", *arguments], **more)


def test_killed_at_any_time_it_goes_on_and_writes_the_same(photographs_tar, rng, tmp_path):
    flags = [photographs_tar, "--shards=24", "--split=train"]
    with start(*flags, f"--output={tmp_path / 'whole'}") as whole:
        assert whole.wait() == 0, whole.said()
    folder = tmp_path / "killed" / "train"
    flags.append(f"--output={tmp_path / 'killed'}")
    whole_before = {}
    for target in sorted(rng.sample(range(1, 20), 2)):
        with start(*flags) as process:
            harness.wait_in(process, lambda at=target: len(list(folder.glob("*.json"))) > at)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        psutil.wait_procs(workers, timeout=60)
        assert not any(worker.is_running() for worker in workers)
        assert not (folder / "manifest.json").exists()
        # What was whole before this start was not written a second time.
        for path, stamp in whole_before.items():
            assert path.stat().st_mtime_ns == stamp
        finished = [path.with_suffix(".array_record") for path in folder.glob("0*.json")]
        whole_before = {path: path.stat().st_mtime_ns for path in finished}
        # Without its end, a run refuses the data.
        with pytest.raises(failures.BadInput, match="run it to the end"):
            opened(tmp_path / "killed")
    with start(*flags) as process:
        assert process.wait() == 0, process.said()
    for path, stamp in whole_before.items():
        assert path.stat().st_mtime_ns == stamp
    assert len(whole_before) >= 2
    assert written(folder) == written(tmp_path / "whole" / "train")


def test_a_killed_worker_ends_the_command(photographs_tar, tmp_path):
    flags = [photographs_tar, "--shards=24", "--split=train", f"--output={tmp_path}"]
    with start(*flags, "--workers=2") as process:
        harness.wait_in(process, lambda: list((tmp_path / "train").glob("0*.json")))
        worker = next(
            child
            for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        )
        worker.kill()
        assert process.wait() == 2
        line = process.said().splitlines()[-1]
    assert "a worker process was killed, perhaps for want of memory; run the same command" in line
    assert "with fewer than 2 --workers, finished shards are kept." in line


@pytest.mark.parametrize("starting", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_command_and_its_workers(starting, photographs_tar, tmp_path):
    flags = [photographs_tar, "--shards=24", "--split=train", f"--output={tmp_path}"]
    with start(*flags) as process:
        parent = psutil.Process(process.pid)
        if starting:  # its workers, which have imported nothing yet
            harness.wait_in(process, lambda: len(parent.children(recursive=True)) > 1)
        else:
            harness.wait_in(process, lambda: list((tmp_path / "train").glob("0*.json")))
        workers = parent.children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
        assert process.said().splitlines()[1:] == ["nest-dist: interrupted"]
        psutil.wait_procs(workers, timeout=60)
        assert not any(worker.is_running() for worker in workers)


def test_a_full_disk_ends_the_command_in_one_line(photographs_tar, tmp_path):
    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    flags = [photographs_tar, "--shards=2", "--split=train", f"--output={tmp_path}"]
    with start(*flags, preexec_fn=small_files_only) as process:
        assert process.wait() == 2
        line = process.said().splitlines()[-1]
    assert re.search("train cannot be written .*File too large.*; make room or choose", line)
    assert not list((tmp_path / "train").glob("*.array_record"))


def test_on_a_terminal_a_bar_shows_the_progress(photographs_tar, tmp_path):
    shown, terminal = pty.openpty()
    flags = [photographs_tar, "--split=train", f"--output={tmp_path}"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with start(*flags, output=terminal, environment=environment) as process:
        os.close(terminal)
        text = b""
        while True:
            try:
                text += os.read(shown, 1 << 16)
            except OSError:  # the other end is closed
                break
        assert process.wait() == 0
    os.close(shown)
    assert "━" in text.decode()
    assert "480 of 480 pictures, " in text.decode()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared split and what it was made from."""
    folder = tmp_path_factory.mktemp("prepared")
    path = saved(folder / "train.tar", archives.tar_of_tars(datasets.pictures()))
    prepare(path, "--shards=2", output=folder / "out")
    return path, folder / "out"


@pytest.fixture
def done(prepared, tmp_path):
    """A copy of it to spoil."""
    path, output = prepared
    shutil.copytree(output, tmp_path / "out")
    return path, tmp_path / "out"


def test_a_complete_split_is_left_alone_and_a_lost_shard_made_again(done):
    path, output = done
    before = written(output / "train")
    said = prepare(path, "--shards=2", output=output)
    assert "is complete: 12 pictures of 3 classes in 2 shards, 0." in said
    assert "MB; --verify reads it again" in said
    (output / "train" / "00001-of-00002.array_record").unlink()
    assert "is complete" not in prepare(path, "--shards=2", output=output)
    assert written(output / "train") == before


def test_another_data_set_is_never_mixed_in(done, tmp_path, monkeypatch):
    path, output = done
    before = written(output / "train")
    other = saved(tmp_path / "other.tar", archives.tar_of_tars(datasets.pictures(3)))
    for arguments in ((other, "--shards=2"), (path, "--shards=3")):
        line = refused(monkeypatch, *arguments, output=output)
        assert "another data set: of tar train.tar, whose files may have changed since" in line
        assert ", or with other classes, --shards or --restart_markers; choose another" in line
    assert written(output / "train") == before
    # Neither into one that is under way.
    (output / "train" / "manifest.json").unlink()
    about = json.dumps(["0" * 16, {"format": "folder", "name": "cats", "fingerprint": ""}])
    (output / "train" / "plan.json").write_text(about)
    line = refused(monkeypatch, path, "--shards=2", output=output)
    assert "holds another data set: of folder cats, whose" in line


def test_damaged_records_of_work_under_way_are_no_shards_and_no_plan(done, monkeypatch):
    path, output = done
    folder, before = output / "train", written(output / "train")
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "plan.json").write_text(json.dumps([about["plan"], about["source"]]))
    (folder / "00000-of-00002.json").write_text('{"records": 6')
    (folder / "00001-of-00002.json").write_text("[]")
    prepare(path, "--shards=2", output=output)
    assert written(folder) == before
    (folder / "manifest.json").unlink()
    (folder / "plan.json").write_text("")
    line = refused(monkeypatch, path, "--shards=2", output=output)
    assert f"holds another data set: of a damaged {folder}/plan.json, whose files" in line


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_source_that_changed_since_a_kill_is_noticed(form, tmp_path, monkeypatch):
    path = tmp_path / "in"
    if form == "folder":
        for number in range(3):
            picture = saved(path / "a" / f"{number}.jpg", JPEG)
    else:
        picture = saved(path, archives.tar_bytes([("a/0.jpg", JPEG), ("a/1.jpg", JPEG)]))
    prepare(path, "--shards=2", output=tmp_path / "out")
    folder = tmp_path / "out" / "train"
    stamp = picture.stat().st_mtime_ns
    assert "is complete" in prepare(path, "--shards=2", output=tmp_path / "out")
    path.rename(tmp_path / "moved")
    assert "is complete" in prepare(tmp_path / "moved", "--shards=2", output=tmp_path / "out")
    (tmp_path / "moved").rename(path)
    content = bytearray(picture.read_bytes())
    content[900] ^= 1
    picture.write_bytes(bytes(content))
    os.utime(picture, ns=(stamp, stamp + 1))
    (folder / "manifest.json").rename(folder / "plan.json")
    about = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps([about["plan"], about["source"]]))
    line = refused(monkeypatch, path, "--shards=2", output=tmp_path / "out")
    assert f"holds another data set: of {form} in, whose files may have changed since" in line


def test_a_folder_with_other_files_is_refused_and_left_as_it_was(tmp_path, monkeypatch):
    saved(tmp_path / "in" / "a" / "1.jpg", JPEG)
    saved(tmp_path / "out" / "train" / "diary.txt", b"dear diary")
    saved(tmp_path / "out" / "train" / ".diary.txt.1", b"a draft")
    line = refused(monkeypatch, tmp_path / "in", output=tmp_path / "out")
    assert re.search(r"train holds other files, such as \.diary.txt.1; choose another --out", line)
    assert list(written(tmp_path / "out" / "train")) == [".diary.txt.1", "diary.txt"]


def test_two_at_a_time_are_refused(done, monkeypatch):
    path, output = done
    with (output / "train" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(monkeypatch, path, "--shards=2", output=output)
    assert "another command is writing to" in line
    assert "train; wait for its end." in line


def test_the_lock_outlives_the_removal_of_its_file(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    with files.claimed(folder):
        (folder / ".lock").unlink()
        with (
            pytest.raises(failures.BadInput, match=r"is writing to .*train; wait for its end"),
            files.claimed(folder),
        ):
            pass
    with files.claimed(folder):
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert list(folder.iterdir()) == []


def test_an_output_inside_the_input_is_refused(tmp_path, monkeypatch):
    saved(tmp_path / "in" / "a" / "1.jpg", JPEG)
    (tmp_path / "link").symlink_to("in")
    for output in (tmp_path / "in", tmp_path / "in" / "out", tmp_path / "link" / "x"):
        line = refused(monkeypatch, tmp_path / "in", output=output)
        assert "train lies inside the INPUT" in line
        assert "which would then hold its own output; choose another --output." in line
    assert os.listdir(tmp_path / "in") == ["a"]


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_of_a_folder_of_splits_the_named_one_is_taken_or_offered(form, tmp_path, monkeypatch):
    path = tmp_path / "in"
    names = ("train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "test/3.jpg")
    if form == "folder":
        for name in names:
            saved(path / name, JPEG)
    else:
        saved(path, archives.tar_bytes((name, JPEG) for name in names))
    said = prepare(path, output=tmp_path / "out")
    source = opened(tmp_path / "out")
    prefix = "" if form == "folder" else "train/"
    keys = [source[index]["key"] for index in range(len(source))]
    assert keys == [f"{prefix}a/1.jpg", f"{prefix}b/1.jpg"]
    assert (f"taking {path}/train/, which holds the class folders" in said) == (form == "folder")
    line = refused(monkeypatch, path, output=tmp_path / "out", split="validation")
    assert "has class folders in 3 folders (the top, train, val), and none of them alone is" in line
    assert f"give one of them, as by --split=train or as INPUT {path}/train." in line


def test_what_is_passed_over_is_reported(tmp_path):
    for name in ("a/1.jpg", "a/1.jfif", "a/._1.jpg", "b/1.jpg", "b/session 2/1.jpg", "b/x.heic"):
        saved(tmp_path / "in" / name, JPEG)
    (tmp_path / "in/b/gone.jpg").symlink_to("/nowhere")
    (tmp_path / "in/c").mkdir()
    odd = os.fsdecode(b"a/caf\xe9.jpg")
    saved(tmp_path / "in" / odd, JPEG[:-900])
    said = prepare(tmp_path / "in", output=tmp_path / "out")
    lines = report(tmp_path / "out")
    assert lines.pop("a/1.jfif") == ("kept", "rgb jpeg named as jfif; its bytes decide")
    assert lines == {
        name: ("left out", reason)
        for name, reason in (
            ("a/._1.jpg", "a file of macOS beside another"),
            (odd, "rgb jpeg, cut short or altered"),
            ("b/session 2/1.jpg", "it lies in no class folder"),
            ("b/x.heic", "no picture by its name"),
            ("b/gone.jpg", "a dangling link"),
            ("c", "a class folder without pictures"),
        )
    }
    assert "report.jsonl lists what was unusual: 1 kept as they are, 6 left out" in said
    assert opened(tmp_path / "out").class_names == ("a", "b", "c")


def test_splits_of_a_data_set_share_their_classes(done, tmp_path, monkeypatch):
    _, output = done
    one = saved(tmp_path / "one.tar", archives.tar_bytes([("rocket/1.jpg", JPEG)]))
    prepare(one, output=output, split="validation")
    source = opened(output, "validation")
    assert source.class_names == datasets.CLASSES
    assert source[0]["labels"] == (2,)
    # By their numbers, where a source knows no names.
    table = archives.parquet(tmp_path / "a.parquet", [JPEG], [1])
    prepare(table, output=output, split="numbers")
    assert contents(opened(output, "numbers")) == [(JPEG, "coffee")]
    other = saved(tmp_path / "other.tar", archives.tar_bytes([("dog/1.jpg", JPEG)]))
    line = refused(monkeypatch, other, output=output, split="other")
    assert re.search(r"class 'dog' is not among the 3 classes of .*/out/\w+ \(.*\); splits", line)


def test_class_names_give_the_order_of_labels(tmp_path, monkeypatch):
    path = saved(tmp_path / "in.tar", archives.tar_bytes([("cat/1.jpg", JPEG)]))
    names = saved(tmp_path / "names.txt", b"dog\ncat\n")
    prepare(path, f"--class_names={names}", output=tmp_path / "out")
    assert opened(tmp_path / "out").class_names == ("dog", "cat")
    assert opened(tmp_path / "out")[0]["labels"] == (1,)
    names.write_text("dog\nbird\n")
    line = refused(monkeypatch, path, f"--class_names={names}", output=tmp_path / "b")
    assert f"class 'cat' is not among the 2 classes of {names} (dog, bird); splits of one" in line
    names.write_text("dog\ncat\ndog\n")
    line = refused(monkeypatch, path, f"--class_names={names}", output=tmp_path / "b")
    assert f"class 'dog' stands twice in {names}; give each class a name of its own." in line
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "prepare got no INPUT; give a folder of class folders, a tar archive, Parquet files,"),
        (("x", "--output="), "prepare got --output without a text; give one, or leave it out."),
        (("x", "--split="), "prepare got --split without a text; give one, or leave it out."),
        (("x", "--split=../y"), "--split is '../y'; give the name of a folder, such as train."),
        (("x", "--split=train[:9]"), "--split is 'train[:9]'; give the name of a folder, such as"),
        (("x", "--output=gs://y"), "--output is gs://y; give a local folder, and copy it when"),
        (("x", "--workers=0"), "--workers is 0; it must be at least 1."),
        (("IN", "--shards=0"), "--shards is 0; it must be in [1, 1]."),
        (("IN", "--shards=2"), "--shards is 2; it must be in [1, 1]."),
        (
            ("IN", "--output=FILE"),
            "FILE/train cannot be written (Not a directory); make room or choose another",
        ),
        (("x", "--verify"), "--verify reads what was written to --output, not x; leave INPUT out."),
        (
            ("x", "--input_format=zip"),
            "--input_format is 'zip', which is unknown; known are folder, idx, parquet, tar, tfds.",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, text, tmp_path, monkeypatch):
    saved(tmp_path / "IN" / "a" / "1.jpg", JPEG)
    saved(tmp_path / "FILE", b"")
    flags = [re.sub("IN|FILE", lambda word: str(tmp_path / word[0]), each) for each in arguments]
    defaults = [f"--output={tmp_path / 'out'}", "--split=train"]
    assert text in program.refuses(monkeypatch, "prepare", *defaults, *flags)
    assert not (tmp_path / "out").exists()


def test_an_input_that_the_system_cannot_read_ends_with_75(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    flags = ("--input_format=tar", f"--output={tmp_path}", "--split=train")
    text = "/proc/self/mem could not be read in 8 attempts in a row .Input/output error"
    with pytest.raises(failures.Unavailable, match=text) as ended:
        cli._run(["prepare", "/proc/self/mem", *flags])
    assert ended.value.exit_code == 75


def test_a_picture_that_the_system_cannot_read_is_not_left_out(tmp_path):
    """A full table of files, in the worker processes."""
    path = saved(tmp_path / "train.tar", archives.tar_of_tars(datasets.pictures()))
    troubled = tmp_path / "sitecustomize.py"
    troubled.write_text(
        "import builtins, errno\nusual = builtins.open\n"
        "def once(name, *more, **others):\n"
        f"    if str(name) == {str(path)!r}:\n"
        "        builtins.open = usual\n"
        "        raise OSError(errno.EMFILE, 'Too many open files', name)\n"
        "    return usual(name, *more, **others)\n"
        "builtins.open = once\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    flags = [path, "--split=train", f"--output={tmp_path / 'out'}", "--workers=1"]
    with start(*flags, environment=environment) as process:
        assert process.wait() == 0, process.said()
        said = process.said()
    assert "train.tar: Too many open files; attempt 2 of 8 in 0.5 s" in said
    assert len(opened(tmp_path / "out")) == 12
    assert report(tmp_path / "out") == {}


def verify(output, split="train"):
    return program.succeeds("prepare", "--verify", f"--output={output}", f"--split={split}")


def findings(monkeypatch, output):
    return program.refuses(
        monkeypatch, "prepare", "--verify", f"--output={output}", "--split=train"
    )


def test_a_whole_split_is_verified(done):
    _, output = done
    said = verify(output)
    assert "train is as it was written: 12 pictures of 3 classes in 2 shards" in said
    assert f"fingerprint {opened(output).fingerprint}" in said


def shard(output, number=1):
    return output / "train" / f"0000{number}-of-00002.array_record"


def test_verifying_names_a_record_with_a_flipped_bit(done, monkeypatch):
    _, output = done
    content = bytearray(shard(output).read_bytes())
    content[content.index(b"rocket/001.jpg") + 300] ^= 1
    shard(output).write_bytes(content)
    line = findings(monkeypatch, output)
    assert re.search(
        r"train is damaged in 1 place, first 00001-of-00002.array_record record 3: .*hash mismatch"
        r".*; copy it anew, or remove that file and run `nest-dist prepare` again\.",
        line,
    )


def test_verifying_names_a_missing_and_a_short_shard(done, monkeypatch, capsys):
    _, output = done
    shard(output, 0).unlink()
    size = shard(output).stat().st_size
    os.truncate(shard(output), size - 1)
    line = findings(monkeypatch, output)
    assert "is damaged in 2 places, first 00000-of-00002.array_record: it is missing;" in line
    printed = capsys.readouterr().out
    assert f"00001-of-00002.array_record: it has {size - 1} bytes, not {size}" in printed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda key, label, picture: (key, (0,), picture), "its records are not those that were"),
        (lambda key, label, picture: (key, label, JPEG[:-900]), r"record 0 \(.*\): rgb jpeg, cut"),
        (
            lambda key, label, picture: (key, (3,), picture),
            r"record 0 \(.*\): labels \(3,\) of 3 classes",
        ),
    ],
)
def test_verifying_finds_what_checksums_cannot(change, text, done, monkeypatch):
    _, output = done
    before = map(array_record.unpack, array_record.open_files([str(shard(output))]))
    changed = [array_record.pack(*change(*record)) for record in before]
    array_record.write(shard(output), changed)
    path = output / "train" / "manifest.json"
    content = json.loads(path.read_text())
    content["shards"][1]["bytes"] = shard(output).stat().st_size
    path.write_text(json.dumps(content))
    assert re.search(f"00001-of-00002.array_record:? {text}", findings(monkeypatch, output))


def test_verifying_counts_the_classes(done, monkeypatch):
    _, output = done
    about = manifest.read(output / "train")
    counts = {**about.classes, "chelsea": 3, "coffee": 5}
    changed = manifest.Manifest(counts, about.source, about.plan, about.shards)
    manifest.write(output / "train", changed)
    line = findings(monkeypatch, output)
    assert "manifest.json: it says 3 pictures of class 'chelsea', the shards have 4;" in line


def test_verifying_what_is_not_there_is_refused(tmp_path, monkeypatch):
    assert "manifest.json cannot be read" in findings(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(examples=13),
        lambda about: about["classes"].update(dog=0),
        lambda about: about["shards"].pop(),
        lambda about: about["shards"][0].update(sha256="0" * 64),
        lambda about: about["shards"][0].update(bytes="many"),
        lambda about: about.pop("shards"),
    ],
)
def test_a_manifest_that_was_altered_is_refused(change, tmp_path):
    datasets.array_record(tmp_path)
    path = tmp_path / "train" / "manifest.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    with pytest.raises(failures.BadInput, match="was altered: its fingerprint or its number"):
        opened(tmp_path)
