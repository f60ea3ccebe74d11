"""What `nest-dist prepare` finds in archives, folders and tables, before anything is written."""

import builtins
import gzip
import io
import os
import pathlib
import pickle
import sys
import tarfile

import pytest
from support import archives, datasets, photographs
from support.refusals import refusal

from nest_dist.data import sources
from nest_dist.dataset_builder import inputs

PICTURE = photographs.jpeg("coffee", 20, 20)


def opened(path, form=None, split="train", labels=None, columns=("image", "label")):
    form = form or inputs.recognised([path])
    return inputs.opened(form, [path], inputs.Options(split, labels, *columns))


def contents(data):
    source = data.source
    examples = [source[index] for index in range(len(source))]
    return [
        (example["key"], source.class_names[example["labels"][0]], bytes(example["image"]))
        for example in examples
    ]


def saved(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


EXPECTED = [(name, name.split("/")[0], picture) for name, _, picture in datasets.pictures()]


@pytest.mark.parametrize("prefix", ["", "./", "train/", "./data/train/"])
def test_a_tar_of_class_folders_is_read(prefix, tmp_path):
    members = [(prefix + name, picture) for name, _, picture in datasets.pictures()]
    path = saved(tmp_path / "pictures.tar", archives.tar_bytes(members))
    inside = prefix.removeprefix("./")
    assert contents(opened(path)) == [(inside + key, *rest) for key, *rest in EXPECTED]


def test_a_tar_of_tars_is_read(tmp_path):
    path = saved(tmp_path / "train.tar", archives.tar_of_tars(datasets.pictures()))
    assert contents(opened(path)) == EXPECTED


# Names that would leave a folder if an archive were extracted to it, and members that are no files.
HOSTILE = {
    "../up.jpg": "its name leaves the folder",
    "a/../../up.jpg": "its name leaves the folder",
    "/tmp/absolute.jpg": "its name leaves the folder",
    "a/link.jpg": "a link",
    "a/hard.jpg": "a link",
    "a/device.jpg": "a device or pipe",
    "a/pipe.jpg": "a device or pipe",
    "a/read.me": "no picture by its name",
}
# Archives whose names, without `.tar`, would.
ARCHIVES = ("...tar", "a/...tar", "..tar")
HOSTILE |= dict.fromkeys((*ARCHIVES, "/b.tar"), "its name leaves the folder")
KINDS = {
    "a/link.jpg": (tarfile.SYMTYPE, "/etc/passwd"),
    "a/hard.jpg": (tarfile.LNKTYPE, "../../etc/passwd"),
    "a/device.jpg": (tarfile.CHRTYPE, ""),
    "a/pipe.jpg": (tarfile.FIFOTYPE, ""),
}


def hostile_members():
    for name in HOSTILE:
        if name in KINDS:
            yield archives.header(name, *KINDS[name]), b""
        else:
            yield name, PICTURE
    yield "a/good.jpg", PICTURE


@pytest.mark.parametrize("nested", [False, True])
def test_nothing_reaches_out_of_an_archive(nested, tmp_path):
    content = archives.tar_bytes(hostile_members())
    if nested:
        content = archives.tar_bytes([("x.tar", content)])
    data = opened(saved(tmp_path / "pictures.tar", content))
    prefix = "x/" if nested else ""
    # An archive in an archive in an archive is not opened.
    closed = dict.fromkeys(ARCHIVES if nested else (), "no picture by its name")
    wanted = HOSTILE | closed
    assert contents(data) == [(f"{prefix}a/good.jpg", "a", PICTURE)]
    reasons = {remark.key: remark.reason for remark in data.remarks}
    assert sorted(reasons.values()) == sorted(wanted.values())
    assert all(
        reasons.get(f"{prefix}{name}", reasons.get(name)) == why for name, why in wanted.items()
    )


def test_sparse_members_are_left_out(tmp_path):
    sparse = archives.header("a/sparse.jpg", tarfile.GNUTYPE_SPARSE)
    # As GNU tar writes it: no stored extents, a real size of 5 bytes.
    block = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"00000000005\0"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    path = tmp_path / "pictures.tar"
    path.write_bytes(bytes(block) + archives.tar_bytes([("a/good.jpg", PICTURE)]))
    data = opened(path)
    assert [remark.reason for remark in data.remarks] == ["a sparse file"]
    assert len(data.source) == 1


@pytest.mark.parametrize("nested", [False, True])
def test_a_tar_is_refused_wherever_it_is_cut_short(nested, tmp_path):
    members = [(name, picture) for name, _, picture in datasets.pictures(1)]
    archive = archives.tar_bytes(members)
    data = sum(512 + -(-len(picture) // 512) * 512 for _, picture in members)
    assert not archive[data:].strip(b"\0")
    for end in [*range(1, data, 211), *range(512, data + 1, 512)]:
        content = archives.tar_bytes([("a.tar", archive[:end])]) if nested else archive[:end]
        with refusal("pictures.tar", "; fetch it again"):
            opened(saved(tmp_path / "pictures.tar", content))


def test_a_corrupt_header_is_not_taken_for_the_end(tmp_path):
    content = bytearray(
        archives.tar_bytes((name, picture) for name, _, picture in datasets.pictures())
    )
    at = content.index(b"coffee/001.jpg")
    content[at] ^= 1
    with refusal(f"at byte {at} of {len(content)}: it is cut short, corrupt, or several archives"):
        opened(saved(tmp_path / "pictures.tar", bytes(content)))


def altered(header, **fields):
    """A header with other bytes at some offsets, and its checksum."""
    header = bytearray(header)
    for at, content in ((int(name[1:]), content) for name, content in fields.items()):
        header[at : at + len(content)] = content
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:512]))
    return bytes(header)


