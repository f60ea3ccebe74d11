"""Processes of a run and the GPUs that they see, where GPUs are names without a device."""

import pytest
from support import commands, fake_nvidia, harness


@pytest.mark.slow
@pytest.mark.parametrize("shown", ["0", "0,1"])
def test_two_processes_on_one_gpu_end_before_anything_is_compiled(tmp_path, shown):
    environment = harness.environment(
        JAX_PLATFORMS="cuda",
        CUDA_VISIBLE_DEVICES=shown,
        PATH=fake_nvidia.path(fake_nvidia.install(tmp_path / "host")),
        PYTHONPATH=harness.module_path(fake_nvidia.plugin(tmp_path / "plugin")),
    )
    train = [*commands.NEST_DIST, "train", *commands.tiny_flags(tmp_path / "workdir")]
    with harness.Group.of(2, train, environment=environment) as group:
        assert group.wait() == [2, 2], group.said()
        said = group.said()
    assert said.count("processes 0 and 1 would both use GPU-host-00000000 of ") == 2
    assert "compiling" not in said
    assert "Traceback" not in said
