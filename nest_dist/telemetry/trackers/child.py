"""The process that speaks with a tracker: `python -m nest_dist.telemetry.trackers.child`.

It reads a line of JSON for each record from stdin, and writes a line of JSON to stdout for what
went wrong. The library of the tracker lives here alone: what it imports, prints, retries, or
leaves to the exit of its process touches no run.
"""

import base64
import json
import os
import pathlib
import sys
import threading
import typing

from nest_dist.base import failures
from nest_dist.config import run_json
from nest_dist.telemetry import trackers

# After the end of the run's own process, in which the rest is sent.
ORPHAN_SECONDS = 30.0


def main() -> None:
    """Serves one attempt of a run."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply

    def reply(**fields: object) -> None:
        replies.write(json.dumps(fields) + "\n")

    records = sys.stdin.buffer
    first = json.loads(records.readline())
    lost, complete, ended = 0, False, False
    try:
        tracker: trackers.Tracker = run_json.load(first["tracker"])
        identity = trackers.Identity(first["key"], first["name"], pathlib.Path(first["folder"]))
        log = tracker.open(identity, first["config"])
        reply(ready=True)
        for line in records:
            record = json.loads(line)
            if "complete" in record:
                complete, ended = record["complete"], True
                break
            try:
                _record(log, record)
            except Exception as error:
                lost += 1
                if lost == 1:
                    reply(failed=_cause(error))
            reply(taken=1)
        if not ended:
            orphaned = threading.Timer(ORPHAN_SECONDS, os._exit, (1,))
            orphaned.daemon = True
            orphaned.start()
        log.close(complete)
    except Exception as error:  # an error of the tracker may be of any class
        reply(failed=_cause(error))
        os._exit(1)  # without exit handlers, which would wait for what failed
    reply(lost=lost)


def _record(log: trackers.Log, record: dict[str, typing.Any]) -> None:
    if "scalars" in record:
        log.scalars(record["step"], record["scalars"])
    else:
        data = base64.b64decode(record["data"])
        log.picture(record["step"], record["picture"], data, record["ending"])


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {failures.first_line(error)}"


if __name__ == "__main__":
    main()
