"""What users mistype: one line on stderr with value, limit and remedy, and exit code 2."""

import os
import pathlib
import socket

import pytest
from support import commands, harness, ports, program

from nest_dist.base import failures
from nest_dist.commands import table
from nest_dist.experiment import run as runs


def assert_refused(done, *parts):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in done.stderr


def train(workdir, *bindings, **kwargs):
    return commands.nest_dist("train", *commands.tiny_flags(workdir, *bindings), **kwargs)


def test_no_workdir():
    done = commands.nest_dist("train", "--gin_file=runs/quickstart.gin")
    assert_refused(done, "--workdir is not given; give the folder of the run")


def test_a_workdir_that_cannot_be_written():
    done = train("/proc/nest_dist")
    assert_refused(done, "--workdir is /proc/nest_dist, which cannot be written", "give a folder")


@pytest.mark.slow
def test_a_workdir_whose_name_is_too_long(tmp_path):
    name = tmp_path / ("x" * 300)
    assert_refused(train(name), "which cannot be written (File name too long); give a folder")
    done = commands.nest_dist("evaluate", f"--workdir={name}")
    assert_refused(done, "which cannot be read (File name too long); give a folder")


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(train(tmp_path / "file"), f"{tmp_path}/file, which is a file; give a folder")


def test_no_gin_file(tmp_path):
    done = commands.nest_dist("train", f"--workdir={tmp_path}")
    assert_refused(done, "--gin_file is not given", "runs/quickstart.gin")


@pytest.mark.slow
def test_an_unknown_gin_file_lists_the_close_ones(tmp_path):
    done = commands.nest_dist("train", "--gin_file=runs/quikstart.gin", f"--workdir={tmp_path}")
    assert_refused(done, "'runs/quikstart.gin'", "did you mean runs/quickstart.gin?")


@pytest.mark.slow
def test_a_gin_file_whose_name_is_too_long(tmp_path):
    done = commands.nest_dist("train", f"--gin_file={'x' * 300}", f"--workdir={tmp_path}")
    assert_refused(done, "--gin_file is 'xxx", "cannot be read (File name too long); give another")


@pytest.mark.slow
def test_a_gin_file_like_none_lists_the_shipped_runs(tmp_path):
    done = commands.nest_dist("train", "--gin_file=zzz", f"--workdir={tmp_path}")
    assert_refused(done, "'zzz'", "shipped runs are", "runs/quickstart.gin")


@pytest.mark.slow
def test_a_gin_file_that_is_no_text(tmp_path):
    (tmp_path / "x.gin").write_bytes(b"\xff\x00")
    done = commands.nest_dist("train", f"--gin_file={tmp_path}/x.gin", f"--workdir={tmp_path}")
    assert_refused(done, f"'{tmp_path}/x.gin'", "no text", "give a gin file")


def test_a_misspelt_flag(tmp_path):
    done = commands.nest_dist("train", f"--workdri={tmp_path}")
    assert_refused(done, "Unknown command line flag 'workdri'", "workdir")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("learning_rate", "as in AdamW.peak_learning_rate or Cosine.final_learning_rate or "),
        ("seed", "as in Run.seed"),
        ("global_batch_size", "as in Run.global_batch = VALUE."),
        ("zzz", "to --gin_bindings, NAME.FIELD = VALUE."),
    ],
)
def test_a_binding_given_as_a_flag_is_named(flag, meant, monkeypatch):
    line = program.refuses(monkeypatch, "train", f"--{flag}=3")
    assert f"train has no flag --{flag}; a value of the run is given to --gin_bindings, " in line
    assert meant in line
    assert line.endswith(".")


def test_a_flag_of_the_wrong_type():
    assert_refused(commands.nest_dist("train", "--process_id=two"), "process_id", "two")


def test_an_argument_that_is_no_flag():
    done = commands.nest_dist("train", "runs/quickstart.gin")
    assert_refused(done, "'runs/quickstart.gin'", "write --flag=VALUE")


@pytest.mark.slow
def test_the_exit_code_is_the_same_where_nothing_can_be_written():
    with open("/dev/full", "w") as full:
        done = commands.nest_dist("train", output=full)
    assert done.returncode == 2


