"""The cache on disk: right bytes or none, within its bound, whoever is killed or fails."""

import os
import pathlib
import pickle
import random
import subprocess
import sys
import time

import pytest
from support import archives, batches, caching, datasets, harness, parquet, refusals

from nest_dist.data.sources import byte_ranges, range_cache, retries, row_cache, tars, traffic
from nest_dist.data.sources import parquet as sources

PICTURES = datasets.pictures(12)


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(range_cache, "_told", set())
    monkeypatch.setattr(range_cache, "_paused_until", {})
    # The disk of a test may be nearly full.
    monkeypatch.setattr(range_cache, "FREE_FRACTION", 0)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "data").mkdir()
    with parquet.served(tmp_path / "data") as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    return range_cache.Cache(str(tmp_path / "cache"))


def kept(cache):
    return [path for path in pathlib.Path(cache.folder).glob("*/*") if path.is_file()]


def of_parquet(server, cache, **fields):
    names = [path.name for path in sorted(server.root.glob("*.parquet"))]
    files = tuple(f"{server.address}/{name}" for name in names)
    return sources.Parquet(files, "train", virtual_shards=2, cache=cache, **fields)


def of_tars(server, cache):
    for number in range(3):
        members = []
        for name, label, picture in PICTURES[number::3]:
            key = name.replace("/", "_").removesuffix(".jpg")
            members += [(f"{key}.jpg", picture), (f"{key}.cls", str(label).encode())]
        (server.root / f"train-{number}.tar").write_bytes(archives.tar_bytes(members))
    return tars.Tars(
        tuple(f"{server.address}/train-{it}.tar" for it in range(3)), "train", cache=cache
    )


def epochs(config, steps=9, **fields):
    """Digests of batches of the opened data."""
    return batches.digests(batches.training(config.open(), config=config, steps=steps, **fields))


def asked(server, config, **fields):
    """The bytes of which the server is asked for batches, and their digests."""
    before = server.sent
    digests = epochs(config, **fields)
    return server.sent - before, digests


def test_a_second_run_asks_the_server_for_no_row_group(server, cache):
    parquet.write(server.root)
    size = sum(path.stat().st_size for path in server.root.iterdir())
    without = [asked(server, of_parquet(server, None)) for _ in range(2)]
    with_cache = [asked(server, of_parquet(server, cache)) for _ in range(2)]
    assert len({tuple(digests) for _, digests in (*without, *with_cache)}) == 1
    # Of the second run only the ends of files, to learn whether they are the same.
    assert with_cache[1][0] < size / 50 < size / 2 < with_cache[0][0] <= without[0][0]
    assert without[1][0] > size / 2


def test_tars_over_http_have_the_batches_of_local_ones_and_are_fetched_once(
    server, cache, monkeypatch
):
    config = of_tars(server, cache)
    local = tars.Tars((str(server.root),), "train")
    reference = epochs(local)
    size = sum(path.stat().st_size for path in server.root.glob("*.tar"))
    first, digests = asked(server, config)
    assert digests == reference
    assert size <= first < 1.01 * size  # listed and kept at once
    second, digests = asked(server, config)
    assert (digests, second) == (reference, 3)  # a byte of each
    source, stored = config.open(), local.open()
    assert source.fingerprint == stored.fingerprint
    assert source[7] == stored[7]
    assert source.known_labels().tolist() == stored.known_labels().tolist()
    # Without a cache members are read by their ranges.
    uncached = tars.Tars(config.files, "train")
    assert epochs(uncached) == reference
    failing = random.Random(3)
    server.fails = lambda _: failing.choice((200, 200, 200, 200, 503, 0))
    assert epochs(uncached) == reference


def test_tars_of_the_hub_are_found(server, cache, monkeypatch):
    from nest_dist.base import hub

    of_tars(server, cache)
    listed = [(f"{server.address}/train-{it}.tar", "Bearer x") for it in range(3)]
    monkeypatch.setattr(hub, "dataset_files", lambda name, suffix: listed)
    config = tars.Tars(("hf://datasets/someone/photographs",), "train", cache=cache)
    assert epochs(config) == epochs(of_tars(server, None))


