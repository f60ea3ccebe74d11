"""What hosts must make for their chips."""

import pytest

from nest_dist.base import chips
from nest_dist.rehearsal import feed

V5E = chips.CHIPS["TPU v5 lite"]
IMAGES = 300 * 1_281_167


def test_chips_are_the_limit_of_a_host_with_cores_enough():
    needs = feed.of_run(V5E, 256, 2000, 400, IMAGES)
    assert (needs.wanted, needs.cores) == (8000, 20)
    assert needs.hours == pytest.approx(IMAGES / (256 * 2000) / 3600)
    of_host, of_run = feed.screen(needs)
    assert of_host == (
        "a host of 4 chips must make 8,000 images/s: 20.0 of its 112 cores at 400 images/s a core, "
        "so the chips are the limit"
    )
    assert of_run == "the run takes 0.2 hours, 53 chip-hours"


def test_a_host_with_too_few_cores_is_the_limit_and_the_run_takes_longer():
    needs = feed.of_run(V5E, 256, 2000, 50, IMAGES)
    assert needs.cores == 160
    assert needs.hours == pytest.approx(IMAGES / (64 * 112 * 50) / 3600)
    assert "so the hosts are the limit" in "\n".join(feed.screen(needs))


def test_without_a_measured_rate_the_chips_alone_count():
    needs = feed.of_run(V5E, 1, 2000, None, IMAGES)
    assert (needs.host_chips, needs.host_cores) == (1, 28)
    assert needs.hours == pytest.approx(IMAGES / 2000 / 3600)
    assert "must make 2,000 images/s; --core_images_per_second tells" in next(feed.screen(needs))
