"""Measures on one to four processes: the same features, and the same bits from them."""

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


@pytest.mark.parametrize(
    ("devices", "global_batch", "splits"), [(2, 32, (1, 2)), (3, 33, (1, 3)), (4, 32, (1, 4))]
)
def test_processes_measure_what_one_does_to_the_bit(devices, global_batch, splits, tmp_path):
    found = []
    for processes in splits:
        workdir = tmp_path / f"{processes}"
        bindings = (*BINDINGS, f"Run.global_batch = {global_batch}")
        flags = commands.tiny_flags(workdir, *bindings)
        code, said = commands.local(processes, devices // processes, "train", *flags)
        assert code == 0, said
        assert "[Gloo]" not in said
        if processes == 2:
            assert "is connected to 1 peer" in (workdir / library_output.NAME).read_text()
        (line,) = commands.evaluations(workdir)
        tables = [path.read_text() for path in sorted((workdir / "evaluations").iterdir())]
        found.append((line, tables))
    assert "eval/linear_probe" in found[0][0]
    assert found[0] == found[1]
