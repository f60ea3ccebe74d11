"""Processes that were started differently end together, within seconds, before they compile."""

import os
import subprocess
import sys

import pytest
from support import commands, ports


def started_differently(*flags):
    """Ends and outputs of two processes of `nest-dist train`, each with its own flags."""
    port = ports.free()
    peers = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "nest_dist", "train", *own, *peers, f"--process_id={index}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, own in enumerate(flags)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    return [process.returncode for process in processes], outputs


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("seed", "Run.seed is 1 on process 1, 0 on process 0; start all processes with the same"),
        (
            "workdir",
            "where process 1 does not see what process 0 wrote; give a folder on a storage",
        ),
    ],
)
def test_differing_processes_end_together(what, text, tmp_path):
    folders = [tmp_path / "a", tmp_path / ("b" if what == "workdir" else "a")]
    seeds = [(), ("Run.seed = 1",) if what == "seed" else ()]
    flags = [commands.tiny_flags(it, *seed) for it, seed in zip(folders, seeds, strict=True)]
    codes, outputs = started_differently(*flags)
    assert codes == [2, 2], outputs
    for said, complaint in outputs:
        assert text in complaint
        assert "compiling" not in said
