"""`launch/tpu_pod.sh` against a gcloud whose workers are processes of this machine."""

import base64
import os
import subprocess

import pytest
from support import cloud, commands

TRAIN = ("--", "--gin_file=runs/quickstart.gin", "--workdir=/tmp/unused")
NASTY = [
    "",
    " ",
    "a b  c ",
    "it's",
    "\"quoted\" 'and' `so on`",
    "$HOME ${PATH} $(reboot) !!",
    "back\\slash \\n \\",
    "a\nline\n\nand another\n",
    "tab\tand\rreturn\x01\x7f",
    "Größe = 'éñ日本語🙂'",
    "*?[a-z]{1,2} ~ # & | ; < > ( )",
    "--flag=--",
    "-n",
    "%s %d %%",
    "NesT.heads = (3, 6, 12)",
    "data_folder = 'gs://bucket/a b/$x\"y'",
    "x" * 20_000,
]


@pytest.fixture
def tpus(tmp_path):
    with cloud.Cloud(tmp_path / "cloud", cloud.recorder(tmp_path)) as made:
        yield made


def behave(tpus, code):
    (tpus.folder / "behaviour").write_text(code)


def ready(tpus, *flags):
    """A TPU that is created and set up."""
    for command in ("create", "setup"):
        status, output = tpus.pod(command, *flags)
        assert status == 0, output
    return output


def test_arguments_arrive_byte_for_byte(tpus):
    ready(tpus)
    status, output = tpus.pod("train", "--", *NASTY)
    assert status == 0, output
    for worker in (0, 1):
        noted = tpus.home(worker) / "arguments"
        cloud.wait_until(noted.exists, "the run")
        cloud.wait_until(lambda: not tpus.processes(), "the end")  # noqa: B023
        expected = "".join(f"{word}\0" for word in ["train", *NASTY])
        assert noted.read_bytes() == expected.encode()
