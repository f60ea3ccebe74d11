"""What a run does not use is not loaded: a start costs what it needs."""

from support import commands, harness

UNUSED = (
    *("wandb", "mlflow", "matplotlib", "huggingface_hub", "hf_xet", "onnx", "torch", "timm"),
    *("pyarrow", "pandas", "sklearn", "gcsfs"),
)
STUB = "open(__file__ + '.used', 'w').close()\n"
BINDINGS = (
    *commands.ONE_LEVEL,
    "Run.num_epochs = '2 steps'",
    "Cosine.warmup_epochs = '1 steps'",
    "Cadence.save_every_epochs = '2 steps'",
    "Evaluation.every_epochs = '2 steps'",
)


def test_training_and_evaluating_load_no_library_of_other_commands(tmp_path):
    (stubs := tmp_path / "stubs").mkdir()
    for name in UNUSED:
        (stubs / f"{name}.py").write_text(STUB)
    environment = harness.environment(PYTHONPATH=harness.module_path(stubs))
    workdir = tmp_path / "run"
    for arguments in (
        ("train", *commands.tiny_flags(workdir, *BINDINGS)),
        ("evaluate", f"--workdir={workdir}"),
    ):
        command = [*commands.NEST_DIST, *arguments]
        harness.run(command, environment=environment, succeeds=True)
    assert not list(stubs.glob("*.used"))
    harness.python("-c", "import pyarrow", environment=environment, succeeds=True)
    assert list(stubs.glob("*.used")) == [stubs / "pyarrow.py.used"]
