import json
import re

import cv2
import numpy as np
import pytest
from support import program

from nest_dist.commands import config
from nest_dist.config import shipped
from nest_dist.experiment import run as runs
from nest_dist.telemetry import curves

QUICK_START = "runs/quickstart.gin"
# Three schedules that --schedule draws: all levels of a curve, and EMA's.
EMA = "--gin_bindings=Step.ema_decay = 0.99"


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.gin"
    path.write_text(f"include '{QUICK_START}'\n\nrate = 3e-3\nAdamW.peak_learning_rate = %rate\n")
    return str(path)


def test_the_list_has_every_parameter_of_a_run_with_its_meaning():
    said = program.succeeds("config")
    assert "AdamW: The paper's optimizer." in said
    assert "  AdamW.beta_1 = 0.9  (float in [0, 1))\n      decay of the mean of gradients." in said
    assert "  AdamW.peak_learning_rate must be bound  (float at least 0)" in said
    assert "  NonFinite.policy = 'stop'  ('stop' or 'skip' or 'rewind')" in said
    # Fields that a class inherits, and modules of sources that no file has imported.
    assert "TrainingData.max_corrupt_fraction = 0.0" in said
    assert "Idx.folder must be bound" in said or "Idx." in said
    assert "data\n----\n" in said


def test_every_parameter_has_a_meaning():
    listed = json.loads(program.succeeds("config", "--json"))
    for each in listed:
        if each["room"] in ("data", "experiment", "train", "model", "sharding", "checkpointing"):
            for parameter in each["parameters"]:
                assert parameter["meaning"], f"{each['name']}.{parameter['name']}"


def test_a_search_finds_names_and_meanings():
    said = program.succeeds("config", "--search=warm")
    assert "Cosine.warmup_epochs must be bound" in said
    assert "AdamW.beta_1" not in said
    by_class = program.succeeds("config", "--search=retention")
    assert "Retention.last" in by_class
    assert "Retention.best" in by_class


def test_every_value_of_a_run_tells_where_it_was_set(mine):
    said = program.succeeds("config", mine, "--gin_bindings=Run.seed = 5")
    lines = {line.split()[0]: re.split(r"\s{2,}", line) for line in said.splitlines()}
    assert lines["Run.seed"] == ["Run.seed", "5", "--gin_bindings"]
    assert lines["Run.num_epochs"] == ["Run.num_epochs", "12", f"{QUICK_START}:7"]
    rate = ["AdamW.peak_learning_rate", "0.003", f"{mine}:4, %rate {mine}:3"]
    assert lines["AdamW.peak_learning_rate"] == rate
    assert lines["AdamW.beta_1"] == ["AdamW.beta_1", "0.9", "default"]
    assert lines["AdamW.weight_decay"][2].startswith("recipe/adamw.gin:")
    first = (shipped.folder() / "run.gin").read_text().splitlines()
    place = f"run.gin:{1 + first.index('Run.model = @NesT()')}"
    assert lines["Run.model"] == ["Run.model", "@NesT()", place]
    # In a scope of its own, for training and for evaluation.
    assert lines["train/Digits.split"][1:] == ["'train'", lines["train/Digits.split"][2]]
    assert lines["train/Digits.split"][2].startswith("data/digits.gin:")
    assert lines["evaluate/Digits.split"][1] == "'test'"


def test_the_values_can_be_searched_and_had_as_json(mine):
    flags = ("--search=learning_rate", "--json")
    values = json.loads(program.succeeds("config", f"--gin_file={mine}", *flags))
    assert {value["binding"] for value in values} == {
        "AdamW.peak_learning_rate",
        "Cosine.final_learning_rate",
        "ParameterRules.learning_rates",
    }


def test_a_workdir_is_shown_like_a_file(trained):
    said = program.succeeds("config", trained.workdir)
    assert re.search(r"^NesT\.dim +8 +.*config\.gin:\d+$", said, flags=re.MULTILINE)
    assert said == program.succeeds("config", f"--workdir={trained.workdir}")


def test_two_runs_are_compared_value_by_value(trained, mine):
    said = program.succeeds("config", "diff", QUICK_START, mine)
    heading, line = said.splitlines()
    assert heading.split() == [QUICK_START, mine]
    assert line.split() == ["AdamW.peak_learning_rate", "0.002", "0.003"]
    (change,) = json.loads(program.succeeds("config", "diff", QUICK_START, mine, "--json"))
    assert change["binding"] == "AdamW.peak_learning_rate"
    assert change["effect"] == "the run goes on differently"
    of_workdir = program.succeeds("config", "diff", trained.workdir, QUICK_START)
    assert re.search(r"^NesT\.dim +8 +32$", of_workdir, flags=re.MULTILINE)
    same = program.succeeds("config", "diff", QUICK_START, QUICK_START)
    assert same == f"{QUICK_START} and {QUICK_START} are the same run\n"


