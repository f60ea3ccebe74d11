import argparse
import collections
import json
import math
import os
import pathlib
import pickle
import resource
import time
import zipfile

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from nest_dist.base import failures, tree_paths
from nest_dist.pretrained import memory_limit, weight_files
from nest_dist.pretrained.formats import flax_file, safetensors_file

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
ARRAYS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a/bias": np.array(2.5, np.float32),
    "b": np.arange(4).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float16),
}
METADATA = {"format": "flax", "b": 'ünïcode\n"\\', "a": "\x00\x7f\u2028", "": "/", "z": ""}
EMPTY_0 = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (arrays[name].dtype, arrays[name].shape) == (leaf.dtype, leaf.shape)
        assert arrays[name].tobytes() == leaf.tobytes()


def refused(path, message):
    with pytest.raises(failures.BadInput, match=message) as error:
        weight_files.read(path)
    assert "\n" not in str(error.value)


def safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_arrays_and_metadata_written_as_safetensors_are_read_again(tmp_path):
    path = tmp_path / "weights"
    safetensors_file.write(path, ARRAYS, METADATA)
    file = weight_files.read(path)
    assert_same(file.arrays, ARRAYS)
    assert file.metadata == METADATA
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_a_safetensors_file_whose_length_of_header_begins_like_a_pickle_is_read(tmp_path):
    header = json.dumps({"x": F32}).encode()
    path = safetensors(tmp_path / "weights", header.ljust(0x280), b"12345678")
    assert path.read_bytes().startswith(b"\x80\x02")
    assert_same(weight_files.read(path).arrays, {"x": np.frombuffer(b"12345678", np.float32)})


def test_equal_arrays_and_metadata_give_equal_safetensors_files(tmp_path):
    contents = set()
    for attempt in range(5):
        path = tmp_path / str(attempt)
        safetensors_file.write(path, {"x": np.array([1, 2], np.float32)}, METADATA)
        contents.add(path.read_bytes())
    # The header in the order given, written here by hand.
    header = {"__metadata__": METADATA, "x": F32}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    expected = len(text).to_bytes(8, "little") + text + np.array([1, 2], np.float32).tobytes()
    assert contents == {expected}


def test_others_may_read_a_safetensors_file_as_the_umask_says(tmp_path):
    (tmp_path / "usual").touch()
    safetensors_file.write(tmp_path / "weights", ARRAYS, METADATA)
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_arrays_that_are_not_contiguous_are_written_as_they_look(tmp_path):
    columns = np.arange(6, dtype=np.float32).reshape(2, 3).T
    safetensors_file.write(tmp_path / "weights", {"x": columns, "y": columns[::2]}, {})
    assert_same(weight_files.read(tmp_path / "weights").arrays, {"x": columns, "y": columns[::2]})


def test_a_full_disk_is_told_in_one_line(tmp_path):
    def write(path):
        safetensors_file.write(path, {"x": np.zeros(1000, np.float32)}, METADATA)

    message = r"out cannot be written \(.*File too large.*\); choose another"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(failures.BadInput, match=message) as error:
            weight_files.write(tmp_path / "out", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_arrays_written_as_a_flax_file_are_read_again(tmp_path):
    flax_file.write(tmp_path / "state.flax", ARRAYS)
    file = weight_files.read(tmp_path / "state.flax")
    assert_same(file.arrays, ARRAYS)


@pytest.mark.parametrize("depth", ["bare", "variables", "state"])
def test_parameters_are_read_from_bare_files_from_variables_and_from_states(depth, tmp_path):
    arrays = {"x/kernel": np.ones((2, 2), np.float32)}
    tree = tree_paths.unflatten(arrays)
    moments = {"param_states": {"x": {"grad_ema": np.zeros(3)}}}
    tree = {
        "bare": tree,
        "variables": {"params": tree},
        "state": {
            "step": np.int32(9),
            "model_state": {},
            "optimizer": {"state": moments, "target": tree},
        },
    }[depth]
    path = tmp_path / "checkpoint"
    path.write_bytes(serialization.msgpack_serialize(tree))
    file = weight_files.read(path)
    assert_same(file.arrays, arrays)
    left_out = {"bare": (), "variables": (), "state": ("step", "model_state", "state")}
    assert set(file.left_out) == set(left_out[depth])


def test_a_pytorch_checkpoint_is_read_without_pytorch():
    file = weight_files.read(GOLDEN / "torch_checkpoint.pth")
    expected = {
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "half": np.array([2, 3, 4, 5], ml_dtypes.bfloat16),
        "parameter": np.ones(2, np.float32),
        "scalar": np.array(7, np.int64),
    }
    assert_same(file.arrays, expected)
    assert file.left_out == ("epoch",)


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def torch_like(path, tree):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(tree, protocol=2))
    return path


