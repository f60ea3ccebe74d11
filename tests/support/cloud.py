"""A cloud of TPUs for tests of the launcher: `fake_gcloud.py`, its state, its metadata server."""

import contextlib
import http.server
import json
import os
import pathlib
import sys
import threading

import psutil
from support import harness, ports

GCLOUD = pathlib.Path(__file__).with_name("fake_gcloud.py")
# The commands of README, in order.
EXPORTS = (
    "export PROJECT_ID=my-project ZONE=us-west4-a TPU_NAME=nest BUCKET=my-bucket",
    "export ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite",
)
PREPARE = (
    "gcloud auth login",
    "gcloud services enable tpu.googleapis.com --project=$PROJECT_ID",
    "gcloud storage buckets create gs://$BUCKET --project=$PROJECT_ID --location=us-west4",
)
RUN = (
    "bash launch/tpu_pod.sh run --queued -- --gin_file=runs/quickstart.gin "
    "--workdir=gs://$BUCKET/digits"
)
STATUS = "bash launch/tpu_pod.sh status"
LOGS = "bash launch/tpu_pod.sh logs --lines=5"
TENSORBOARD = "bash launch/tpu_pod.sh tensorboard"
STOP = "bash launch/tpu_pod.sh stop"
DELETE = "bash launch/tpu_pod.sh delete"
README = (*EXPORTS, *PREPARE, RUN, STATUS, LOGS, TENSORBOARD, STOP, DELETE)
ENVIRONMENT = dict(
    word.split("=") for line in EXPORTS for word in line.removeprefix("export ").split()
)
# In place of the 20 s and more that a real TPU is given.
QUICK = ("--poll_seconds=1", "--backoff_seconds=1")


class Cloud:
    """TPUs in a folder; workers, and all that was started on them, are gone when this closes.

    A v5litepod-16 has two workers here. `python` is what runs nest-dist on them. Where `hosts`, a
    `network.Hosts`, are given, the workers are there.
    """

    def __init__(self, folder, python, hosts=None):
        self.folder = folder
        machines = hosts.names if hosts else []
        here = hosts.gateway if hosts else "127.0.0.1"
        for name in ("bin", "nodes", "requests", "homes"):
            (folder / name).mkdir(parents=True)
        gcloud = folder / "bin" / "gcloud"
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {GCLOUD} "$@"\n')
        gcloud.chmod(0o755)
        self._metadata = http.server.ThreadingHTTPServer((here, 0), _Metadata)
        self._metadata.folder = folder
        self._metadata.addresses = hosts.addresses if hosts else []
        threading.Thread(target=self._metadata.serve_forever, args=(0.02,), daemon=True).start()
        port = ports.free()
        self.set(
            zones=[ENVIRONMENT["ZONE"]],
            accelerators={"v5litepod-16": 2, "v5litepod-8": 1},
            queue=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
            machines=machines,
            environment={
                "NEST_DIST_PYTHON": str(python),
                # The address of the server says who asks.
                "GCE_METADATA_IP": f"{here}:{self._metadata.server_port}/{{node}}/{{worker}}",
                "JAX_COORDINATOR_PORT": str(port),
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "1",
            },
        )

    def set(self, **changes):
        """Changes settings, such as the zones there are."""
        (self.folder / "settings.json").write_text(json.dumps({**self.settings(), **changes}))

    def settings(self):
        path = self.folder / "settings.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end_all()
        self._metadata.shutdown()
        self._metadata.server_close()

    def end_all(self):
        def none_left():
            family = self._family()
            for process, _ in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return not family

        harness.wait_until(none_left, "the end of all processes of the cloud")

    def environment(self, **changes):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {
            **os.environ,
            **ENVIRONMENT,
            "PATH": path,
            "FAKE_CLOUD": str(self.folder),
            **changes,
        }

    def start(self, *arguments, **changes):
        """Starts `launch/tpu_pod.sh`; what it starts on workers outlives it, until this closes."""
        words = ["bash", "launch/tpu_pod.sh", *arguments]
        return harness.Process(words, environment=self.environment(**changes))

    def pod(self, *arguments, **changes):
        """Runs `launch/tpu_pod.sh` to its end: exit status and output."""
        process = self.start(*arguments, **changes)
        return process.wait(), process.said()

    def calls(self):
        """The arguments of every call of gcloud."""
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def home(self, worker, node="nest"):
        return self.folder / "homes" / node / str(worker)

    def processes(self, worker=None):
        """All processes on the workers, or on `worker`, given as "NODE/NUMBER"."""
        return [
            process
            for process, place in self._family()
            if place is not None and worker in (None, place)
        ]

    def _family(self):
        """Every process of this cloud, the launchers and gcloud too, and the worker it is on."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            if environment.get("FAKE_CLOUD") == str(self.folder):
                found.append((process, environment.get("FAKE_CLOUD_WORKER")))
        return found

    def trainer(self, worker):
        """The process of nest-dist on a worker."""
        for process in self.processes(worker):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "nest_dist" in process.cmdline():
                    return process
        raise AssertionError(f"nothing trains on {worker}")

    def preempt(self, node="nest"):
        """Takes a node away, as Cloud TPU does with spot capacity."""
        path = self.folder / "nodes" / f"{node}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "state": "PREEMPTED"}))
        for process, place in self._family():
            if (place or "").startswith(f"{node}/"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        request = self.folder / "requests" / f"{node}.json"
        if request.exists():
            request.write_text(
                json.dumps({**json.loads(request.read_text()), "state": "SUSPENDED"})
            )


class _Metadata(http.server.BaseHTTPRequestHandler):
    """What the metadata server of a TPU VM says to JAX and to worker.sh: /NODE/WORKER/..."""

    def do_GET(self):
        node, worker, *_, key = self.path.strip("/").split("/")
        path = self.server.folder / "nodes" / f"{node}.json"
        workers = json.loads(path.read_text())["workers"]
        answer = {
            "agent-worker-number": worker,
            "worker-network-endpoints": ",".join(
                f"unknown:unknown:{address}"
                for address in self.server.addresses or ["127.0.0.1"] * workers
            ),
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n",
        }[key]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


def recorder(folder):
    """In place of a Python on the workers: notes what nest-dist would be given, and does as told.

    `arguments` in the worker's home holds the arguments, each ended by NUL. What is done then is
    bash code in FAKE_CLOUD/behaviour; nothing, where there is none.
    """
    return _program(
        folder / "recorder",
        f"""#!/usr/bin/env bash
[[ "$1 $2" == "-m nest_dist" ]] || exec {sys.executable} "$@"
printf '%s\\0' "${{@:3}}" >"$HOME/arguments"
echo "this is $FAKE_CLOUD_WORKER"
[[ ! -e $FAKE_CLOUD/behaviour ]] || source "$FAKE_CLOUD/behaviour"
""",
    )


def tpu_python(folder):
    """This Python, whose JAX believes to be on a TPU VM and finds its peers by the metadata."""
    return _program(
        folder / "tpu_python",
        f"""#!{sys.executable}
import os, runpy, sys
if sys.argv[1:3] != ["-m", "nest_dist"]:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
os.environ["JAX_FORCE_TPU_INIT"] = "1"
import jax
# Set where no chip is on the bus, and taken by JAX for the word that there is no metadata.
del os.environ["TPU_SKIP_MDS_QUERY"]
sys.path[0] = ""
sys.argv[1:3] = []
runpy.run_module("nest_dist", run_name="__main__", alter_sys=True)
""",
    )


def _program(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return path
