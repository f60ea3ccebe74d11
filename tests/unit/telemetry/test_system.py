import types

import jax
import jax.numpy as jnp
import pytest

from nest_dist.telemetry import system

SPEED = {"speed/images_per_second": 1000.0}


def test_speed_and_memory_of_this_machine():
    before = system.metrics(SPEED, 1e9)
    array = jnp.zeros((1024, 1024))
    array.block_until_ready()
    derived = system.metrics(SPEED, 1e9)
    assert derived["speed/images_per_second_per_device"] == 1000.0 / jax.device_count()
    assert derived["memory/device_bytes"] - before["memory/device_bytes"] == array.nbytes
    assert 100e6 < derived["memory/host_bytes"] < 100e9
    assert "speed/mfu" not in derived  # nobody publishes the peak of a CPU


@pytest.mark.parametrize(
    ("kind", "peak"), [("TPU v5 lite", 197e12), ("NVIDIA H200", 989.5e12), ("NVIDIA L4", 121e12)]
)
def test_utilisation_where_the_peak_is_known(kind, peak, monkeypatch):
    chips = [
        types.SimpleNamespace(
            device_kind=kind, memory_stats=lambda used=used: {"bytes_in_use": used}
        )
        for used in (3e9, 5e9, 4e9, 1e9)
    ]
    monkeypatch.setattr(jax, "devices", lambda: chips)
    monkeypatch.setattr(jax, "local_devices", lambda: chips)
    monkeypatch.setattr(jax, "device_count", lambda: len(chips))
    derived = system.metrics(SPEED, flops_per_image=34.8e9)
    assert derived["speed/mfu"] == pytest.approx(1000 * 34.8e9 / (4 * peak))
    assert derived["memory/device_bytes"] == 5e9