NEGATIVE = b"\xff" * 12  # in base 256
HUGE = b"\x80" + b"\x7f" * 11


def extended(key, value):
    """An extended header before the next member."""
    record = b" %s=%s\n" % (key, value)
    length = next(n for n in range(1000) if len(b"%d" % n) + len(record) == n)
    return archives.tar_bytes([(archives.header("x", b"x"), b"%d%s" % (length, record))])[
        : 512 + -(-length // 512) * 512
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda one: altered(one, _124=NEGATIVE), "a header is corrupt at byte 0 of"),
        (lambda one: altered(one, _124=HUGE), "a member reaches over the end at byte 0 of"),
        (lambda one: altered(one, _124=b"0000000999z"), "a header is corrupt at byte 0 of"),
        (lambda one: altered(one, _156=b"L", _124=HUGE), "a member reaches over the end at"),
        (lambda one: extended(b"size", b"-1024") + one, "a header is corrupt at byte 0 of"),
        (lambda one: extended(b"size", b"9" * 900) + one, "a member reaches over the end at"),
    ],
)
def test_headers_that_lie_are_refused_at_once(change, reason, tmp_path):
    one = archives.tar_bytes([("a/1.jpg", PICTURE)])
    with refusal(reason, "; fetch it again"):
        opened(saved(tmp_path / "pictures.tar", change(one)))


def test_headers_that_describe_the_next_member_are_read(tmp_path):
    long_name = "a/" + "x" * 200 + ".jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        name = long_name if form != tarfile.USTAR_FORMAT else "a" * 120 + "/1.jpg"
        with tarfile.open(tmp_path / "pictures.tar", "w", format=form) as archive:
            for member in (name, "b/2.jpg"):
                header = archives.header(member, size=len(PICTURE))
                archive.addfile(header, io.BytesIO(PICTURE))
        data = contents(opened(tmp_path / "pictures.tar"))
        assert [(key, picture) for key, _, picture in data] == [
            (name, PICTURE),
            ("b/2.jpg", PICTURE),
        ]
    sparse = extended(b"GNU.sparse.major", b"1") + archives.tar_bytes([("a/1.jpg", PICTURE)])
    with refusal("holds no pictures"):
        opened(saved(tmp_path / "pictures.tar", sparse))