def test_a_pytorch_checkpoint_with_pickled_code_is_refused_and_the_code_not_run(tmp_path):
    trap = tmp_path / "sprung"
    path = torch_like(tmp_path / "evil.pth", {"state_dict": {"x": _Evil(trap)}})
    refused(
        path, r"evil.pth contains more than weights, namely posix.mkdir as .x., .* save model.state"
    )
    assert not trap.exists()


def test_a_bare_pickle_is_refused_and_not_read(tmp_path):
    trap = tmp_path / "sprung"
    (tmp_path / "old.pth").write_bytes(pickle.dumps(_Evil(trap), protocol=2))
    refused(
        tmp_path / "old.pth", r"old.pth is a bare pickle, which runs code when it is read; save"
    )
    assert not trap.exists()


def test_a_corrupt_pytorch_checkpoint_is_refused(tmp_path):
    content = (GOLDEN / "torch_checkpoint.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    refused(
        tmp_path / "cut.pth", r"cut.pth is no complete PyTorch checkpoint \(.*\); fetch or save it"
    )
    refused(torch_like(tmp_path / "list.pth", [1, 2]), r"list.pth holds one list, not weights by")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    refused(tmp_path / "other.zip", r"other.zip is no complete PyTorch checkpoint")


def test_an_array_that_reaches_beyond_its_storage_is_refused(tmp_path):
    with zipfile.ZipFile(GOLDEN / "torch_checkpoint.pth") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in contents if name.endswith("data.pkl"))
    # The first tensor's shape (3, 2) becomes (9, 2): BININT1 3 -> BININT1 9.
    shape = b"K\x03K\x02\x86"
    assert shape in contents[pickled]
    contents[pickled] = contents[pickled].replace(shape, b"K\x09K\x02\x86", 1)
    with zipfile.ZipFile(tmp_path / "wide.pth", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    refused(tmp_path / "wide.pth", r"an array reaches beyond its storage")


def torch_of(path, tree, *blobs, compression=zipfile.ZIP_STORED):
    """A checkpoint of a tree, pickled already or not, with storages."""
    pickled = tree if isinstance(tree, bytes) else pickle.dumps(tree, protocol=2)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for number, blob in enumerate(blobs):
            archive.writestr(f"archive/data/{number}", blob)
    return path


def tensor(shape, strides, length=4, offset=0):
    """The opcodes of an array over the storage 0, as PyTorch pickles it."""

    def tuple_of(numbers):
        return b"(" + b"".join(b"I%d\n" % number for number in numbers) + b"t"

    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI%d\ntQ" % length
    arguments = storage + b"I%d\n" % offset + tuple_of(shape) + tuple_of(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"I00\n}tR"


def state_of(*tensors):
    items = b"".join(b"V%d\n" % number + each + b"s" for number, each in enumerate(tensors))
    return b"\x80\x02}" + items + b"."


def test_what_a_training_script_saves_beside_the_weights_is_left_out_unread(tmp_path):
    trap = tmp_path / "sprung"
    with zipfile.ZipFile(GOLDEN / "torch_checkpoint.pth") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    (name,) = [each for each in contents if each.endswith("data.pkl")]
    beside = {
        "args": argparse.Namespace(model="nest_tiny", lr=1e-3, path=pathlib.PurePosixPath("/x")),
        "metric": np.float64(77.7),
        "amp": collections.defaultdict(list, {3: {1, 2}, (4, 5): frozenset("a")}),
        "code": _Evil(trap),
    }
    # The items of another dictionary, between the weights and the end of the first one.
    items = pickle.dumps(beside, protocol=2)[2:-1]
    own = contents[name]
    assert own.endswith(b"u.")
    plain = pickle.dumps(beside, protocol=2)
    for extra in (items, plain[2:-1]):
        contents[name] = own[:-1] + b"Vbeside\n" + extra + b"s."
        with zipfile.ZipFile(tmp_path / "timm.pth.tar", "w") as archive:
            for each, data in contents.items():
                archive.writestr(each, data)
        file = weight_files.read(tmp_path / "timm.pth.tar")
        assert_same(file.arrays, weight_files.read(GOLDEN / "torch_checkpoint.pth").arrays)
        assert file.left_out == ("epoch", "beside")
    assert not trap.exists()


NESTED = b"]q\x00" + b"".join(b"0(h%ch%clq%c" % (n, n, n + 1) for n in range(100))
BLOB = np.arange(25_000, dtype=np.float32).tobytes()
TRICKS = {
    # A memo as large as the number of an entry.
    "a memo of gigabytes": (state_of(tensor([4], [1]))[:-1] + b"r\xff\xff\xff\x7f.", None),
    # A hundred kilobytes seen as a gigabyte.
    "strides of zero": (state_of(tensor([1 << 28], [0])), "announce more bytes than it has"),
    "one storage in many arrays": (
        state_of(*[tensor([25_000], [1], length=25_000)] * 500),
        "announce more bytes than it has",
    ),
    "a shape beyond numbers": (
        b"\x80\x02}V0\n" + tensor([7], [0]).replace(b"I7", b"L" + b"9" * 4000 + b"L") + b"s.",
        "an array is larger than any machine",
    ),
    "a hundred axes": (state_of(tensor([1] * 100, [1] * 100)), "an array is larger than any"),
    # 2**100 lists, of which there are a hundred: as a key, a type, a function.
    "lists of lists": (NESTED + b".", "holds one list, not weights by name"),
    "lists as a key": (b"}" + NESTED + b"Vx\ns.", None),
    "lists as a weight": (b"}Vx\n" + NESTED + b"s.", "namely list as 'x'"),
    "lists as a function": (b"}Vx\n" + NESTED + b")Rs.", "namely an object as 'x'"),
    "lists as a storage": (
        b"}Vx\n" + tensor([4], [1]).replace(b"ctorch\nFloatStorage\n", NESTED) + b"s.",
        "a storage has no type",
    ),
    "bytes that are not there": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "expected"),
    "too many opcodes": (b"}" + b"N0" * 600_000 + b".", "more than 1,000,000 opcodes"),
    "no end": (b"}" + b"N0", "pickle exhausted"),
    "a buffer elsewhere": (b"\x80\x05\x97.", "has the opcode NEXT_BUFFER"),
}


@pytest.mark.medium
@pytest.mark.parametrize("trick", TRICKS)
def test_no_pickle_takes_more_memory_or_time_than_its_bytes(trick, tmp_path):
    content, message = TRICKS[trick]
    path = torch_of(tmp_path / "trick.pth", content, BLOB)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if message:
        refused(path, message)
    else:
        weight_files.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    assert time.process_time() - began < 10


@pytest.mark.medium
def test_records_of_an_archive_that_multiply_are_refused(tmp_path):
    content = state_of(tensor([4], [1]))
    path = torch_of(tmp_path / "deflated", content, bytes(10**7), compression=zipfile.ZIP_DEFLATED)
    refused(path, "a record is compressed, which PyTorch's are not")
    path = torch_of(tmp_path / "overlapping", content, bytes(10**5))
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += [archive.filelist[-1]] * 50  # fifty names for the same bytes
        archive._didModify = True
    refused(path, "its records announce more bytes than it has")
    with zipfile.ZipFile(tmp_path / "names", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.filelist += [archive.filelist[-1]] * 300_000
        archive._didModify = True
    refused(tmp_path / "names", r"its directory has \d+ bytes, of 16777216")
    path = torch_of(tmp_path / "long", content + bytes(1 << 24))
    refused(path, r"its pickle has \d+ bytes, of 16777216")


@pytest.mark.parametrize(
    "content",
    [
        b"\xdf\x7f\xff\xff\xff\xa1x",  # a map of two billion
        b"\x81\xa1x" + b"\xdd\x00\x10\x00\x00" * 500,  # lists in lists, of a million each
        b"\x81\xa1x" + b"\xdd\x01\x00\x00\x00" + b"\x80" * (1 << 20),
        # Within an array.
        b"\x81\xa1x\xc9\x00\x20\x00\x05\x01\xdd\x00\x20\x00\x00" + b"\x80" * (1 << 21),
    ],
    ids=["a map", "lists in lists", "maps in a list", "maps in an array"],
)
def test_a_flax_file_that_announces_more_than_any_nest_has_is_refused(content, tmp_path):
    (tmp_path / "many").write_bytes(content)
    refused(tmp_path / "many", r"no complete flax checkpoint \(it announces more than 1,000,000")


def test_every_form_of_msgpack_is_counted_as_it_is_read(monkeypatch):
    leaves = [0, -1, 200, 70000, 1 << 40, -200, -70000, -(1 << 40), 1.5, None, True, "a" * 300]
    leaves += ["b" * 70000, b"c", b"d" * 300, b"e" * 70000, [1] * 20, {"f": [2] * 70000}, {}, "g"]
    content = msgpack.packb({str(number): leaf for number, leaf in enumerate(leaves)})
    objects = 1 + 2 * len(leaves) + 20 + 2 + 70000
    monkeypatch.setattr(flax_file, "MOST_OBJECTS", objects)
    flax_file._require_few_objects(content)
    monkeypatch.setattr(flax_file, "MOST_OBJECTS", objects - 1)
    with pytest.raises(ValueError, match="announces more than 70,0"):
        flax_file._require_few_objects(content)


def test_a_safetensors_file_with_more_than_any_nest_has_is_refused(tmp_path):
    names = {f"{number}": EMPTY_0 for number in range(20_001)}
    refused(safetensors(tmp_path / "many", names), r"20001 arrays, of 20000")
    refused(
        safetensors(tmp_path / "name", {"n" * 501: EMPTY_0}), "a name of 501 characters, of 500"
    )
    path = safetensors(tmp_path / "long", b"{" + b" " * (1 << 24) + b"}", b"12")
    refused(path, r"its header has 16777218 bytes, of 16777216")


EMPTY = {**F32, "data_offsets": [0, 0]}


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (b'{"x": ', b"", "invalid JSON"),
        (b'{"x":' * 100_000, b"", "recursion limit"),
        ({"x": F32}, b"1234", "file not fully covered"),
        ({"x": F32}, b"123456789", "file not fully covered"),
        ({"x": {**F32, "shape": [3]}}, b"12345678", "invalid shape, data type, or offset"),
        ({"x": F32, "y": F32}, b"12345678", "invalid offset for tensor"),
        ({"x": {**F32, "dtype": "F33"}}, b"12345678", "unknown variant `F33`"),
        ({"x": {**F32, "dtype": "F8_E4M3", "shape": [8]}}, b"12345678", "float8_e4m3fn"),
        ({"x": {**F32, "shape": [-2]}}, b"12345678", "integer `-2`"),
        ({"x": [1, 2]}, b"", "invalid type"),
        ({"x": {**F32, "shape": [math.inf]}}, b"12345678", "expected value"),
        ({"x": {**EMPTY, "shape": [0, 10**30]}}, b"", "expected usize"),
        ({"x": {**EMPTY, "shape": [0, 2**63]}}, b"", "Maximum allowed dimension"),
        ({"x": {**EMPTY, "shape": [0, 2**40, 2**40]}}, b"", "array is too big"),
        ({"x": {**EMPTY, "shape": [0] * 65}}, b"", "maximum supported dimension"),
        ({"__metadata__": {"format": 1}}, b"", "expected a string"),
    ],
)
def test_a_corrupt_safetensors_file_is_refused(header, data, why, tmp_path):
    path = safetensors(tmp_path / "weights", header, data)
    message = rf"weights is no complete safetensors file \(.*{why}.*\); fetch or write it again\."
    refused(path, message)


