import dataclasses

import gin
import pytest

from nest_dist.base import failures
from nest_dist.config import gin_state, shipped
from nest_dist.data.sources import parquet  # noqa: F401  # it registers its name
from nest_dist.experiment import binding_names
from nest_dist.experiment import run as runs

RUNS = shipped.names("runs")


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_run_is_parsed_and_built(name):
    run = runs.load([name], [])
    assert run.global_batch > 0


def test_the_operative_configuration_makes_the_same_run_again(tmp_path):
    run, text = runs.parse(["runs/quickstart.gin"], ["Run.seed = 5"])
    (tmp_path / "config.gin").write_text(text)
    assert runs.parse([str(tmp_path / "config.gin")], []) == (run, text)


def test_the_last_binding_of_a_name_wins():
    run = runs.load(["runs/quickstart.gin"], ["Run.seed = 5", "Run.seed = 6"])
    assert run.seed == 6


def test_folders_named_like_ours_do_not_hide_the_shipped_files(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert runs.load(["runs/quickstart.gin"], []).global_batch == 32


def test_a_macro_that_all_scopes_replace_needs_no_value():
    files = ["runs/cifar10_nest_tiny.gin", "data/parquet.gin"]
    replaced = ["train/Parquet.files = ('a',)", "evaluate/Parquet.files = ('b',)"]
    assert runs.load(files, replaced).data.source.files == ("a",)
    with pytest.raises(
        failures.BadInput, match=r"^the macro %data_set has no value; did you mean data_folder\?$"
    ):
        runs.load(files, replaced[:1])


@pytest.mark.parametrize("old", [name for name, new in binding_names.RENAMED.items() if new])
def test_an_old_name_says_the_new_one(old):
    binding = f"{old} = 1" if "." in old else f"{old}.anything = 1"
    with pytest.raises(failures.BadInput) as refusal:
        runs.load(["runs/quickstart.gin"], [binding])
    text = str(refusal.value)
    owner = old.partition(".")[0]
    assert f"{old} is now {binding_names.RENAMED[old]} " in text or (
        f"{owner} is now {binding_names.RENAMED[owner]} " in text
    )
    assert len(text.splitlines()) == 1


def test_a_file_or_module_that_has_moved_says_where():
    with pytest.raises(failures.BadInput, match=r"nor a shipped name; it is now data/parquet\.gin"):
        runs.load(["runs/quickstart.gin", "data/huggingface.gin"], [])
    with pytest.raises(
        failures.BadInput, match=r"is now nest_dist.data.sources.parquet \(.*\); im"
    ):
        runs.load(["runs/quickstart.gin"], ["import nest_dist.data.sources.huggingface"])


def test_a_name_that_is_gone_says_so():
    with pytest.raises(
        failures.BadInput, match=r"Rules\.layers is no more \(in .*\); leave it out"
    ):
        runs.load(["runs/quickstart.gin"], ["Rules.layers = ()"])


@pytest.mark.parametrize("new", sorted(set(binding_names.RENAMED.values()) - {""}))
def test_the_new_name_can_be_bound(new):
    owner, _, field = new.partition(".")
    with gin_state.isolated():
        known = gin_state.registered()
    assert owner in known
    assert not field or field in {it.name for it in dataclasses.fields(known[owner])}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "binding", ["NonFinite.policy = 'skip'", "Retention.last = 5", "Watch.stuck_seconds = 60"]
)
def test_what_a_remedy_names_can_be_bound_in_every_run(name, binding):
    assert runs.load([name], [binding]) != runs.load([name], [])


def test_a_program_that_uses_gin_itself_finds_its_configuration_as_it_was():
    @gin.configurable("their_function", module="theirs")
    def function(value=gin.REQUIRED):
        return value

    gin.parse_config("theirs.their_function.value = 5\nmacro = 3")
    gin.finalize()
    try:
        before = gin.config_str()
        run = runs.load(["runs/quickstart.gin"], [])
        assert run.global_batch == 32
        with pytest.raises(failures.BadInput):
            runs.load(["runs/quickstart.gin"], ["Run.nothing = 5"])
        assert gin.config_str() == before
        assert gin.config_is_locked()
        assert function() == 5
    finally:
        gin.clear_config()


