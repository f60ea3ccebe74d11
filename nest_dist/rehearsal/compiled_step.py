"""Compiles a training step, and keeps it in a folder with a manifest of its dependencies."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import pickle
import re
import time
from collections.abc import Mapping

import jax
from jax.experimental import serialize_executable

from nest_dist.base import failures
from nest_dist.config import run_json
from nest_dist.experiment import compile_cache, preflight
from nest_dist.experiment import experiment as experiments
from nest_dist.model import on_gpu
from nest_dist.rehearsal import bundles, kernels

STEP = "step.bin"
MANIFEST = "manifest.json"
DIGEST = "digest of the step"

# Settings outside the configuration that change the compiler, or JAX's numbers.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)


def compiled(
    experiment: experiments.Experiment, options: Mapping[str, bool] | None = None
) -> tuple[jax.stages.Compiled, kernels.Grids, float]:
    """The step that `train` would run, the grids of its kernels, and the seconds that it took.

    Args:
        options: of XLA, besides those of `train`.
    Raises:
        BadInput: if the compiler finds that it needs more memory than a device has.
    """
    traced = experiment.traced_train_step()
    bundles.forget()
    started = time.perf_counter()
    try:
        step = traced.lower().compile(None if options is None else dict(options))
        return step, kernels.grids(traced), time.perf_counter() - started
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # As "(240.00G) exceeds available HBM (15.75G)" or "Used 19.5G of 15.75G hbm".
        sizes = re.findall(r"[\d.]+[KMGT]\b", failures.first_line(error))
        needs = f"{sizes[0]}B, a device has {sizes[1]}B" if len(sizes) > 1 else "more than it has"
        raise failures.BadInput(
            f"Run.global_batch is {experiment.run.global_batch}: the step needs memory of {needs}; "
            "lower it, raise Step.microbatches, set NesT.remat, or see what --fit finds."
        ) from None


def keep(folder: pathlib.Path, compiled: jax.stages.Compiled, made_from: Mapping[str, str]) -> None:
    """Writes a compiled step and its manifest."""
    content = pickle.dumps(serialize_executable.serialize(compiled))
    manifest = {**made_from, DIGEST: _digest(content)}
    (folder / STEP).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def find(name: str, experiment: experiments.Experiment) -> pathlib.Path:
    """The folder that --compiled names, checked to hold the step of this run.

    Raises:
        BadInput: naming the first key that differs.
    """
    folder, current = pathlib.Path(name).expanduser().absolute(), made_from(experiment)
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        intact = stored.pop(DIGEST) == _digest((folder / STEP).read_bytes())
    except (OSError, ValueError, KeyError):
        raise failures.BadInput(
            f"--compiled is {folder}, which has no readable {MANIFEST}; give the --output of "
            "`nest-dist rehearse --keep`."
        ) from None
    if not intact:
        raise failures.BadInput(
            f"{folder / STEP} is not what was written there; rehearse again with --keep."
        )
    for key in [*current, *(stored.keys() - current.keys())]:
        if current.get(key) != stored.get(key):
            raise failures.BadInput(
                f"{key} is {current.get(key)}, the step in {folder} was compiled with "
                f"{stored.get(key)}; set it back, rehearse again with --keep, or leave out "
                "--compiled."
            )
    return folder


def load(folder: pathlib.Path, experiment: experiments.Experiment) -> jax.stages.Compiled:
    """The step that `keep` wrote, on the devices of this run.

    It is a program: whoever can write the folder decides what runs.
    """
    content, in_tree, out_tree = pickle.loads((folder / STEP).read_bytes())
    devices = list(experiment.sharding.mesh.devices.flat)
    return serialize_executable.deserialize_and_load(
        content, in_tree, out_tree, devices[0].client, devices
    )


def made_from(experiment: experiments.Experiment) -> dict[str, str]:
    """The dependencies of a compiled training step, by the names under which one changes them."""
    devices = list(experiment.sharding.mesh.devices.flat)
    if devices[0].platform == "tpu":
        compiler = f"libtpu {importlib.metadata.version('libtpu')}"
    elif devices[0].platform in on_gpu.PLATFORMS:
        compiler = devices[0].client.platform_version
    else:
        compiler = compile_cache.machine()
    settings = run_json.flatten(experiment.document).values()
    return {
        "version of jax": jax.__version__,
        "version of jaxlib": importlib.metadata.version("jaxlib"),
        "version of the compiler": compiler,
        "code of nest_dist": preflight.code(),
        "kind of device": devices[0].device_kind,
        "number of devices": str(len(devices)),
        **{it.binding: it.text for it in settings if it.meaning.in_step},
        **_facts(experiment),
        "number of training examples": str(len(experiment.training_source)),
        "mesh": " x ".join(
            f"{name}={size}" for name, size in experiment.sharding.mesh.shape.items()
        ),
        "order of devices": " ".join(str(device.id) for device in devices),
        **{name: os.environ.get(name, "") for name in VARIABLES},
        **{name: str(jax.config.values[name]) for name in SETTINGS},
    }


def _facts(experiment: experiments.Experiment) -> dict[str, str]:
    """What the step has from weights and data."""
    facts = {}
    if (taught := experiment.step.teacher) is not None and experiment.teacher is not None:
        described = repr((experiment.teacher.weights.document, taught.columns))
        facts["teacher of Distillation"] = _digest(described.encode())
    if weights := getattr(experiment.step.objective, "class_weights", None):
        facts["class weights"] = _digest(repr(weights).encode())
    return facts


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
