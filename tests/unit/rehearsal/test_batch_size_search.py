"""The search for the largest batch, with programs of known needs."""

import math
import re
import types

import pytest
from support import rehearsals

from nest_dist.base import failures
from nest_dist.experiment import build
from nest_dist.experiment import run as runs
from nest_dist.rehearsal import absent_data, batch_size_search, topology


def search(need, limit, first=8, most=10**6, fixed=100):
    """The result of the search, and all numbers that it tried."""
    tried = []

    def needed(number):
        tried.append(number)
        return need(number)

    return batch_size_search.largest(needed, limit, fixed, first, most), tried


@pytest.mark.parametrize("slope", [1, 3.7, 40, 900])
@pytest.mark.parametrize("first", [1, 8, 500])
def test_the_result_fits_and_an_eighth_more_does_not(slope, first):
    def need(number):
        return 100 + slope * number

    largest, tried = search(need, 10_000, first)
    assert need(largest) <= 10_000 < need(largest + max(1, largest // 8))
    assert largest in tried
    assert len(tried) <= 5


def test_what_the_compiler_refuses_is_too_much():
    def need(number):
        return 100 + 10 * number if number <= 70 else math.inf

    largest, _ = search(need, 10_000, 512)
    assert 63 <= largest <= 70


def test_a_need_that_bends_is_followed():
    # The compiler computes again of its own accord when memory gets short.
    def need(number):
        return 100 + 10 * number if number < 500 else 5100 + 2 * (number - 500)

    largest, tried = search(need, 7000)
    assert need(largest) <= 7000 < need(largest + largest // 8)
    assert len(tried) <= 8


def test_nothing_that_fits_is_zero():
    assert search(lambda _: math.inf, 1000)[0] == 0


def test_the_search_ends_where_the_data_do():
    largest, tried = search(lambda number: 100 + number, 10**9, most=64)
    assert largest == 64
    assert tried == [8, 64]


@pytest.fixture(scope="module")
def wired():
    run = runs.load(list(rehearsals.FILES), list(rehearsals.SMALL))
    return build.build(run, topology.devices("v5e:2x2"), absent_data.Absent(10**6))


def fake(fits_up_to):
    """Measures without compiling: 1 GB, and the memory of images by policy."""

    def measure(wired):
        images = wired.run.global_batch / 4
        most = fits_up_to[wired.run.model.remat]
        if images > 2 * most:
            return None
        total = round(1e9 + images / most * (16 * 2**30 - 1e9))
        memory = {"total": total, "fits": total <= 16 * 2**30}
        return {"memory": memory, "cycles_an_image": 7e6, "images_per_second_a_chip": 214.3}

    return measure


def test_each_policy_has_its_largest_batch_in_the_table(wired):
    policies, limit = batch_size_search.policies(None), batch_size_search.require_limit(wired)
    assert limit == 16 * 2**30
    measure = fake({"none": 100, "dots": 1000, "layer": 0.01})
    told = []
    tries = batch_size_search.search(wired, policies, limit, measure, told.append)
    assert told == tries
    assert {each.remat for each in tries} == {"none", "dots", "layer"}
    # Pairs are mixed, and each of four devices has as many images as the others.
    assert all(each.images_a_device % 2 == 0 for each in tries)
    head, none, dots, layer = batch_size_search.table(tries)
    assert re.split("  +", head) == [
        *("remat", "images a device", "GB a device", "cycles an image", "images/s a chip")
    ]
    assert none.split()[0] == "none"
    assert 88 <= float(none.split()[1]) <= 100
    assert 880 <= float(dots.split()[1]) <= 1000
    assert none.split()[3:] == ["7,000,000", "214"]
    assert layer == "layer   not even 2 images a device fit"


def test_only_known_policies_are_tried():
    assert batch_size_search.policies(["dots"]) == ("dots",)
    with pytest.raises(failures.BadInput, match="--remat is 'dot', which is unknown; did you mean"):
        batch_size_search.policies(["dot"])


def test_devices_without_a_public_figure_are_refused():
    mesh = types.SimpleNamespace(
        devices=types.SimpleNamespace(flat=[types.SimpleNamespace(device_kind="TPU9")])
    )
    with pytest.raises(
        failures.BadInput,
        match=r"--fit is given for TPU9, .*; give a --topology of v2, v3, v4, v5e, v5p, v6e, "
        r"a100-40gb, a100-80gb, h100, h200, b200, l4, rtx4090\.",
    ):
        batch_size_search.require_limit(
            types.SimpleNamespace(sharding=types.SimpleNamespace(mesh=mesh))
        )
