import types

import jax
import jax.numpy as jnp
import pytest

from nest_dist.telemetry import vitals

SPEED = {"speed/images_per_second": 1000.0}


def test_speed_and_memory_of_this_machine():
    before = vitals.beside(SPEED, 1e9)
    kept = jnp.zeros((1024, 1024))
    kept.block_until_ready()
    found = vitals.beside(SPEED, 1e9)
    assert found["speed/images_per_second_per_device"] == 1000.0 / jax.device_count()
    assert found["memory/device_bytes"] - before["memory/device_bytes"] == kept.nbytes
    assert 100e6 < found["memory/host_bytes"] < 100e9
    assert "speed/mfu" not in found  # nobody publishes the peak of a CPU


def test_utilisation_where_the_peak_is_known(monkeypatch):
    chips = [
        types.SimpleNamespace(
            device_kind="TPU v5 lite", memory_stats=lambda used=used: {"bytes_in_use": used}
        )
        for used in (3e9, 5e9, 4e9, 1e9)
    ]
    monkeypatch.setattr(jax, "devices", lambda: chips)
    monkeypatch.setattr(jax, "local_devices", lambda: chips)
    monkeypatch.setattr(jax, "device_count", lambda: len(chips))
    found = vitals.beside(SPEED, flops_per_image=34.8e9)
    assert found["speed/mfu"] == pytest.approx(1000 * 34.8e9 / (4 * 197e12))
    assert found["memory/device_bytes"] == 5e9
