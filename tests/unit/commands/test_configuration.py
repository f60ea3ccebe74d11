import pytest

from nest_dist.commands import configuration, shipped

RUNS = shipped.names("runs")


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_run_is_parsed_and_built(name):
    run = configuration.load([name], [])
    assert run.global_batch > 0


def test_the_operative_configuration_makes_the_same_run_again(tmp_path):
    run = configuration.load(["runs/quickstart.gin"], ["Run.seed = 5"])
    text = configuration.text()
    (tmp_path / "config.gin").write_text(text)
    assert configuration.load([str(tmp_path / "config.gin")], []) == run
    assert configuration.text() == text


def test_the_last_binding_of_a_name_wins():
    run = configuration.load(["runs/quickstart.gin"], ["Run.seed = 5", "Run.seed = 6"])
    assert run.seed == 6


def test_folders_named_like_ours_do_not_hide_the_shipped_files(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert configuration.load(["runs/quickstart.gin"], []).global_batch == 32
