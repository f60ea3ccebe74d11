"""What is said while programs are compiled."""

import re
import threading

import jax
import pytest

from nest_dist.experiment import compile_cache


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr(compile_cache, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(compile_cache.processes, "barrier", lambda _: None)
    return []


def compile_slowly(workdir, said):
    """Until the heartbeat was heard twice."""
    heard = threading.Semaphore(0)

    def say(text):
        said.append(text)
        heard.release()

    before = jax.config.jax_compilation_cache_dir
    try:
        with compile_cache.enabled(workdir, say):
            for _ in range(3):  # the first is that it begins
                assert heard.acquire(timeout=30)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_heartbeat_tells_how_long_it_takes_and_took(tmp_path, said):
    compile_slowly(tmp_path, said)
    first, *beats, last = said
    assert first == "compiling ..."
    assert all(re.fullmatch(r"compiling, \d+ s", beat) for beat in beats)
    assert re.match(r"compiled in \d+ s", last)
    (file,) = tmp_path.glob("compiled/*/seconds.txt")
    file.write_text("120.0\n")
    said.clear()
    compile_slowly(tmp_path, said)
    assert re.fullmatch(r"compiling, \d+ s; the last time it took 120 s", said[1])


def test_a_damaged_time_is_left_out(tmp_path, said):
    file = tmp_path / "compiled" / compile_cache.machine() / "seconds.txt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\xff")
    compile_slowly(tmp_path, said)
    assert re.fullmatch(r"compiling, \d+ s", said[1])
