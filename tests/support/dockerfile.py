"""`launch/Dockerfile` without a daemon: its steps, in a folder that stands for the image."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

from support import harness

PATH = harness.TOP / "launch" / "Dockerfile"


@dataclasses.dataclass
class Image:
    """What building gives.

    Attributes:
        root: the folder that stands for /.
        base: the image that it is built on.
        user: that runs it.
        variables: of its environment.
        entrypoint: the words of its command.
    """

    root: pathlib.Path
    base: str = ""
    user: str = "root"
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    entrypoint: list[str] = dataclasses.field(default_factory=list)


def steps() -> list[tuple[str, str]]:
    """Each instruction with its arguments."""
    lines = [line for line in PATH.read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def build(root: pathlib.Path, context: pathlib.Path, programs: str, **arguments: str) -> Image:
    """Takes every step; a step that fails, and an instruction that is not known, fails the test.

    Args:
        root: empty folder.
        context: the folder that is built.
        programs: PATH of the steps.
        arguments: of --build-arg.
    """
    image = Image(root)
    values, folder = {}, root
    environment = {"PATH": programs, "HOME": str(root), "PREFIX": str(root / "opt/nest_dist")}
    inherited = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for word, rest in steps():
        match word:
            case "FROM":
                image.base = rest
            case "ARG":
                name, _, default = rest.partition("=")
                values[name] = arguments.get(name, default)
            case "WORKDIR":
                folder = root / rest.lstrip("/")
                folder.mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = rest.split()
                for source in sources:
                    if (context / source).is_dir():
                        shutil.copytree(context / source, folder / target)
                    else:
                        shutil.copy(context / source, folder / target)
            case "RUN":
                done = harness.run(
                    rest, folder=folder, environment={**inherited, **environment, **values}
                )
                assert done.returncode == 0, done.stdout + done.stderr
            case "ENV":
                name, _, value = rest.partition("=")
                image.variables[name] = value
            case "USER":
                image.user = rest
            case "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            case _:
                raise AssertionError(f"{word} is not known here")
    return image


def copied() -> set[str]:
    """What is copied of the context."""
    sources = (rest.split()[:-1] for word, rest in steps() if word == "COPY")
    return {re.sub(r"/$", "", source) for each in sources for source in each}
