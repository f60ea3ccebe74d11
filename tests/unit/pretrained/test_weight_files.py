import json
import math
import os
import pathlib
import pickle
import resource
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
    refused(path, r"evil.pth contains more than weights, namely posix.mkdir, .* save model.state")
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
