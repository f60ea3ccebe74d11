"""A `wandb` that writes down what it is given, for a process that finds it on PYTHONPATH."""

import json
import os
import pathlib

import pytest
from support import harness

# What goes wrong, by the variable FAKE_WANDB.
OFFLINE, FULL, HANGS, DIES = "offline", "full", "hangs", "dies"

_MODULE = """
import errno, json, os, time

FOLDER, WRONG = os.path.dirname(__file__), os.environ.get("FAKE_WANDB")

def _note(kind, **what):
    with open(os.path.join(FOLDER, "notes.jsonl"), "a") as file:
        file.write(json.dumps({"kind": kind, "process": os.getpid(), **what}) + "\\n")

class Settings:
    def __init__(self, **settings):
        self.settings = settings

class Image:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.start = file.read()[:4].hex()

class Run:
    def define_metric(self, name, **more):
        pass

    def log(self, values):
        print("noise of a library")
        if WRONG == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if WRONG == "hangs":
            time.sleep(3600)
        if WRONG == "dies":
            os._exit(3)
        _note("log", values={k: v.start if isinstance(v, Image) else v for k, v in values.items()})

    def mark_preempting(self):
        _note("preempting")

    def finish(self, exit_code):
        _note("finish", exit_code=exit_code)

def init(settings, **arguments):
    if WRONG == "offline":
        raise ConnectionError("no route to host")
    _note("init", **arguments)
    return Run()
"""


def install(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process and those that it starts find the module in a folder."""
    (folder / "wandb.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{harness.module_path()}")


def notes(folder: pathlib.Path, kind: str) -> list[dict[str, object]]:
    """What the module was given, in order."""
    path = folder / "notes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [note for note in map(json.loads, lines) if note["kind"] == kind]