def test_archives_one_after_another_are_refused(tmp_path):
    one = archives.tar_bytes([("a/1.jpg", PICTURE)])
    with refusal("several archives in one file; fetch it again"):
        opened(saved(tmp_path / "pictures.tar", one + one))


def test_a_compressed_tar_says_how_to_decompress_it(tmp_path):
    content = gzip.compress(archives.tar_bytes([("a/1.jpg", PICTURE)]))
    with refusal("is compressed", "decompress it first: gunzip pictures.tar.gz"):
        opened(saved(tmp_path / "pictures.tar.gz", content))


def test_another_file_is_refused_as_a_tar(tmp_path):
    with refusal("notes.txt is no complete tar archive", "; fetch it again"):
        opened(saved(tmp_path / "notes.txt", b"hello" * 200))


def test_an_archive_without_pictures_is_refused(tmp_path):
    path = saved(tmp_path / "texts.tar", archives.tar_bytes([("a/1.txt", b"hello")]))
    with refusal("texts.tar holds no pictures (.bmp, ", "give one that does"):
        opened(path)


def test_of_several_splits_in_an_archive_the_named_one_is_taken(tmp_path):
    members = [(f"set/{split}/a/{split}.jpg", PICTURE) for split in ("train", "test")]
    path = saved(tmp_path / "pictures.tar", archives.tar_bytes([*members, ("cover.jpg", b"")]))
    data = opened(path, split="test")
    assert contents(data) == [("set/test/a/test.jpg", "a", PICTURE)]
    assert [(remark.key, remark.reason) for remark in data.remarks] == [
        ("set/train/a/train.jpg", "it lies in no class folder"),
        ("cover.jpg", "it lies in no class folder"),
    ]
    with refusal("has class folders in 2 folders (set/test, set/train)", "is called 'validation'"):
        opened(path, split="validation")


def flat(tmp_path, names=("v_2.JPEG", "v_1.JPEG", "v_3.JPEG")):
    members = [(name, PICTURE + name.encode()) for name in names]
    return saved(tmp_path / "validation.tar", archives.tar_bytes(members))


LABEL_FILES = {
    "one class a line": "cat\ngreat white shark\ncat\n",
    "names and classes": "v_1.JPEG cat\nv_2.JPEG great white shark\nv_3.JPEG cat\nv_9.JPEG dog\n",
    "names without suffix": "v_1\tcat\nv_3\tcat\nv_2\tgreat white shark\n",
    "comma": "file,class\nv_3.JPEG,cat\nv_2.JPEG,great white shark\nx/v_1.JPEG, cat\n",
}


@pytest.mark.parametrize("text", LABEL_FILES.values(), ids=LABEL_FILES)
@pytest.mark.parametrize("form", ["tar", "folder"])
def test_a_file_of_labels_stands_for_class_folders(text, form, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text(text)
    path = flat(tmp_path)
    if form == "folder":
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "validation", filter="data")
        path = tmp_path / "validation"
    data = contents(opened(path, labels=str(labels)))
    assert {pathlib.Path(key).name: name for key, name, _ in data} == {
        "v_1.JPEG": "cat",
        "v_2.JPEG": "great white shark",
        "v_3.JPEG": "cat",
    }
    assert all(picture.endswith(pathlib.Path(key).name.encode()) for key, _, picture in data)


def test_the_labels_of_kaggle_are_read(tmp_path):
    labels = tmp_path / "LOC_val_solution.csv"
    labels.write_text(
        "ImageId,PredictionString\n"
        "v_3,n02 85 1 499 272 n02 5 6 7 8 \nv_1,n01 1 2 3 4 \nv_2,n02 1 1 1 1\n"
    )
    data = contents(opened(flat(tmp_path), labels=str(labels)))
    assert [(key, name) for key, name, _ in data] == [
        *(("v_2.JPEG", "n02"), ("v_1.JPEG", "n01"), ("v_3.JPEG", "n02"))
    ]


