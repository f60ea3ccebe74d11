"""The benchmark for whoever has a GPU runs on a CPU, too, with a small model."""

import re
import sys

import pytest
from support import commands, harness


@pytest.mark.slow
def test_the_benchmark_prints_its_table_without_a_gpu(tmp_path):
    done = harness.run(
        [sys.executable, "tests/benchmarks/gpu_speed.py", "--cpu", "--minutes=10"],
        folder=commands.TOP,
        environment=harness.environment(JAX_DISABLE_MOST_OPTIMIZATIONS="1", TMPDIR=str(tmp_path)),
        succeeds=True,
    )
    assert re.match(r"model +ours +part +batch +images/s +TFLOP/s +peak +GB\n", done.stdout)
    for part in ("train step", "forward"):
        for batch in (2, 4):
            assert re.search(
                rf"^small +plain +{part} +{batch} +[\d,.]+ ", done.stdout, re.MULTILINE
            )
    assert "not measured: small cudnn: 4 of 4 (cuDNN needs a GPU)\n" in done.stdout
    (error,) = re.findall(r"error beside float64, plain: float32 (\S+) of", done.stdout)
    assert float(error) < 1e-4
    assert "two processes with FSDP: trained\n" in done.stdout
