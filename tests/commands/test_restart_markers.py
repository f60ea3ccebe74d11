"""`nest-dist prepare --restart_markers`: the same pixels, of which a crop needs only a part."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import photographs, program

from nest_dist.data.sources import array_record
from nest_dist.data.transforms import decode
from nest_dist.data.transforms import jpeg as coding
from nest_dist.dataset_builder import pictures

CHELSEA = photographs.photograph("chelsea")[:200]


def jpeg(mode="RGB", width=304, **options):
    file = io.BytesIO()
    Image.fromarray(CHELSEA[:, :width]).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


MARKED = {
    "4:2:0": jpeg(),
    "4:2:2": jpeg(subsampling=1, width=400),
    "4:4:4": jpeg(subsampling=0),
    "4:4:4, odd": jpeg(subsampling=0, width=200),
    "narrow": jpeg(width=20),
    "grey": jpeg("L"),
    "progressive": jpeg(progressive=True),
    "with other markers": jpeg(restart_marker_blocks=3),
}
UNMARKED = {
    "junk before its end": jpeg()[:-2] + b"junk" + jpeg()[-2:],
    "png": decode.encode(CHELSEA, "png"),
}
# Pixels between two markers: one unit of colour, or two narrow ones where that divides the row.
WIDTHS = dict.fromkeys(MARKED, 16) | {"4:4:4, odd": 8}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folders that one worker and two have written."""
    if shutil.which(pictures.JPEGTRAN) is None:
        pytest.skip("apt install libjpeg-turbo-progs, for jpegtran")
    folder = tmp_path_factory.mktemp("marked")
    (folder / "in" / "cat").mkdir(parents=True)
    for name, picture in {**MARKED, **UNMARKED}.items():
        (folder / "in" / "cat" / f"{name}.{'png' if name == 'png' else 'jpg'}").write_bytes(picture)
    for workers in (1, 2):
        program.succeeds(
            *("prepare", folder / "in", "--restart_markers", "--split=train", "--shards=2"),
            *(f"--output={folder / str(workers)}", f"--workers={workers}"),
        )
    return folder


@pytest.fixture(scope="module")
def found(prepared):
    source = array_record.ArrayRecord(str(prepared / "1"), "train").open()
    examples = [source[index] for index in range(len(source))]
    names = [each["key"].rpartition("/")[2].rpartition(".")[0] for each in examples]
    return {name: bytes(each["image"]) for name, each in zip(names, examples, strict=True)}


def test_every_pixel_is_as_it_was_and_a_crop_is_decoded_in_part(found):
    assert found.keys() == MARKED.keys() | UNMARKED.keys()
    for name, picture in MARKED.items():
        whole = decode.pixels(picture)
        np.testing.assert_array_equal(decode.pixels(found[name]), whole, name)
        read = coding.opened(found[name])
        assert read.can_be_cut, name
        assert read.interval * read.unit[1] == WIDTHS[name], name
        part = decode.cut(found[name], lambda H, W: (70, 5, 60, 9))
        np.testing.assert_array_equal(part, whole[70:130, 5:14], name)
        assert len(read.around(70, 5, 130, 14)[0]) < 0.7 * len(found[name]), name


def test_what_jpegtran_does_not_take_is_kept_and_reported(prepared, found):
    assert {name: found[name] for name in UNMARKED} == UNMARKED
    lines = (prepared / "1" / "train" / "report.jsonl").read_text().splitlines()
    assert {each["key"]: each["reason"] for each in map(json.loads, lines)} == {
        "cat/grey.jpg": "grey jpeg, which is read as rgb",
        "cat/junk before its end.jpg": "rgb jpeg without markers: jpegtran refuses it",
    }


def test_the_bytes_do_not_depend_on_the_number_of_workers_and_are_verified(prepared):
    first, second = (
        {path.name: path.read_bytes() for path in (prepared / name / "train").iterdir()}
        for name in ("1", "2")
    )
    assert first == second
    said = program.succeeds("prepare", "--verify", "--split=train", f"--output={prepared / '1'}")
    assert "is as it was written: 10 pictures" in said


def test_a_split_without_them_is_another_one(prepared, monkeypatch):
    flags = ("--split=train", "--shards=2", f"--output={prepared / '1'}")
    line = program.refuses(monkeypatch, "prepare", prepared / "in", *flags)
    assert "or with other classes, --shards or --restart_markers; choose another" in line


def test_without_jpegtran_the_flag_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = ("--restart_markers", "--split=train", f"--output={tmp_path / 'out'}")
    line = program.refuses(monkeypatch, "prepare", tmp_path, *flags)
    assert "--restart_markers needs the program jpegtran, which is not here; install it" in line
    assert not (tmp_path / "out").exists()