def test_a_working_folder_that_is_gone(tmp_path):
    gone = [*("sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', tmp_path / "gone")]
    done = harness.run([*gone, *commands.NEST_DIST, "--version"])
    assert (done.returncode, done.stderr) == (0, "")
    done = harness.run([*gone, *commands.NEST_DIST, "config", "a.gin"])
    assert_refused(done, "the working folder of this program is gone; change to one that is there.")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("predict", "a.png", "--checkpoint="), "predict got --checkpoint without a text; give"),
        (("predict", "", "--checkpoint=a"), "predict got an argument without a text; give one, or"),
        (("train", "--workdir="), "train got --workdir without a text; give one, or leave it out."),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set(arguments, what, monkeypatch):
    assert what in program.refuses(monkeypatch, *arguments)


def test_a_misspelt_command():
    assert_refused(commands.nest_dist("trian"), "'trian'", "did you mean train?")


@pytest.mark.parametrize(
    ("binding", "parts"),
    [
        (
            "AdamW.peak_learning_rat = 1.0",
            ("'peak_learning_rat'", "did you mean peak_learning_rate"),
        ),
        ("AdamV.beta_1 = 0.9", ("no 'AdamV'", "AdamW")),
        ("Step.optimizer = @AdamV()", ("no 'AdamV'", "AdamW")),
        ("NesT.dim = @NesT()", ("a value refers to itself",)),
        ("Run.model = %modle", ("macro %modle has no value", "known are")),
        ("num_clases = 10", ("macro num_clases", "nothing used it", "did you mean num_classes?")),
        ("Flip.probability = 0.5", ("Flip.probability is set and nothing used it", "remove it")),
        ("Run.num_epochs = 'many'", ("Run.num_epochs is 'many', which is no length", "float")),
        ("Run.num_epochs = '5%'", ("Run.num_epochs is '5%', which is no length", "'500 steps'.")),
        ("Run.num_epochs = True", ("Run.num_epochs is True, of type bool", "float")),
        ("Run.global_batch = 32.5", ("Run.global_batch is 32.5, of type float", "int")),
        ("Run.num_epochs = many", ("gin cannot read 'Run.num_epochs = many'", "quotes")),
        ("NonFinite.policy = skip", ("text: NonFinite.policy = 'skip'.",)),
        ("idx_folder = ../my data/x", ("text: idx_folder = '../my data/x'.",)),
        ("NonFinite.policy = 'skp'", ("policy is 'skp'; give 'stop' or 'skip' or 'rewind'.",)),
        ("NesT.block_repeats = (1, 1", ("gin cannot read the end of a value; close each br",)),
        ("Run.num_epochs = -1", ("Run.num_epochs is -1; it must be above 0",)),
        ("Run.global_batch = 0", ("Run.global_batch is 0; it must be at least 1",)),
        (
            "Classification.label_smoothing = 1.0",
            ("Classification.label_smoothing is 1.0; it must be in [0, 1)",),
        ),
        ("Run.seed = -1", ("Run.seed is -1; it must be in [0, 4294967295]",)),
        ("Run.model = @NesT", ("Run.model is", "@NesT()")),
        ("AdamW.beta_2 = 1", ("AdamW.beta_2 is 1; it must be in [0, 1)",)),
        ("Cosine.final_learning_rate = -1", ("Cosine.final_learning_rate is -1; it must be at",)),
        ("MeshShape.data = 0", ("MeshShape.data is 0; it must be at least 1, or -1",)),
        ("MeshShape.fsdp = -1", ("-1 for data and fsdp; at most one may",)),
        (
            "Normalize.mean = (0.1, 0.2)",
            ("Normalize.mean has 2 channels", "give one number a channel"),
        ),
        ("Normalize.std = (0,)", ("Normalize.std is 0", "above 0")),
        ("Digits.image_side = 20", ("Digits.image_side is 20", "16 or 24")),
        (
            "Digits.split = 'test'",
            ("because train/Digits.split and evaluate/Digits.split have values of their own; bin",),
        ),
        ("TrainingData.threads = 123456789", ("threads is 123456789; it must be in [1, 1024]",)),
        ("include '/nowhere/x.gin'", ("'/nowhere/x.gin' is not there", "known are data/array_r")),
        (
            "Run.evaluations = @Evaluation()",
            ("is @Evaluation(), of type Evaluation; give a value of type tuple[",),
        ),
        ("Run.seed = @NesT()", ("Run.seed is @NesT(), of type NesT; give a value of type int.",)),
        ("Run.global_batch = '" + "x" * 999 + "'", ("xxx..., of type str; give a value of ty",)),
        ("include 'data/digit.gin'", ("'data/digit.gin' is not there", "did you mean")),
    ],
)
def test_a_bad_binding_is_named(binding, parts):
    with pytest.raises(failures.BadInput) as refused:
        runs.load(["runs/quickstart.gin"], [*commands.TINY, binding])
    for part in parts:
        assert part in failures.first_line(refused.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("raise GeneratorExit('a')", "a module that gin imports raises GeneratorExit (a); correct"),
        ("def (", "mine_0.py is no Python in line 1 (invalid syntax); correct it."),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(text, part, tmp_path, monkeypatch):
    (tmp_path / "mine_0.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(failures.BadInput) as refused:
        runs.load(["runs/quickstart.gin"], ["import mine_0"])
    assert part in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_binding_may_hold_bytes_that_are_no_utf_8(tmp_path, monkeypatch):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    pathlib.Path(folder).mkdir()
    bindings = ("include 'data/image_folder.gin'", f"data_folder = '{folder}'")
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    line = program.refuses(
        monkeypatch, "inspect-data", *commands.run_flags(), *flags, f"--output={tmp_path / 'out'}"
    )
    assert f"{folder}/train is no folder" in line


def test_a_bad_binding_ends_the_command(tmp_path):
    done = train(tmp_path, "Run.num_epoch = 3")
    assert_refused(done, "'num_epoch'", "did you mean num_epochs")
    assert not (tmp_path / "checkpoints").exists()


def test_missing_values_are_named_at_once(tmp_path):
    gin_file = tmp_path / "my.gin"
    gin_file.write_text("Run.num_epochs = 1\n")
    done = commands.nest_dist("train", f"--gin_file={gin_file}", f"--workdir={tmp_path}")
    assert_refused(
        done,
        " values are missing: ",
        "NesT.dim (model/cifar_nest_base.gin, ",
        "Run.global_batch (recipe/",
        "TrainingData.transforms (",
        "include one of the shipped files in brackets, or bind each",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "binding", "parts"),
    [
        (4, "Run.global_batch = 30", ("Run.global_batch is 30", "mesh's 4 batch shards", "32")),
        (2, "MeshShape.data = 3", ("MeshShape data=3 does not", "2 devices", "set one to -1")),
        (4, "MeshShape.rows = 4", ("MeshShape.rows is 4", "first level (2): set it to 1, 2, or")),
        (1, "num_classes = 11", ("the data has 10 classes", "NesT.num_classes is 11", "10")),
        (1, "PaddedCrop.side = 24", ("[24, 24, 1]", "NesT takes uint8 [16, 16, 1]", "change")),
        (1, "Run.global_batch = 2000", ("1438 examples", "batch of 2000", "lower")),
        (1, "Cosine.warmup_epochs = 30", ("Cosine.warmup_epochs is 30", "lower it")),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_compiling(devices, binding, parts, tmp_path):
    done = train(tmp_path, binding, devices=devices)
    assert_refused(done, *parts)
    assert "compil" not in done.stdout


def test_a_port_in_use(tmp_path):
    port = ports.free()
    with socket.create_server(("", port)):
        peers = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0")
        done = commands.nest_dist("train", *commands.tiny_flags(tmp_path), *peers)
    assert_refused(
        done, f"process 0 needs ports {port - 1} and {port} of this host", "choose others"
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu", "no_such"])
def test_a_platform_that_cannot_be_started(platform, tmp_path):
    environment = {**harness.environment(), "JAX_PLATFORMS": platform}
    train = [*commands.NEST_DIST, "train", *commands.tiny_flags(tmp_path)]
    done = harness.run(train, environment=environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    *_, line = done.stderr.splitlines()  # libtpu has its own to say before
    assert line.startswith(f"nest-dist: JAX_PLATFORMS is '{platform}', and JAX cannot start it (")
    assert line.endswith("choose another.")


def test_a_home_of_nobody():
    done = commands.nest_dist("train", *commands.tiny_flags("~nosuchuser/run"))
    assert_refused(done, "a path begins with ~ and the name of no user")


@pytest.mark.slow
def test_a_module_in_the_working_folder_is_imported_by_both_programs(tmp_path):
    (tmp_path / "mine.py").write_text("import sys; sys.exit(0)")
    program_file = tmp_path / "bin" / "nest-dist"  # as pip makes it
    program_file.parent.mkdir()
    program_file.write_text("from nest_dist.__main__ import main; main()")
    environment = harness.environment(PYTHONPATH=harness.module_path())
    flags = ["inspect-data", *commands.run_flags(), "--gin_bindings=import mine", "--output=x"]
    for start in ([program_file], ["-m", "nest_dist"]):
        done = harness.python(*start, *flags, environment=environment, folder=tmp_path)
        assert_refused(done, "a module that gin imports raises SystemExit (0)")


@pytest.mark.slow
def test_soft_limits_of_open_files_are_raised(tmp_path):
    said = harness.run(
        [
            *("sh", "-c", 'ulimit -Sn 64 && exec "$@"', "-", *commands.NEST_DIST, "train"),
            *commands.tiny_flags(tmp_path, "Run.num_epochs = 0.2", *commands.ONE_LEVEL),
        ],
        environment=harness.environment(),
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peers", "parts"),
    [
        (("--num_processes=2",), ("--coordinator is None", "give all three")),
        (
            ("--coordinator=here", "--num_processes=2", "--process_id=0"),
            ("--coordinator is 'here'", "HOST:PORT"),
        ),
        (
            ("--coordinator=localhost:1234", "--num_processes=2", "--process_id=2"),
            ("--process_id is 2", "[0, 1]"),
        ),
    ],
)
def test_peers_that_make_no_sense(peers, parts, tmp_path):
    done = commands.nest_dist("train", *commands.tiny_flags(tmp_path), *peers)
    assert_refused(done, *parts)


def test_help_lists_commands_and_flags():
    overview = commands.nest_dist("--help")
    assert overview.returncode == 0
    assert "train " in overview.stdout
    assert "evaluate " in overview.stdout
    assert commands.nest_dist().returncode == 2


@pytest.mark.parametrize("asked", ["--help", "-help", "-h"])
@pytest.mark.parametrize("name", table.COMMANDS)
def test_help_of_a_command_tells_its_arguments_and_all_its_flags(name, asked):
    command = table.COMMANDS[name]
    first, *others = program.succeeds(name, asked).splitlines()
    usage = f"{name} {command.arguments}".strip()
    assert first == f"nest-dist {usage}: {command.summary}"
    assert [line.split()[0] for line in others] == [f"--{flag}" for flag in command.flags]