# What spreadsheets, pandas and R write.
DIALECTS = {
    "quotes": '"v_1.JPEG","cat"\n"v_2.JPEG","dog"\n"v_3.JPEG","cat"\n',
    "single quotes": "'v_1.JPEG','cat'\n'v_2.JPEG','dog'\n'v_3.JPEG','cat'\n",
    "semicolons": "file;class\nv_1;cat\nv_2;dog\nv_3;cat\n",
    "tabs and quotes": '"v_1"\t"cat"\nv_2\t"dog"\nv_3\tcat\n',
    "last commas": "v_1.JPEG,cat,\nv_2.JPEG,dog,\nv_3.JPEG,cat,\n",
    "three columns": "image,width,label\nv_1.JPEG,20,cat\nv_2.JPEG,20,dog\nv_3.JPEG,20,cat\n",
    "a column of numbers": ",image,class\n0,v_1.JPEG,cat\n1,v_2.JPEG,dog\n2,v_3.JPEG,cat\n",
    "class first": "label,filename\ncat,v_1.JPEG\ndog,v_2.JPEG\ncat,v_3.JPEG\n",
    "class first, no header": "cat,v_1.JPEG\ndog,v_2.JPEG\ncat,v_3.JPEG\n",
    "byte order mark": "\ufeffv_1.JPEG,cat\r\nv_2.JPEG,dog\r\nv_3.JPEG,cat\r\n",
    "said twice": "v_1,cat\nv_1.JPEG,cat\nv_2,dog\nv_3,cat\n",
    "folders of Windows": "x\\v_1.JPEG,cat\nx\\v_2.JPEG,dog\nx\\v_3.JPEG,cat\n",
    "classes alone, quoted": '"cat"\n"dog"\n"cat"\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
def test_dialects_of_labels_are_read(text, encoding, tmp_path):
    labels = saved(tmp_path / "labels.csv", text.encode(encoding))
    data = contents(opened(flat(tmp_path), labels=str(labels)))
    assert {key: name for key, name, _ in data} == {
        "v_1.JPEG": "cat",
        "v_2.JPEG": "dog",
        "v_3.JPEG": "cat",
    }


@pytest.mark.parametrize(
    ("text", "number", "reason"),
    [
        ("v_1,cat\nv_2,dog\nv_3,cat\nv_1.JPEG,dog\n", 4, "says v_1.JPEG is 'dog', line 1 says"),
        ("v_1,cat\nv_2,a dog, brown\nv_3,cat\n", 2, "has 3 columns, line 1 has 2; give all"),
        ("v_1,20,cat\nv_2,20,dog\nv_3,20,cat\n", 1, "has 3 columns and names none as that of cl"),
        ('v_1,cat\nv_2,"dog\nv_3,cat\n', 2, "cannot be split at ','; correct it"),
        ("v_1,cat\nv_2\nv_3,cat\n", 2, "cannot be split at ','; correct it"),
        ("v_1,cat\nv_2,\nv_3,cat\n", 2, "has no class for v_2.JPEG; add it"),
        ("v_1 cat\nv_2\nv_3 cat\n", 2, "has no class; add it"),
        ("v_1,\nv_2,\nv_3,\n", 1, "has no class; give NAME CLASS a line"),
        ("a.jpg,cat\nb.jpg,dog\nc.jpg,cat\n", 1, "names another picture than v_2.JPEG; corr"),
        ("x,v_1,v_2\nx,v_2,v_1\nx,v_3,v_3\n", 1, "names pictures in two columns; give NAME"),
    ],
)
def test_a_line_of_labels_that_is_not_understood_is_named(text, number, reason, tmp_path):
    labels = saved(tmp_path / "labels.csv", text.encode())
    with refusal(f"--labels is {labels}, whose line {number} {reason}"):
        opened(flat(tmp_path), labels=str(labels))


def test_labels_that_are_no_text_are_refused(tmp_path):
    labels = saved(tmp_path / "labels.csv", bytes(range(256)))
    with refusal("labels.csv, which is no text; give a text file"):
        opened(flat(tmp_path), labels=str(labels))


def test_names_that_are_no_utf_8_are_matched_and_kept_apart(tmp_path):
    folder = tmp_path / "in"
    for name in (b"caf\xe9", b"caf\xe8"):
        saved(pathlib.Path(os.fsdecode(bytes(folder) + b"/" + name + b".jpg")), PICTURE)
        saved(pathlib.Path(os.fsdecode(bytes(tmp_path) + b"/c/" + name + b"/1.jpg")), PICTURE)
    labels = saved(tmp_path / "labels.csv", b"caf\xe9.jpg,one\ncaf\xe8,two\n")
    data = contents(opened(folder, labels=str(labels)))
    assert [name for _, name, _ in data] == ["two", "one"]
    as_folder = opened(tmp_path / "c").source.class_names
    members = [(f"{os.fsdecode(name)}/1.jpg", PICTURE) for name in (b"caf\xe9", b"caf\xe8")]
    as_tar = opened(saved(tmp_path / "c.tar", archives.tar_bytes(members))).source.class_names
    assert as_folder == as_tar == (os.fsdecode(b"caf\xe8"), os.fsdecode(b"caf\xe9"))


def test_pictures_without_any_class_are_refused(tmp_path):
    with refusal("has no folders, so nothing says which class v_2.JPEG", "give --labels=FILE"):
        opened(flat(tmp_path))


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("cat\ndog\n", ("with 2 lines, none of which names a picture such as v_2.JPEG", "3 pict")),
        ("v_1 cat\nv_2 dog\n", ("has no line for 1 of 3 pictures, the first is v_3.JPEG; add",)),
        ("", ("which is empty; give one class a line",)),
        (None, ("which cannot be read", "No such file", "; give a text file")),
    ],
)
def test_labels_that_do_not_fit_are_refused(text, texts, tmp_path):
    labels = tmp_path / "labels.txt"
    if text is not None:
        labels.write_text(text)
    with refusal(f"--labels is {labels}", *texts):
        opened(flat(tmp_path), labels=str(labels))


