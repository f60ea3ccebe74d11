"""`python -m nest_dist` and `nest-dist`: holds signals back before anything else is imported."""

import contextlib
import os
import sys

from nest_dist.cluster import stop_signals


def main() -> None:
    """Runs one command; ends the process without waiting for threads that anyone has left."""
    stop_signals.hold_back()
    with contextlib.suppress(FileNotFoundError):  # of a working folder that is gone
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # as `python -m` does, for modules that gin files import
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # was closed; a file that we open must not take its place
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))
    from nest_dist.base import failures
    from nest_dist.commands import cli

    cli.main()
    failures.end_now(0)


if __name__ == "__main__":
    main()
