"""What all processes must have in common, compared before anything takes long."""

import collections
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import secrets
from collections.abc import Mapping

import jax

import nest_dist
from nest_dist.base import failures
from nest_dist.commands import changes, wiring, workdirs
from nest_dist.parallel import hosts

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint")
CONFIGURATION = "configuration"


def versions() -> dict[str, str]:
    """Of Python and of the packages on which the numbers of a run depend."""
    return {
        "nest_dist": nest_dist.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def same_program(text: str, workdir: workdirs.Folder) -> None:
    """Compares configuration, packages, code, devices and workdir of all processes.

    Args:
        text: the operative configuration.
        workdir: of the run.
    Raises:
        BadInput: on every process, naming the odd one and what differs.
    """
    _require_same(
        "program",
        {
            CONFIGURATION: text,
            **{f"version of {name}": version for name, version in versions().items()},
            "code of nest_dist": code(),
            "kind of device": jax.devices()[0].device_kind,
            "number of local devices": str(jax.local_device_count()),
        },
        "start all processes with the same flags, packages and devices",
    )
    _require_shared(workdir)


def same_data(wired: wiring.Wiring) -> None:
    """Compares the data sets of all processes.

    Raises:
        BadInput: on every process, naming the odd one and what differs.
    """
    _require_same(
        "data",
        {
            "fingerprint of the training data": wired.training_source.fingerprint,
            "fingerprint of the evaluation data": wired.evaluation_source.fingerprint,
        },
        "give all processes the same data",
    )


def _require_same(name: str, facts: Mapping[str, str], remedy: str) -> None:
    told = [json.loads(text) for text in hosts.gather(f"preflight/{name}", json.dumps(facts))]
    for fact in facts:
        values = [each[fact] for each in told]
        (usual, _), *others = collections.Counter(values).most_common()
        if not others:
            continue
        odd = next(index for index, value in enumerate(values) if value != usual)
        other = values.index(usual)
        what, here, there = fact, values[odd], usual
        if fact == CONFIGURATION:
            change = changes.between(usual, values[odd])[0]
            what, here, there = change.key, str(change.after), str(change.before)
        raise failures.BadInput(
            f"{what} is {here} on process {odd}, {there} on process {other}; {remedy}."
        )


def _require_shared(workdir: workdirs.Folder) -> None:
    """Checks that all processes see the same folder: a checkpoint is written by all of them."""

    def leave_mark() -> str:
        mark = workdir / f".seen-by-all-{secrets.token_hex(8)}"
        mark.write_text("")
        return mark.name

    mark = workdir / hosts.told(leave_mark)
    seen = hosts.gather("preflight/workdir", str(mark.exists()))
    if hosts.lead():
        mark.unlink()
    if "False" in seen:
        raise failures.BadInput(
            f"--workdir is {workdir}, where process {seen.index('False')} does not see what "
            "process 0 wrote; give a folder on a storage that all hosts share."
        )


def code() -> str:
    """A digest of this package's own files."""
    digest = hashlib.sha256()
    package = pathlib.Path(nest_dist.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
