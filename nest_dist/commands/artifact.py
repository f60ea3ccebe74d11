"""A compiled training step in a folder, and all that it was compiled from."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import pickle
from collections.abc import Mapping

import jax
from jax.experimental import serialize_executable

from nest_dist.base import failures
from nest_dist.commands import compilation, preflight, recorded, wiring

STEP = "step.bin"
MANIFEST = "manifest.json"
DIGEST = "digest of the step"

# The fields of `Run` that the training step depends on; the rest goes on around it.
FIELDS = (
    *("model", "pixels", "optimizer", "mesh", "rules", "num_epochs", "global_batch"),
    *("color_jitter", "random_erasing", "mixing", "label_smoothing", "microbatches"),
    *("ema_decay", "seed", "histograms_every_steps", "not_finite"),
    *("reproducible_reduction", "reduction_shards"),
)
# What changes the compiler, and JAX's numbers, from outside of the configuration.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)


def keep(folder: pathlib.Path, compiled: jax.stages.Compiled, made_from: Mapping[str, str]) -> None:
    """Writes a compiled step and its manifest."""
    content = pickle.dumps(serialize_executable.serialize(compiled))
    manifest = {**made_from, DIGEST: _digest(content)}
    (folder / STEP).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def find(name: str, wired: wiring.Wiring, text: str) -> pathlib.Path:
    """The folder of a compiled step, checked to be the one that would be compiled here.

    Args:
        name: as given by --compiled.
        wired: the run.
        text: its operative configuration.
    Raises:
        BadInput: naming the first key that differs.
    """
    folder, here = pathlib.Path(name).expanduser().absolute(), made_from(wired, text)
    try:
        there = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        intact = there.pop(DIGEST) == _digest((folder / STEP).read_bytes())
    except (OSError, ValueError, KeyError):
        raise failures.BadInput(
            f"--compiled is {folder}, which has no readable {MANIFEST}; give the --output of "
            "`nest-dist rehearse --keep`."
        ) from None
    if not intact:
        raise failures.BadInput(
            f"{folder / STEP} is not what was written there; rehearse again with --keep."
        )
    for key in [*here, *(there.keys() - here.keys())]:
        if here.get(key) != there.get(key):
            raise failures.BadInput(
                f"{key} is {here.get(key)}, the step in {folder} was compiled with "
                f"{there.get(key)}; set it back, rehearse again with --keep, or leave out "
                "--compiled."
            )
    return folder


def load(folder: pathlib.Path, wired: wiring.Wiring) -> jax.stages.Compiled:
    """The step that `keep` wrote, on the devices of this run.

    It is a program: who can write the folder decides what is run.
    """
    content, taken, given = pickle.loads((folder / STEP).read_bytes())
    devices = list(wired.layout.mesh.devices.flat)
    return serialize_executable.deserialize_and_load(
        content, taken, given, devices[0].client, devices
    )


def made_from(wired: wiring.Wiring, text: str) -> dict[str, str]:
    """All that a compiled training step depends on, by the name under which one would change it.

    Args:
        wired: the run, on the mesh of the devices that it is compiled for.
        text: its operative configuration.
    """
    devices = list(wired.layout.mesh.devices.flat)
    tpu = devices[0].platform == "tpu"
    reached = recorded.Recorded(text).reached("Run")
    return {
        "version of jax": jax.__version__,
        "version of jaxlib": importlib.metadata.version("jaxlib"),
        "version of the compiler": _compiler() if tpu else compilation.machine(),
        "code of nest_dist": preflight.code(),
        "kind of device": devices[0].device_kind,
        "number of devices": str(len(devices)),
        **{key: value for field in FIELDS for key, value in reached.get(field, {}).items()},
        "number of training examples": str(len(wired.training_source)),
        "mesh": " x ".join(f"{name}={size}" for name, size in wired.layout.mesh.shape.items()),
        "order of devices": " ".join(str(device.id) for device in devices),
        **{name: os.environ.get(name, "") for name in VARIABLES},
        **{name: str(jax.config.values[name]) for name in SETTINGS},
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _compiler() -> str:
    return f"libtpu {importlib.metadata.version('libtpu')}"