def test_the_least_recently_used_makes_room_and_the_bound_holds(tmp_path):
    cache = range_cache.Cache(str(tmp_path / "cache"), max_bytes=10_000)
    for number in range(40):
        cache.put(f"{number}", bytes([number]) * 900)
        os.utime(cache._path(f"{number}"), ns=(0, 1000 + number))
        assert cache.get("0") == bytes(900)  # used again and again
        assert sum(path.stat().st_size for path in kept(cache)) <= 10_000
    known = [number for number in range(40) if cache.get(f"{number}")]
    assert known[0] == 0
    assert known[1:] == list(range(40 - len(known) + 1, 40))
    assert len(known) >= 9
    cache.put("large", bytes(10_001))
    assert cache.get("large") is None
    nothing = range_cache.Cache(cache.folder, max_bytes=0)
    nothing.put("more", b"x")
    assert nothing.get("39") is cache.get("more") is None


def test_damaged_ranges_are_fetched_again(server, cache):
    parquet.write(server.root)
    reference = epochs(of_parquet(server, cache))
    for number, path in enumerate(kept(cache)):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes((bytes(content), b"", content[: len(content) // 2])[number % 3])
    before = server.sent
    assert epochs(of_parquet(server, cache)) == reference
    assert server.sent - before > 100_000
    second, digests = asked(server, of_parquet(server, cache))
    assert (second < 1000, digests) == (True, reference)


def test_a_file_that_changes_at_the_server_is_never_served_from_its_old_bytes(server, cache):
    parquet.write(server.root)
    source = of_parquet(server, cache).open()
    first = epochs(of_parquet(server, cache))
    # The same pictures in another order: of the same size, with another ETag.
    names = sorted(server.root.glob("*.parquet"))
    contents = [path.read_bytes() for path in names]
    for path, content in zip(names, contents[::-1], strict=True):
        path.write_bytes(content)
    reference = epochs(of_parquet(server, None))
    assert epochs(of_parquet(server, cache)) == reference != first
    # A run that was opened before goes on with the bytes that it was opened with, or ends.
    assert batches.digests(batches.training(source, steps=9)) == first
    for path in kept(cache):
        path.unlink()
    with refusals.refusal("has changed since it was opened; start the run again"):
        pickle.loads(pickle.dumps(source))[0]


def test_the_same_range_of_another_version_is_another(server, cache):
    path, address = server.root / "file", f"{server.address}/file"
    for content in (b"a" * 500, b"b" * 500, b"b" * 400, b"a" * 500):
        path.write_bytes(content)
        opened = byte_ranges.File(address, cache=cache).now()
        assert opened.read(100, 50) == opened.read(100, 50) == content[100:150]
    assert len(kept(cache)) == 3


@pytest.mark.parametrize("version", [None, 'W/"1"'])
def test_what_no_etag_names_exactly_is_not_kept(version, server, cache):
    (server.root / "x").write_bytes(b"x" * 9)
    file = byte_ranges.File(f"{server.address}/x", version=version, cache=cache)
    file.keep(0, 9, b"x" * 9)
    assert not pathlib.Path(cache.folder).exists()


def test_a_folder_that_cannot_be_written_is_told_once_and_changes_nothing(server, tmp_path, caplog):
    parquet.write(server.root)
    (tmp_path / "file").touch()
    reference = epochs(of_parquet(server, None))
    for folder in ("file/cache", "file"):
        caplog.clear()
        cache = range_cache.Cache(str(tmp_path / folder))
        assert epochs(of_parquet(server, cache)) == reference
        assert caplog.text.count("does not work") == 1
        assert f"{folder} does not work (Not a directory); what is not kept is" in caplog.text or (
            f"{folder} does not work (File exists); what is not kept is" in caplog.text
        )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("fraction", [0, 0.25])
def test_a_full_disk_is_told_once_and_changes_nothing(
    fraction, server, small_disk, caplog, monkeypatch
):
    monkeypatch.setattr(range_cache, "FREE_FRACTION", fraction)
    parquet.write(server.root, pictures_each=36)
    reference = epochs(of_parquet(server, None))
    cache = range_cache.Cache(str(small_disk / "cache"))
    assert epochs(of_parquet(server, cache)) == reference
    if fraction:  # its own bytes leave a part of the disk free
        assert 50_000 < sum(path.stat().st_size for path in kept(cache)) <= 300_000
    for path in kept(cache):
        path.unlink()
    full = os.statvfs(small_disk)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "others").write_bytes(bytes(full.f_bavail * full.f_frsize + 1))
    monkeypatch.setattr(range_cache, "_paused_until", {})
    caplog.clear()
    monkeypatch.setattr(range_cache, "_told", set())
    assert epochs(of_parquet(server, cache)) == reference
    assert caplog.text.count("does not work (") == 1
    assert not kept(cache)
    # Room again, later.
    (small_disk / "others").unlink()
    monkeypatch.setattr(range_cache, "_paused_until", {})
    assert epochs(of_parquet(server, cache)) == reference
    assert kept(cache)


@pytest.mark.medium
def test_killed_processes_and_runs_at_once_get_right_bytes_from_a_server_that_fails(
    server, tmp_path, rng
):
    content = rng.randbytes(200_000)
    (server.root / "file").write_bytes(content)
    failing = random.Random(rng.random())
    server.fails = lambda _: failing.choice((500, 0)) if failing.random() < 0.1 else 200
    folder, bound = tmp_path / "cache", 120_000
    environment = harness.environment(PYTHONPATH=harness.module_path())

    def started(reads):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "support.caching", f"{server.address}/file"),
                *(str(server.root / "file"), str(folder), str(bound), str(rng.random()), reads),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    lasting, killed = [started("150") for _ in range(2)], [started("100000") for _ in range(3)]
    for process in killed:
        assert any("opened" in line for line in process.stdout)
        time.sleep(rng.random() / 2)
        process.kill()
        process.wait()
    for process in lasting:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert sum(path.stat().st_size for path in folder.glob("*/*")) <= bound
    assert int((folder / "total").read_text()) <= bound
    # All that is kept is right, and what one has kept the other has used.
    server.fails = lambda _: 200
    cache = range_cache.Cache(str(folder), bound)
    file = byte_ranges.File(f"{server.address}/file", cache=cache).now()
    sent = server.sent
    for start, length in caching.ranges(len(content)):
        assert file.read(start, length) == content[start : start + length]
    assert server.sent - sent < sum(length for _, length in caching.ranges(len(content)))


def test_a_process_that_was_killed_while_it_wrote_leaves_nothing_that_counts(tmp_path):
    cache = range_cache.Cache(str(tmp_path / "cache"))
    cache.put("first", b"1" * 50)
    unfinished = tmp_path / "cache" / range_cache.NEW
    unfinished.write_bytes(b"half")
    (tmp_path / "cache" / range_cache.LOCK).write_text("")
    cache.put("second", b"2" * 50)
    assert (cache.get("first"), cache.get("second")) == (b"1" * 50, b"2" * 50)
    assert not unfinished.exists()
    assert (tmp_path / "cache" / range_cache.LOCK).read_text() == "132"


def read_and_settled(config):
    """Metrics after batches, and after all that was read ahead of them."""
    epochs(config, threads=1)
    row_cache._end()
    return traffic.metrics()


def test_hits_and_bytes_are_among_the_metrics(server, cache, monkeypatch):
    row_cache._end()  # of other tests
    for name in ("here", "told"):
        monkeypatch.setattr(traffic, name, traffic.Traffic())
    assert traffic.metrics() == {}
    parquet.write(server.root)
    before, asked_before = server.sent, len(server.asked)
    told = read_and_settled(of_parquet(server, cache))
    assert told["data/fetched_bytes"] == server.sent - before
    assert told["data/requests"] == len(server.asked) - asked_before
    assert told["data/cache_bytes"] < told["data/fetched_bytes"]
    again = read_and_settled(of_parquet(server, cache))
    assert again["data/cache_bytes"] - told["data/cache_bytes"] > 100_000
    assert again["data/cache_hits"] - told["data/cache_hits"] >= 8
    assert again["data/fetched_bytes"] - told["data/fetched_bytes"] < 1000