def test_a_header_that_is_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "long").write_bytes((10**12).to_bytes(8, "little") + b"{}")
    refused(
        tmp_path / "long", r"no complete safetensors file \(.*header too large\); fetch or write"
    )
    (tmp_path / "cut").write_bytes((100).to_bytes(8, "little") + b"{}")
    refused(tmp_path / "cut", r"no complete safetensors file \(.*invalid header length\); fetch or")


def test_more_arrays_than_memory_holds_are_refused_before_they_are_read(tmp_path):
    size = 10**13
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    path = safetensors(tmp_path / "huge", {"x": entry})
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)  # a hole: it takes no room on the disk
    refused(
        path,
        r"huge announces 10000.0 GB of arrays, which take 2 times that to convert; this machine "
        r"has \d+\.\d GB of free memory: use one with more\.",
    )


def test_free_memory_is_known_here_and_a_container_may_have_less(monkeypatch, tmp_path):
    on_host = memory_limit.free_bytes()
    assert on_host > 10**6
    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    monkeypatch.setattr(memory_limit, "_CGROUP", tmp_path)
    assert memory_limit.free_bytes() == 1_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit.free_bytes() > 10**6


def test_a_corrupt_or_foreign_flax_file_is_refused(tmp_path):
    flax_file.write(tmp_path / "complete", ARRAYS)
    (tmp_path / "cut").write_bytes((tmp_path / "complete").read_bytes()[:-20])
    refused(
        tmp_path / "cut", r"cut is no complete flax checkpoint \(.*\); fetch or write it again\."
    )
    (tmp_path / "keys").write_bytes(msgpack.packb({"a": {1: b"", "b": b""}}))
    refused(tmp_path / "keys", r"keys is no complete flax checkpoint \(.*\); fetch or write it")
    (tmp_path / "text").write_bytes(serialization.msgpack_serialize({"hello": "world"}))
    refused(tmp_path / "text", r"text is a msgpack file, but not one of arrays by name; give a")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n etc.")
    refused(
        tmp_path / "picture", r"picture is no file of weights: it begins with b'\\x89PNG'; give"
    )
    (tmp_path / "nothing").write_bytes(b"")
    refused(tmp_path / "nothing", r"nothing is no file of weights: it begins with b''; give")
    refused(
        tmp_path / "absent", r"absent cannot be read \(No such file or directory\); give a file"
    )


def test_a_file_appears_only_when_it_is_complete_and_never_replaces_another(tmp_path):
    def fails_half_way(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        failures.BadInput, match=r"out cannot be written \(No space left on device\)"
    ):
        weight_files.write(tmp_path / "out", fails_half_way)
    assert list(tmp_path.iterdir()) == []
    weight_files.write(tmp_path / "out", lambda path: path.write_bytes(b"complete"))
    assert (tmp_path / "out").read_bytes() == b"complete"
    with pytest.raises(failures.BadInput, match=r"out exists already; remove it, or choose"):
        weight_files.write(tmp_path / "out", fails_half_way)
    with pytest.raises(failures.BadInput, match=r"cannot be written \(No such file or directory\)"):
        weight_files.write(tmp_path / "no" / "out", lambda path: path.write_bytes(b""))
