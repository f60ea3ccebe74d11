"""Compares configuration, program, data and workdir of all processes, before long work begins."""

import collections
import functools
import hashlib
import importlib.metadata
import itertools
import pathlib
import platform
import secrets
from collections.abc import Mapping, Sequence

import jax

import nest_dist
from nest_dist.base import failures
from nest_dist.cluster import processes
from nest_dist.config import run_json
from nest_dist.config import workdir as workdirs
from nest_dist.experiment import experiment as experiments
from nest_dist.experiment import run as runs

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers of a run depend on."""
    return {
        "nest_dist": nest_dist.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def same_program(run: runs.Run, workdir: workdirs.Folder) -> None:
    """Compares configuration, packages, code, devices and workdir as `require_same` does."""
    settings = run_json.flatten(run_json.dump(run)).values()
    facts = {
        **{f"version of {name}": version for name, version in versions().items()},
        "code of nest_dist": code(),
        "kind of device": jax.devices()[0].device_kind,
        "number of local devices": str(jax.local_device_count()),
        **{setting.binding: setting.text for setting in settings},
    }
    require_same("program", facts, "start all processes with the same flags, packages and devices")
    _require_shared(workdir)


def same_data(experiment: experiments.Experiment) -> None:
    """Compares the data sets as `require_same` does."""
    facts = {"fingerprint of the training data": experiment.training_source.fingerprint}
    for opened in experiment.evaluations:
        name = f"evaluation {opened.config.name}".strip()
        facts[f"fingerprint of the {name} data"] = opened.source.fingerprint
        if opened.reference is not None:
            facts[f"fingerprint of the {name} reference"] = opened.reference.fingerprint
    require_same("data", facts, "give all processes the same data")
    if experiment.teacher is not None:
        digest = experiment.teacher.weights.digest
        facts = {"digest of Distillation.teacher": digest}
        require_same("teacher", facts, "give all processes the same weights")


def require_same(topic: str, facts: Mapping[str, str], remedy: str) -> None:
    """Compares facts of all processes; `topic` is unique in the run.

    Raises:
        BadInput: on every process, naming the process and the value that differ.
    """
    if verdict := processes.decide(f"preflight/{topic}", facts, functools.partial(_odd, remedy)):
        raise failures.BadInput(verdict)


def _odd(remedy: str, by_process: Sequence[Mapping[str, str]]) -> str:
    """Names the first fact that differs from what most processes have; empty without one."""
    for fact in dict.fromkeys(itertools.chain(*by_process)):
        values = [of_process.get(fact) for of_process in by_process]
        usual, _ = collections.Counter(values).most_common(1)[0]
        odd = next((index for index, value in enumerate(values) if value != usual), None)
        if odd is not None:
            return (
                f"{fact} is {values[odd]} on process {odd}, {usual} on process "
                f"{values.index(usual)}; {remedy}."
            )
    return ""


def _require_shared(workdir: workdirs.Folder) -> None:
    """Checks that all processes see the same folder: a checkpoint is written by all of them."""

    def leave_mark() -> str:
        mark = workdir / f".seen-by-all-{secrets.token_hex(8)}"
        mark.write_text("")
        return mark.name

    mark = workdir / processes.broadcast(leave_mark)
    blind = processes.decide("preflight/workdir", mark.exists(), _first_false)
    if processes.is_primary():
        mark.unlink()
    if blind is not None:
        raise failures.BadInput(
            f"--workdir is {workdir}, where process {blind} does not see what process 0 wrote; "
            "give a folder on a storage that all hosts share."
        )


def _first_false(values: Sequence[bool]) -> int | None:
    return values.index(False) if False in values else None


def code() -> str:
    """A digest of this package's own files."""
    digest = hashlib.sha256()
    package = pathlib.Path(nest_dist.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
