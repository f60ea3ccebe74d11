"""Several evaluations of a run, and measures of any weights, as users ask for them."""

import json

import pytest
from support import commands, program
from tensorboard.backend.event_processing import event_accumulator

pytestmark = pytest.mark.medium

# 359 pictures to learn from; the run's own evaluation beside a probe of another cadence.
BINDINGS = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = '4 steps'",
    "Cosine.warmup_epochs = '1 steps'",
    "Cadence.save_every_epochs = '2 steps'",
    "Run.evaluations = (@Evaluation(), @probe/Evaluation())",
    "Evaluation.every_epochs = '4 steps'",
    "Evaluation.measures = (@Confusion(), @TopK())",
    "TopK.k = (3,)",
    "probe/Evaluation.name = 'probe'",
    "probe/Evaluation.every_epochs = '2 steps'",
    "probe/Evaluation.of_objective = False",
    "probe/Evaluation.measures = (@KNearest(), @FewShot(), @first/KNearest())",
    "probe/Evaluation.reference = @reference/EvaluationData()",
    "reference/EvaluationData.source = @reference/Digits()",
    "reference/Digits.split = 'train[::4]'",
    "first/KNearest.level = 0",
    "FewShot.shots = (2,)",
    "FewShot.draws = 2",
)
OF_PROBE = ("examples", "knn_20", "few_shot_2", "few_shot_2_deviation", "level_0/knn_20")


def of_probe(workdir):
    return [line for line in commands.metrics(workdir) if "eval/probe/knn_20" in line]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    done = commands.nest_dist("train", *commands.tiny_flags(workdir, *BINDINGS), succeeds=True)
    assert "evaluation 'probe': 359 examples" in done.stdout
    return workdir


def test_each_evaluation_has_its_cadence_its_names_and_its_tables(workdir):
    (own,) = commands.evaluations(workdir)
    assert set(own) == {
        "step",
        *(f"eval/{name}" for name in ("loss", "top_1", "top_3", "top_5", "examples")),
        *(f"eval/{name}_class_accuracy" for name in ("mean", "least")),
    }
    probes = of_probe(workdir)
    assert [line["step"] for line in probes] == [2, 4]
    assert list(probes[0])[1:] == [f"eval/probe/{name}" for name in OF_PROBE]
    assert all(line["eval/probe/examples"] == 359 for line in probes)
    assert 0.3 < probes[1]["eval/probe/knn_20"] <= 1
    stored = json.loads((workdir / "checkpoints/4/evaluation.json").read_text())
    both = {**own, **probes[1]}
    del both["step"]
    assert stored == both
    names, *rows = (workdir / "evaluations/accuracy_by_class.csv").read_text().splitlines()
    assert names == "class,examples,right,accuracy"
    counts = [row.split(",") for row in rows]
    assert len(counts) == 10
    assert sum(int(count) for _, count, *_ in counts) == 359
    right = sum(int(right) for _, _, right, _ in counts)
    assert right / 359 == own["eval/top_1"]
    _, *pairs = (workdir / "evaluations/confusion.csv").read_text().splitlines()
    assert sum(int(pair.split(",")[2]) for pair in pairs) == 359
    events = event_accumulator.EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"eval/images", "eval/confusion", "eval/confused_pairs"} <= set(tags["images"])
    assert {"eval/top_3", "eval/probe/knn_20"} <= set(tags["scalars"])


@pytest.mark.slow
def test_an_evaluation_that_is_missing_is_made_again_alone(workdir):
    before = commands.metrics(workdir)
    path = workdir / "checkpoints/4/evaluation.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({it: x for it, x in whole.items() if "/probe/" not in it}))
    commands.nest_dist("train", *commands.tiny_flags(workdir, *BINDINGS), succeeds=True)
    assert json.loads(path.read_text()) == whole
    assert of_probe(workdir) == [line for line in before if "eval/probe/knn_20" in line]
    assert len(commands.evaluations(workdir)) == 1


def test_weights_without_a_run_are_measured_as_those_of_the_run(workdir, tmp_path):
    (own,), (_, probe) = commands.evaluations(workdir), of_probe(workdir)
    shown = program.succeeds(
        "evaluate",
        f"--checkpoint={workdir}",
        "--gin_file=data/digits.gin",
        "--measures=confusion,knn,few_shot",
        "--format=json",
        f"--output={tmp_path / 'sheets'}",
        "--gin_bindings=Digits.image_side = 16",
        "--gin_bindings=Run.global_batch = 32",
        "--gin_bindings=FewShot.shots = (2,)",
        "--gin_bindings=FewShot.draws = 2",
        "--gin_bindings=Evaluation.reference = @reference/EvaluationData()",
        "--gin_bindings=reference/EvaluationData.source = @reference/Digits()",
        "--gin_bindings=reference/Digits.split = 'train[::4]'",
    )
    found = json.loads(shown)
    assert found["checkpoint"] == str(workdir)
    for name in ("top_1", "top_5", "mean_class_accuracy", "examples"):
        assert found[f"eval/{name}"] == own[f"eval/{name}"], name
    for name in OF_PROBE[:-1]:
        assert found[f"eval/{name}"] == probe[f"eval/probe/{name}"], name
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == [
        "accuracy_by_class.csv",
        "confused_pairs.png",
        "confusion.csv",
        "confusion.png",
    ]
    table = (tmp_path / "sheets/confusion.csv").read_text()
    assert table == (workdir / "evaluations/confusion.csv").read_text()


def test_all_evaluations_of_a_workdir_are_shown(workdir):
    shown = program.succeeds("evaluate", f"--workdir={workdir}")
    titles = [line for line in shown.splitlines() if line.startswith("step")]
    assert titles == ["step 4, split test", "step 4, split test, evaluation probe"]
    (own,), (_, probe) = commands.evaluations(workdir), of_probe(workdir)
    assert f"{own['eval/top_1']:.2%}" in shown
    rows = [line.split() for line in shown.splitlines()]
    assert ["level_0/knn_20", f"{probe['eval/probe/level_0/knn_20']:.2%}"] in rows


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (
            ("--measures=knn,confusions",),
            "a member of --measures is 'confusions', which is unknown; did you mean confusion?",
        ),
        ((), "--workdir is not given, and no data either; give the workdir of a run, or a file"),
        (
            ("--gin_file=data/digits.gin", "--gin_bindings=NesT.dim = 4"),
            "--gin_bindings has 'NesT.dim = 4', but without a workdir the model is that of the wei",
        ),
        (
            ("--gin_file=data/digits.gin",),
            "evaluation images come out as uint8 [32, 32, 1], NesT takes uint8 [16, 16, 1] (height",
        ),
        (
            (
                "--gin_file=data/digits.gin",
                "--measures=knn",
                "--gin_bindings=Digits.image_side = 16",
                "--gin_bindings=KNearest.level = 1",
            ),
            "KNearest.level is 1, and the model has 1 levels; give 0 to 0, or None for what the",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(more, text, workdir, monkeypatch):
    line = program.refuses(monkeypatch, "evaluate", f"--checkpoint={workdir}", *more)
    assert text in line