def test_labels_for_pictures_of_one_name_are_refused(tmp_path):
    path, labels = flat(tmp_path, ("a/1.jpg", "b/1.jpg")), tmp_path / "labels.txt"
    labels.write_text("1 cat\n")
    with refusal("line 1 says 1, as several pictures are called; give their folders or suffixes"):
        opened(path, labels=str(labels))
    labels.write_text("b/1 dog\n./a/1.jpg cat\n")
    assert [name for _, name, _ in contents(opened(path, labels=str(labels)))] == ["cat", "dog"]


def test_labels_for_data_that_has_its_own_are_refused(tmp_path):
    datasets.tfds(tmp_path)
    with refusal("--labels is x.txt, but tfds has labels of its own; leave it out"):
        opened(tmp_path, labels="x.txt")


IMAGES = [{"bytes": picture, "path": name} for name, _, picture in datasets.pictures()]
LABELS = [label for _, label, _ in datasets.pictures()]


def test_parquet_of_the_hub_is_read(tmp_path):
    archives.parquet(
        tmp_path / "data" / "train-00000-of-00002.parquet", IMAGES[:7], LABELS[:7], datasets.CLASSES
    )
    archives.parquet(
        tmp_path / "data" / "train-00001-of-00002.parquet", IMAGES[7:], LABELS[7:], datasets.CLASSES
    )
    archives.parquet(tmp_path / "data" / "test-00000-of-00001.parquet", IMAGES[:1], LABELS[:1])
    data = opened(tmp_path)
    assert contents(data) == EXPECTED
    source = data.source
    for index in (11, 3, 4, 7, 0):
        assert pickle.loads(pickle.dumps(source))[index] == source[index]
        assert bytes(source[index]["image"]) == EXPECTED[index][2]