def test_a_file_may_replace_an_object_of_what_it_includes(tmp_path):
    own = tmp_path / "own.gin"
    lines = ("Step.optimizer = @SGD()", "SGD.peak_learning_rate = 0.1", "Inputs.mixing = None")
    own.write_text("\n".join(["include 'runs/nest_tiny_imagenet.gin'", *lines, ""]))
    run = runs.load([str(own)], [])
    assert type(run.step.optimizer).__name__ == "SGD"
    assert run.step.inputs.mixing is None
    for vain in ("Mixing.mixup_alpha", "AdamW.weight_decay", "RandomErasin.probability"):
        (tmp_path / "vain.gin").write_text(f"include '{own}'\n{vain} = 0.1\n")
        with pytest.raises(failures.BadInput, match=vain.partition(".")[0]):
            runs.load([str(tmp_path / "vain.gin")], [])
    (tmp_path / "part.gin").write_text("GroupMixing.rows = 4\n")
    own.write_text(own.read_text() + "include 'part.gin'\n")
    with pytest.raises(failures.BadInput, match=r"GroupMixing\.rows is set and nothing used it"):
        runs.load([str(own)], [])


def test_an_import_that_this_version_does_not_have_is_named(tmp_path):
    own = tmp_path / "own.gin"
    own.write_text("include 'runs/quickstart.gin'\nimport nest_dist.train.pixels\n")
    with pytest.raises(failures.BadInput, match=r"no module nest_dist\.train\.pixels in this ver"):
        runs.load([str(own)], [])


def test_an_object_that_a_binding_replaces_leaves_its_own_bindings_unused():
    names = ["runs/nest_tiny_imagenet.gin"]
    run = runs.load(names, ["Inputs.mixing = None", "Inputs.color_jitter = None"])
    assert run.step.inputs.mixing is run.step.inputs.color_jitter is None
    with pytest.raises(failures.BadInput, match=r"Mixing\.mixup_share is set and nothing used it"):
        runs.load(["runs/quickstart.gin"], ["Mixing.mixup_share = 0.1"])
    with pytest.raises(failures.BadInput, match=r"the macro data_foldr is set and nothing used"):
        runs.load(names, ["data_foldr = 'x'"])


QUICK = "include 'runs/quickstart.gin'\n"


def test_a_binding_includes_what_a_file_does(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits.gin").write_text("Run.seed = 1")
    (tmp_path / "seed.gin").write_text("Run.seed = 2")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart.gin").write_text(f"{QUICK}Run.global_batch = 7")
    monkeypatch.chdir(tmp_path)
    run = runs.load(["runs/quickstart.gin"], ["include 'seed.gin'", "include 'data/digits.gin'"])
    assert (run.seed, run.global_batch) == (2, 7)


def test_an_include_is_a_shipped_file_or_lies_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart.gin").write_text("Run.seed = 1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.gin").write_text(f"{QUICK}include 'seed.gin'")
    (tmp_path / "mine" / "seed.gin").write_bytes(b"\xef\xbb\xbfRun.seed = 7\r\n")  # as Notepad does
    monkeypatch.chdir(tmp_path)
    run = runs.load(["mine/run.gin"], [])
    assert (run.seed, run.global_batch) == (7, 32)


@pytest.mark.parametrize("others", [[], ["b.gin"]])
def test_files_that_include_each_other_are_refused(others, tmp_path):
    names = ["a.gin", *others]
    for name, included in zip(names, [*names[1:], "a.gin"], strict=True):
        (tmp_path / name).write_text(f"include '{included}'")
    with pytest.raises(failures.BadInput, match=r"a\.gin includes itself") as refusal:
        runs.load([str(tmp_path / "a.gin")], [])
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    "code",
    ["1 / 0", "import sys; sys.exit(0)", "raise KeyError('b')", "[][0]"],
)
def test_a_module_of_the_user_that_fails_is_one_line(code, tmp_path, monkeypatch):
    name = f"fails_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(failures.BadInput, match="a module that gin imports raises"):
        runs.load(["runs/quickstart.gin"], [f"import {name}"])


@pytest.mark.parametrize("number", ["1e400", "1e300", "10" + "0" * 400])
def test_numbers_that_no_field_needs_are_refused(number):
    with pytest.raises(failures.BadInput, match=r"Run.num_epochs is .*give a number below 1e\+15"):
        runs.load(["runs/quickstart.gin"], [f"Run.num_epochs = {number}"])