def test_schedules_are_drawn_before_anything_runs():
    said = program.succeeds("config", QUICK_START, "--schedule", EMA)
    assert said.startswith("539 steps of 32 examples: 12 epochs of 44.9 steps\n")
    assert "\nlearning rate\n" in said
    assert "    0.002 |" in said
    assert "\nEMA decay\n" in said
    assert re.search(r"step +0 +269 +539$", said, flags=re.MULTILINE)


def test_schedules_are_those_of_the_step():
    drawn = json.loads(program.succeeds("config", QUICK_START, "--schedule", "--json", EMA))
    run = runs.load([QUICK_START], [])
    rate = run.step.schedule.build(2e-3, 539, 1438 / 32)
    curve = drawn["curves"]["learning rate"]
    for at in (0, 40, 100, config.POINTS - 1):
        assert curve[at] == pytest.approx(float(rate(539 * at / (config.POINTS - 1))), rel=1e-5)
    assert drawn["curves"]["EMA decay"][0] == pytest.approx(0.1)
    assert drawn["curves"]["EMA decay"][-1] == pytest.approx(540 / 549)


def test_schedules_are_drawn_as_a_picture(tmp_path):
    flags = ("--schedule", EMA, f"--output={tmp_path / 'sheets'}")
    assert "schedule.png: the same as a picture" in program.succeeds("config", QUICK_START, *flags)
    drawn = cv2.imread(str(tmp_path / "sheets" / "schedule.png"))
    assert drawn.shape == (curves.HEIGHT, 2 * curves.WIDTH, 3)
    blue = (drawn == curves.COLOURS[0][::-1]).all(axis=2)
    for panel in np.split(blue, 2, axis=1):
        assert panel.any(axis=0).sum() > 0.9 * (curves.WIDTH - curves.LEFT - curves.RIGHT)


def test_schedules_of_data_that_is_not_here_take_a_number():
    run = "runs/nest_tiny_imagenet.gin"
    said = program.succeeds("config", run, "--schedule", "--examples=1281167")
    assert said.startswith("375,342 steps of 1024 examples: 300 epochs of 1,251.1 steps")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diff", QUICK_START], "config diff got 1 runs; give two: workdirs, gin files or"),
        (["one", "two"], "config got one two; give one workdir, gin file or shipped name, or"),
        ([QUICK_START, "--output=sheets"], "--output is given without --schedule, which alone"),
        (["--schedule"], "--schedule is given without a run; give a workdir, a gin file or"),
        *(
            ([QUICK_START, "--schedule", f"--examples={it}"], f"--examples is {it}; it must be in")
            for it in (0, -5, 10**20)
        ),
        (["--search=qqq"], "--search is 'qqq', which nothing has; try a shorter text."),
        (["/nowhere"], "--workdir is /nowhere, where no run was started"),
        (["runs/quikstart.gin"], "did you mean runs/quickstart.gin?"),
    ],
)
def test_what_cannot_be_shown_is_refused(arguments, message, monkeypatch):
    assert message in program.refuses(monkeypatch, "config", *arguments)


def test_all_missing_values_are_named_at_once_with_what_could_fill_them(tmp_path, monkeypatch):
    path = tmp_path / "mine.gin"
    includes = ("data/array_record.gin", "model/nest_micro.gin")
    lines = [*(f"include '{name}'" for name in includes), "Run.global_batch = 8"]
    path.write_text("\n".join(lines))
    line = program.refuses(monkeypatch, "config", str(path))
    for part in (
        " values are missing: ",
        "%data_folder",
        "TrainingData.transforms (",
        "Run.num_epochs (recipe/",
        "MeshShape.data (mesh/",
        "include one of the shipped files in brackets, or bind each",
        "or NAME = VALUE for %NAME.",
    ):
        assert part in line
    assert "global_batch" not in line


def test_a_single_missing_value_is_named_with_what_could_fill_it(tmp_path, monkeypatch):
    path = tmp_path / "mine.gin"
    text = (shipped.folder() / "runs/quickstart.gin").read_text()
    path.write_text(text.replace("AdamW.peak_learning_rate = 2e-3\n", ""))
    line = program.refuses(monkeypatch, "config", str(path))
    assert re.search(
        r"1 value is missing: AdamW\.peak_learning_rate \(.*recipe/imagenet\.gin.*\); include one",
        line,
    )
