"""Processes that were started differently end together, within seconds, before they compile."""

import pytest
from support import commands, harness


@pytest.mark.slow
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
    started = [
        [*commands.NEST_DIST, "train", *own, *peer]
        for own, peer in zip(flags, harness.peers(2), strict=True)
    ]
    with harness.Group(started, environment=harness.environment()) as group:
        assert group.wait() == [2, 2], group.said()
        for process in group.processes:
            assert text in process.said()
            assert "compiling" not in process.said()
