"""`nest-dist push`: the weights of a run, with a model card, on the Hub or in a folder."""

import re

from nest_dist.base import failures, hub, scratch
from nest_dist.commands import cli
from nest_dist.config import workdir as workdirs
from nest_dist.pretrained import push

# Identifiers of licences on the Hub, such as cc-by-nc-4.0.
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def run(options: cli.Options) -> None:
    """Writes the files of a repository, and publishes them if there is no `--output`."""
    if len(options.arguments) != 2:
        raise failures.BadInput(
            f"push got {len(options.arguments)} arguments; give two, WORKDIR and OWNER/NAME."
        )
    where, name = options.arguments
    hub.require_name(name)
    _require_license(options.license)
    workdir = workdirs.for_reading(where)
    if options.output:
        folder = push.new_folder(options.output)
        step = push.write(folder, workdir, options.step, name, options.license)
        print(f"{folder}: weights of step {step}, for a repository {name}")
        print(f"to load them: nest_dist.load({str(folder)!r})")
        return
    hub.require_token(name)
    scratch.remove_leftovers()
    made = scratch.Scratch()
    try:
        folder = made.folder / "repository"
        step = push.write(folder, workdir, options.step, name, options.license)
        address = hub.publish(name, folder, options.private, options.replace)
    finally:
        made.remove()
    print(f"{address}: weights of step {step}")
    print(f"to load them: nest_dist.load({hub.WEIGHTS + name!r})")


def _require_license(name: str | None) -> None:
    """Nobody may use weights of which nothing is said, and nobody else can say it."""
    if name is None:
        raise failures.BadInput(
            "--license is not given; give the one under which others may use the weights, as the "
            "Hub writes it: apache-2.0, mit, cc-by-4.0, or other."
        )
    if not _LICENSE.fullmatch(name):
        raise failures.BadInput(
            f"--license is {name}; give the Hub's identifier, in small letters without spaces: "
            "apache-2.0, mit, cc-by-4.0, or other."
        )
