"""What processes must have in common: the odd one and what differs are named, on all of them."""

import pathlib
import types

import pytest
from support import commands

from nest_dist.base import failures
from nest_dist.cluster import processes
from nest_dist.experiment import preflight
from nest_dist.experiment import run as runs


@pytest.fixture
def others(monkeypatch):
    """A function that sets what two other processes tell: changes to what this one tells."""

    def tell(*changed):
        def decide(_, own, judge):
            return judge([own, *({**own, **change} for change in changed)])

        monkeypatch.setattr(processes, "decide", decide)

    return tell


def run(*bindings):
    return runs.load(["runs/quickstart.gin"], [*commands.TINY, *bindings])


def test_the_process_that_differs_from_most_is_named_with_the_binding(others):
    others({"Run.seed": "7"}, {})
    with pytest.raises(failures.BadInput) as refusal:
        preflight.same_program(run(), pathlib.Path())
    assert str(refusal.value) == (
        "Run.seed is 7 on process 1, 0 on process 0; start all processes with the same flags, "
        "packages and devices."
    )


def test_an_object_that_one_process_alone_has_is_named(others):
    others({"Inputs.mixing": "@Mixing()", "Mixing.mixup_alpha": "0.8"}, {})
    with pytest.raises(
        failures.BadInput, match=r"^Inputs.mixing is @Mixing\(\) on process 1, None"
    ):
        preflight.same_program(run(), pathlib.Path())
    others({"Mixing.mixup_alpha": "0.8"}, {})
    with pytest.raises(
        failures.BadInput, match=r"^Mixing.mixup_alpha is 0.8 on process 1, None on"
    ):
        preflight.same_program(run(), pathlib.Path())


@pytest.mark.parametrize(
    "fact", ["version of jax", "code of nest_dist", "kind of device", "number of local devices"]
)
def test_programs_that_differ_are_refused(fact, others):
    others({}, {fact: "another"})
    with pytest.raises(failures.BadInput, match=f"^{fact} is another on process 2, .+ on process"):
        preflight.same_program(run(), pathlib.Path())


def test_process_0_can_be_the_odd_one(others):
    others({"kind of device": "TPU v4"}, {"kind of device": "TPU v4"})
    with pytest.raises(failures.BadInput, match=r"is cpu on process 0, TPU v4 on process 1"):
        preflight.same_program(run(), pathlib.Path())


def test_data_that_differs_is_refused(others):
    one = types.SimpleNamespace(fingerprint="abc")
    config = types.SimpleNamespace(name="")
    opened = types.SimpleNamespace(config=config, source=one, reference=None)
    wired = types.SimpleNamespace(training_source=one, evaluations=(opened,))
    others({}, {"fingerprint of the evaluation data": "xyz"})
    with pytest.raises(failures.BadInput, match="evaluation data is xyz on process 2, abc on"):
        preflight.same_data(wired)


def test_a_folder_that_is_not_shared_is_refused(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(processes, "broadcast", lambda make: told.append(make()) or told[0])

    def decide(_, own, judge):
        return judge([own, own] if isinstance(own, dict) else [True, (tmp_path / told[0]).is_dir()])

    monkeypatch.setattr(processes, "decide", decide)
    with pytest.raises(
        failures.BadInput, match="where process 1 does not see what process 0 wrote"
    ):
        preflight.same_program(run(), tmp_path)
    assert list(tmp_path.iterdir()) == []
