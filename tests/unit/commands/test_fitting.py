"""The search for the largest batch, with programs whose needs are known beforehand."""

import math
import re
import types

import pytest
from support import rehearsals

from nest_dist.base import failures
from nest_dist.commands import configuration, fitting, rehearse, wiring
from nest_dist.parallel import topologies


def search(need, limit, first=8, most=10**6, fixed=100):
    """The largest number that was found, and all that were tried."""
    tried = []

    def needed(number):
        tried.append(number)
        return need(number)

    return fitting.largest(needed, limit, fixed, first, most), tried


@pytest.mark.parametrize("slope", [1, 3.7, 40, 900])
@pytest.mark.parametrize("first", [1, 8, 500])
def test_what_is_found_fits_and_an_eighth_more_does_not(slope, first):
    def need(number):
        return 100 + slope * number

    found, tried = search(need, 10_000, first)
    assert need(found) <= 10_000 < need(found + max(1, found // 8))
    assert found in tried
    assert len(tried) <= 5


def test_what_the_compiler_refuses_is_too_much():
    def need(number):
        return 100 + 10 * number if number <= 70 else math.inf

    found, _ = search(need, 10_000, 512)
    assert 63 <= found <= 70


def test_a_need_that_bends_is_followed():
    # The compiler computes again of its own accord when memory gets short.
    def need(number):
        return 100 + 10 * number if number < 500 else 5100 + 2 * (number - 500)

    found, tried = search(need, 7000)
    assert need(found) <= 7000 < need(found + found // 8)
    assert len(tried) <= 8


def test_nothing_that_fits_is_zero():
    assert search(lambda _: math.inf, 1000)[0] == 0


def test_the_search_ends_where_the_data_do():
    found, tried = search(lambda number: 100 + number, 10**9, most=64)
    assert found == 64
    assert tried == [8, 64]


@pytest.fixture(scope="module")
def wired():
    run = configuration.load(list(rehearsals.FILES), list(rehearsals.SMALL))
    return wiring.wire(run, topologies.devices("v5e:2x2"), rehearse.Absent(10**6))


def fake(fits_up_to):
    """Measures without compiling: 1 GB and what images take, by policy."""

    def measure(wired):
        images = wired.run.global_batch / 4
        most = fits_up_to[wired.run.model.remat]
        if images > 2 * most:
            return None
        total = round(1e9 + images / most * (16 * 2**30 - 1e9))
        memory = {"total": total, "fits": total <= 16 * 2**30}
        return {"memory": memory, "cycles": {"image": 7e6}, "images_per_second_a_chip": 214.3}

    return measure


def test_each_policy_has_its_largest_batch_in_the_table(wired):
    policies, limit = fitting.policies(None), fitting.require_limit(wired)
    assert limit == 16 * 2**30
    measure = fake({"none": 100, "dots": 1000, "layer": 0.01})
    told = []
    tries = fitting.search(wired, policies, limit, measure, told.append)
    assert told == tries
    assert {each.remat for each in tries} == {"none", "dots", "layer"}
    # Pairs are mixed, and each of four devices has as many images as the others.
    assert all(each.images_a_device % 2 == 0 for each in tries)
    head, none, dots, layer = fitting.table(tries)
    assert re.split("  +", head) == [
        *("remat", "images a device", "GB a device", "cycles an image", "images/s a chip")
    ]
    assert none.split()[0] == "none"
    assert 88 <= float(none.split()[1]) <= 100
    assert 880 <= float(dots.split()[1]) <= 1000
    assert none.split()[3:] == ["7,000,000", "214"]
    assert layer == "layer   not even 2 images a device fit"


def test_only_known_policies_are_tried():
    assert fitting.policies(["dots"]) == ("dots",)
    with pytest.raises(failures.BadInput, match="--remat is 'dot', which is unknown; did you mean"):
        fitting.policies(["dot"])


def test_devices_without_a_public_figure_are_refused():
    mesh = types.SimpleNamespace(
        devices=types.SimpleNamespace(flat=[types.SimpleNamespace(device_kind="TPU9")])
    )
    with pytest.raises(
        failures.BadInput,
        match=r"--fit is given for TPU9, .*; give a --topology of v2, v3, v4, v5e, v5p, v6e\.",
    ):
        fitting.require_limit(types.SimpleNamespace(layout=types.SimpleNamespace(mesh=mesh)))
