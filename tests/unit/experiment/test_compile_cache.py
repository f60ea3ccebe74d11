"""Compiled programs are read only from where nobody but this user can have put them."""

import os
import pathlib
import re
import threading

import jax
import pytest

from nest_dist.experiment import compile_cache


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return compile_cache.of_user()


def test_programs_are_kept_in_a_folder_of_this_user(folder, tmp_path):
    assert folder.is_relative_to(tmp_path / "cache" / "nest_dist")
    assert compile_cache.problem_of(folder) == ""
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compile_cache.problem_of(folder) == ""  # at the next start


def test_without_a_variable_it_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.of_user().is_relative_to(tmp_path / ".cache" / "nest_dist")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(mode, folder):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    assert "can be written by others than the user" in compile_cache.problem_of(folder)


def test_a_folder_of_another_user_is_not_used(folder, monkeypatch):
    assert compile_cache.problem_of(folder) == ""
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert "can be written by others than the user" in compile_cache.problem_of(folder)


def test_where_none_can_be_made_the_reason_is_told(folder):
    pathlib.Path(os.environ["XDG_CACHE_HOME"]).touch()
    assert "cannot be made (Not a directory); XDG" in compile_cache.problem_of(folder)


def test_without_a_home_nothing_is_made_in_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of a user whom nobody knows
    monkeypatch.chdir(tmp_path)
    assert "is no absolute path; XDG" in compile_cache.problem_of(compile_cache.of_user())
    assert not list(tmp_path.iterdir())


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
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with compile_cache.enabled(workdir, say):
            for _ in range(3):  # the first is that it begins
                assert heard.acquire(timeout=30)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_heartbeat_tells_how_long_it_takes_and_took(folder, tmp_path, said):
    compile_slowly(tmp_path, said)
    first, *beats, last = said
    assert first == "compiling ..."
    assert all(re.fullmatch(r"compiling, \d+ s", beat) for beat in beats)
    assert re.match(r"compiled in \d+ s", last)
    (file,) = folder.glob("*.seconds")
    file.write_text("120.0\n")
    said.clear()
    compile_slowly(tmp_path, said)
    assert re.fullmatch(r"compiling, \d+ s; the last time it took 120 s", said[1])
    file.write_bytes(b"\xff")
    said.clear()
    compile_slowly(tmp_path, said)
    assert re.fullmatch(r"compiling, \d+ s", said[1])
