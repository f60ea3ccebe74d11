"""A run whose mixture gets other weights: refused, or each source goes on where it stood."""

import pytest
from support import commands

from nest_dist.base import failures
from nest_dist.config import run_json
from nest_dist.experiment import build, header, resume
from nest_dist.experiment import run as runs

GIN = """
import nest_dist.data.sources.mixture
TrainingData.source = @Mixture()
Mixture.sources = (@one/Digits(), @two/Digits())
Mixture.names = ("one", "two")
one/Digits.split = "train[!::4]"
two/Digits.split = "train[::4]"
"""
BOTH = ((0, (3, 1)), (4, (1, 1)))


class Checkpoints:
    """One checkpoint, whose state does not matter."""

    def __init__(self, step, metadata):
        self.stored = step, metadata

    def newest(self):
        return self.stored

    def restore(self, step, shapes):
        return None

    def evaluation(self, step):
        return {}

    def notes(self):
        return []


def parsed(folder, *bindings):
    path = folder / "mixture.gin"
    path.write_text(GIN)
    return runs.parse(["runs/quickstart.gin", str(path)], [*commands.TINY, *bindings])


def experiment(folder, weights):
    return build.build(parsed(folder, f"Mixture.weights = {weights}")[0])


@pytest.fixture
def stored(tmp_path):
    """Of a run with 3:1, after 3 steps and one batch that was left out."""
    return Checkpoints(3, resume.metadata(experiment(tmp_path, (3, 1)), left_out=1))


def test_other_weights_are_refused(stored, tmp_path):
    with pytest.raises(
        failures.BadInput,
        match=r"^Mixture.weights is \(1, 1\), the checkpoint of this workdir was made with \(3,",
    ):
        resume.find(stored, experiment(tmp_path, (1, 1)), allow_change=False)


def test_allowed_weights_follow_those_of_the_past(stored, tmp_path):
    given = experiment(tmp_path, (1, 1))
    start = resume.find(stored, given, allow_change=True)
    assert start.weights == BOTH
    assert f"configuration changed: Mixture.weights was (3, 1), is {BOTH}: the checkpoint" in str(
        start.notes
    )
    # The next start needs no flag, and its configuration keeps both.
    going = given.with_weights(start.weights)
    after = Checkpoints(9, resume.metadata(going, left_out=1))
    again = resume.find(after, given, allow_change=False)
    assert (again.weights, again.notes) == (BOTH, ())
    assert run_json.flatten(going.document)["Run.data.source.weights"].text == str(BOTH)
    # Of 32 examples by 3:1, and of 40 by 1:1.
    assert going.data_metrics(4)["data/one/examples"] == 4 * given.run.global_batch * 3 / 4
    assert going.data_metrics(9)["data/two/examples"] == (4 / 4 + 5 / 2) * given.run.global_batch


def test_a_run_without_a_mixture_has_no_weights(stored, tmp_path):
    plain = build.build(runs.load(["runs/quickstart.gin"], commands.TINY))
    start = resume.find(Checkpoints(3, resume.metadata(plain, 0)), plain, allow_change=False)
    assert (start.weights, start.notes) == (None, ())
    assert not [name for name in plain.data_metrics(5) if name.endswith("/epochs")]


def test_the_configuration_as_gin_keeps_the_weights(tmp_path):
    _, text = parsed(tmp_path, "Mixture.weights = (1, 1)")
    path = tmp_path / "config.gin"
    path.write_text(header.with_weights(text, BOTH))
    assert runs.load([str(path)], []).data.source.weights == BOTH
    assert header.with_weights(text, None) == text
