"""Measures on one process and on two: the same features, and the same bits from them."""

import pytest
from support import commands

from nest_dist.cluster import library_output

pytestmark = pytest.mark.slow

BINDINGS = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = '2 steps'",
    "Cosine.warmup_epochs = '1 steps'",
    "Cadence.save_every_epochs = '2 steps'",
    "Evaluation.every_epochs = '2 steps'",
    "Evaluation.measures = (@KNearest(), @FewShot(), @LinearProbe(), @Confusion(), @TopK())",
    "LinearProbe.most_iterations = 60",
    "TopK.k = (3,)",
)


def test_two_processes_measure_what_one_does_to_the_bit(tmp_path):
    found = {}
    for processes, devices in ((1, 2), (2, 1)):
        workdir = tmp_path / f"{processes}"
        flags = commands.tiny_flags(workdir, *BINDINGS)
        code, said = commands.local(processes, devices, "train", *flags)
        assert code == 0, said
        assert "[Gloo]" not in said
        if processes == 2:
            assert "is connected to 1 peer" in (workdir / library_output.NAME).read_text()
        (line,) = commands.evaluations(workdir)
        tables = [path.read_text() for path in sorted((workdir / "evaluations").iterdir())]
        found[processes] = line, tables
    assert "eval/linear_probe" in found[1][0]
    assert found[1] == found[2]