def test_labels_of_parquet_may_be_texts_or_bare_numbers(tmp_path):
    pictures = [picture for _, _, picture in datasets.pictures()]
    names = [name for _, name, _ in EXPECTED]
    texts = archives.parquet(tmp_path / "a.parquet", pictures, names, columns=("img", "kind"))
    data = opened(texts, columns=("img", "kind"))
    assert [(name, picture) for _, name, picture in contents(data)] == [
        (name, picture) for _, name, picture in EXPECTED
    ]
    assert contents(data)[5][0] == "a.parquet row 5"
    numbers = opened(archives.parquet(tmp_path / "b.parquet", pictures, LABELS))
    assert numbers.source.class_names == ("0", "1", "2")
    assert [numbers.source[index]["labels"][0] for index in range(12)] == LABELS


@pytest.mark.parametrize(
    ("images", "labels", "columns", "texts"),
    [
        (IMAGES, LABELS, ("img", "label"), ("--image_column is 'image'", "has img, label.")),
        (IMAGES, LABELS, ("image", "fine"), ("--label_column is 'label'", "has image, fine.")),
        (
            LABELS,
            LABELS,
            ("image", "label"),
            ("--image_column is 'image', of type int64", "struct"),
        ),
        (IMAGES, [0.5] * 12, ("image", "label"), ("--label_column is 'label', of type double",)),
        (IMAGES, [-1] * 12, ("image", "label"), ("has label -1, labels are 0 to", "are known")),
        (IMAGES, [None, *LABELS[1:]], ("image", "label"), ("has 1 rows without a value",)),
    ],
)
def test_columns_that_do_not_fit_are_refused(images, labels, columns, texts, tmp_path):
    path = archives.parquet(tmp_path / "a.parquet", images, labels, columns=columns)
    with refusal(*texts):
        opened(path)


def test_a_label_beyond_the_names_of_parquet_is_refused(tmp_path):
    path = archives.parquet(tmp_path / "a.parquet", IMAGES, LABELS, ["cat", "dog"])
    with refusal("has label 2, labels are 0 to 1; take a split whose labels are known"):
        opened(path)


def test_corrupt_parquet_is_refused(tmp_path):
    path = archives.parquet(tmp_path / "a.parquet", IMAGES, LABELS)
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with refusal("a.parquet is no complete Parquet file (", "); fetch it again"):
        opened(path)
    path.write_bytes(content[:10] + bytes(300) + content[310:])
    with refusal("a.parquet is corrupt in row group 0 (", "); fetch it again"):
        contents(opened(path))


def test_parquet_of_other_splits_only_is_refused(tmp_path):
    archives.parquet(tmp_path / "test-00000-of-00001.parquet", IMAGES, LABELS)
    with refusal("has no Parquet files of split 'train'", "test-00000-of-00001.parquet; give"):
        opened(tmp_path)


def test_without_its_library_parquet_is_refused(tmp_path, monkeypatch):
    path = archives.parquet(tmp_path / "a.parquet", IMAGES, LABELS)
    usual = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "nest_dist.data.sources.parquet", raising=False)
    monkeypatch.delattr(sources, "parquet", raising=False)
    with refusal("takes pyarrow; pip install 'nest_dist[huggingface]'"):
        opened(path)


def test_several_inputs_of_another_format_are_refused(tmp_path):
    with refusal("there are 2 INPUTs of format tar; only Parquet can be several files"):
        inputs.opened("tar", [tmp_path, tmp_path], inputs.Options("train", None, "", ""))


def test_a_missing_input_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with refusal("pipe is neither a file nor a folder; give a folder, a tar archive or Parquet"):
        inputs.recognised([tmp_path / "pipe"])
    with refusal("none.tar does not exist; give a folder, a tar archive or Parquet files"):
        opened(tmp_path / "none.tar")


def test_an_unknown_split_of_idx_files_lists_what_there_is(tmp_path):
    saved(tmp_path / "train-images-idx3-ubyte", b"")
    with refusal("--split is 'validation', which is unknown; known are test, train"):
        opened(tmp_path, split="validation")
