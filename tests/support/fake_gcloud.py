"""The part of gcloud that the launcher uses, with workers that are folders and processes here.

    fake_gcloud.py compute tpus tpu-vm create NAME --zone=ZONE ...

FAKE_CLOUD names the folder of the cloud: `settings.json` (see `cloud.Cloud`), `calls.jsonl` with
the arguments of every call, `nodes/NAME.json` and `requests/NAME.json` for what was created, and
`homes/NAME/N` for the home folder of each worker. Flags are those of `gcloud ... --help`; one that
gcloud does not have is refused. Commands sent to workers are really run.
"""

import argparse
import base64
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

WIDE = ["--project", "--format", "--quiet!", "--no-user-output-enabled!"]
CREATE = ["--zone", "--accelerator-type", "--spot!", "--network", "--labels"]
FLAGS = {
    ("auth", "login"): [],
    ("services", "enable"): ["name"],
    ("buckets", "create"): ["name", "--location"],
    ("tpu-vm", "create"): ["name", *CREATE, "--version"],
    ("tpu-vm", "list"): ["--zone"],
    ("tpu-vm", "delete"): ["name", "--zone"],
    ("tpu-vm", "ssh"): ["name", "--zone", "--worker", "--command", "--ssh-flag", "--dry-run!"],
    ("tpu-vm", "scp"): ["source", "target", "--zone", "--worker"],
    ("queued-resources", "create"): [
        *("name", *CREATE, "--runtime-version", "--node-id", "--node-count", "--node-prefix"),
        "--valid-until-duration",
    ],
    ("queued-resources", "list"): ["--zone"],
    ("queued-resources", "delete"): ["name", "--zone", "--force!"],
}
# What the launcher asks for, as functions of a node or a request.
FORMATS = {
    "value(name.basename(),state,networkEndpoints.len())": lambda node: (
        f"{node['name']}\t{node['state']}\t{node['workers']}"
    ),
    "value(name.basename(),state.state)": lambda request: f"{request['name']}\t{request['state']}",
}
CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
# The keys of workers that ssh has met, as `ssh-keygen` reads them.
KNOWN_HOSTS = CLOUD / "known_hosts"
CHANGED = """\
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
Offending key in {path}; remove with: ssh-keygen -f "{path}" -R "{alias}"
Host key verification failed."""


class Error(Exception):
    """What gcloud says on standard error before it ends with status 1."""


def main(arguments):
    with locked(), (CLOUD / "calls.jsonl").open("a") as calls:
        print(json.dumps(arguments), file=calls)
    # gcloud auth login, gcloud storage buckets create, gcloud compute tpus tpu-vm create, ...
    depth = {"auth": 2, "services": 2, "storage": 3, "compute": 4}[arguments[0]]
    group, verb = arguments[depth - 2 : depth]
    parser = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    for flag in [*WIDE, *FLAGS[group, verb]]:
        if flag.endswith("!"):
            parser.add_argument(flag[:-1], action="store_true")
        else:
            parser.add_argument(flag, **({"action": "append"} if flag == "--ssh-flag" else {}))
    options = parser.parse_args(arguments[depth:])
    try:
        if depth == 4 and options.zone not in settings()["zones"]:
            raise Error(
                f"PERMISSION_DENIED: Permission denied on 'locations/{options.zone}' "
                "(or it may not exist)."
            )
        status = globals()[f"{group}_{verb}".replace("-", "_")](options)
    except Error as error:
        print(f"ERROR: (gcloud.{'.'.join(arguments[:depth])}) {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


@contextlib.contextmanager
def locked():
    with (CLOUD / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def settings():
    return json.loads((CLOUD / "settings.json").read_text())


def load(kind, name):
    path = CLOUD / kind / f"{name}.json"
    if not path.exists():
        raise Error(f"NOT_FOUND: Resource '{name}' was not found")
    return json.loads(path.read_text())


def store(kind, thing):
    path = CLOUD / kind / f"{thing['name']}.json"
    path.with_suffix(".part").write_text(json.dumps(thing))
    path.with_suffix(".part").replace(path)


def listed(kind):
    return [load(kind, path.stem) for path in sorted((CLOUD / kind).glob("*.json"))]


def workers_of(accelerator_type):
    workers = settings()["accelerators"].get(accelerator_type)
    if workers is None:
        raise Error(f"INVALID_ARGUMENT: Accelerator type '{accelerator_type}' was not found.")
    return workers


def add_node(name, accelerator_type):
    workers = workers_of(accelerator_type)
    if (CLOUD / "nodes" / f"{name}.json").exists():
        raise Error(f"ALREADY_EXISTS: Resource '{name}' already exists")
    for worker in range(workers):
        (CLOUD / "homes" / name / str(worker)).mkdir(parents=True)
    kind = b"\0\0\0\x0bssh-ed25519\0\0\0 "
    keys = [base64.b64encode(kind + os.urandom(32)).decode() for _ in range(workers)]
    store("nodes", {"name": name, "state": "READY", "workers": workers, "keys": keys})


def remove_node(name):
    (CLOUD / "nodes" / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(CLOUD / "homes" / name, ignore_errors=True)


def auth_login(_options):
    return 0


def services_enable(options):
    assert (options.name, options.project) == ("tpu.googleapis.com", "my-project")


def buckets_create(options):
    """A bucket is a folder here: gs://NAME is FAKE_CLOUD/buckets/NAME."""
    (CLOUD / "buckets" / options.name.removeprefix("gs://")).mkdir(parents=True)


def tpu_vm_create(options):
    assert options.version
    add_node(options.name, options.accelerator_type)


def tpu_vm_list(options):
    for node in listed("nodes"):
        print(FORMATS[options.format](node))


def tpu_vm_delete(options):
    load("nodes", options.name)
    remove_node(options.name)


def queued_resources_create(options):
    assert options.runtime_version
    workers_of(options.accelerator_type)
    if (CLOUD / "requests" / f"{options.name}.json").exists():
        raise Error(f"ALREADY_EXISTS: Resource '{options.name}' already exists")
    nodes = [options.node_id]
    if options.node_count:
        prefix = options.node_prefix or options.name
        nodes = [f"{prefix}-{index}" for index in range(int(options.node_count))]
    request = {"name": options.name, "nodes": nodes, "looks": 0, "state": "ACCEPTED"}
    store("requests", {**request, "accelerator_type": options.accelerator_type})


def queued_resources_list(options):
    """Each look at a request is one step of its way, as `settings["queue"]` lays it down."""
    with locked():
        for request in listed("requests"):
            queue = settings()["queue"]
            if request["state"] not in ("ACTIVE", "SUSPENDED"):
                request["state"] = queue[min(request["looks"], len(queue) - 1)]
                request["looks"] += 1
                if request["state"] == "ACTIVE":
                    for node in request["nodes"]:
                        add_node(node, request["accelerator_type"])
                store("requests", request)
            print(FORMATS[options.format](request))


def queued_resources_delete(options):
    request = load("requests", options.name)
    left = [name for name in request["nodes"] if (CLOUD / "nodes" / f"{name}.json").exists()]
    if left and not options.force:
        raise Error("FAILED_PRECONDITION: the queued resource still has nodes")
    for node in request["nodes"]:
        remove_node(node)
    (CLOUD / "requests" / f"{options.name}.json").unlink()


def reached(name, worker):
    """The workers that a --worker flag means, if the node can be used."""
    node = load("nodes", name)
    if node["state"] in ("PREEMPTED", "TERMINATED"):
        raise Error(f'This TPU has terminal state "{node["state"]}", so it cannot be used anymore.')
    return range(node["workers"]) if worker == "all" else [int(worker or 0)]


def is_trusted(name, worker):
    """Whether ssh goes on: a worker is unknown, or has the key that it had before."""
    alias, line = f"tpu.{name}-{worker}", f"ssh-ed25519 {load('nodes', name)['keys'][worker]}"
    with locked():
        lines = KNOWN_HOSTS.read_text().splitlines() if KNOWN_HOSTS.exists() else []
        known = [known for known in lines if known.startswith(f"{alias} ")]
        if not known:
            with KNOWN_HOSTS.open("a") as file:
                print(alias, line, file=file)
    if known and known != [f"{alias} {line}"]:
        print(CHANGED.format(path=KNOWN_HOSTS, alias=alias), file=sys.stderr)
        return False
    return True


def tpu_vm_scp(options):
    name, _, path = options.target.partition(":")
    for worker in reached(name, options.worker):
        if not is_trusted(name, worker):
            raise Error(f"worker {worker}: [scp] exited with return code [255].")
        shutil.copy(options.source, CLOUD / "homes" / name / str(worker) / path)


# Commands of this connection that have one, which goes with it.
terminals = []


def hang_up(*_):
    for process in terminals:
        os.killpg(process.pid, signal.SIGHUP)
    os._exit(143)


def tpu_vm_ssh(options):
    """The first status of a worker that is not 0, as in gcloud."""
    if options.dry_run:
        for worker in reached(options.name, options.worker):
            alias = f"HostKeyAlias=tpu.{options.name}-{worker}"
            print(f"/usr/bin/ssh -o {alias} -o UserKnownHostsFile={KNOWN_HOSTS} me@tpu -- true")
        return 0
    signal.signal(signal.SIGTERM, hang_up)
    codes = {}
    threads = [
        threading.Thread(target=lambda w=worker: codes.update({w: run(options, w)}))
        for worker in reached(options.name, options.worker)
    ]
    for thread in threads:
        thread.start()
    # A handler of a signal runs between two short waits, in any version of Python.
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.02)
    return next((codes[worker] for worker in sorted(codes) if codes[worker]), 0)


def run(options, worker):
    """Runs a command on a worker; a broken connection (255) is tried again, as gcloud does."""
    for _ in range(10):
        code = connect(options, worker)
        if code != 255:
            return code
        time.sleep(0.1)
    print(f"ERROR: (gcloud) worker {worker}: [ssh] exited with return code [255].", file=sys.stderr)
    return 255


# Carries bytes between its standard streams, which are one connection, and a port of its host.
RELAY = """
import os, socket, sys, threading
there = socket.create_connection(("localhost", int(sys.argv[1])))
def carry(read, write):
    while data := read(65536):
        write(data)
    os._exit(0)
threading.Thread(target=carry, args=(there.recv, lambda data: os.write(1, data))).start()
carry(lambda size: os.read(0, size), there.sendall)
"""


def forward(flag, there):
    """ssh's -L PORT:localhost:PORT."""
    port, _, target = flag.removeprefix("-L").strip().split(":")
    with socket.create_server(("127.0.0.1", int(port))) as server:
        while True:
            connection, _ = server.accept()
            command = [*there, sys.executable, "-ISc", RELAY, target]
            subprocess.Popen(command, stdin=connection, stdout=connection)
            connection.close()


def connect(options, worker):
    if not is_trusted(options.name, worker):
        return 255
    home = CLOUD / "homes" / options.name / str(worker)
    environment = {
        "HOME": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LIBTPU_LOCKFILE": str(home / "libtpu_lockfile"),
        "FAKE_CLOUD_WORKER": f"{options.name}/{worker}",
        "FAKE_CLOUD": str(CLOUD),
    }
    for key, value in settings()["environment"].items():
        environment[key] = value.format(node=options.name, worker=worker)
    machines = settings()["machines"]
    there = ["ip", "netns", "exec", machines[worker]] if machines else []
    # sshd gives the words to the user's shell as one command. What is started there may live on.
    process = subprocess.Popen(
        [*there, "bash", "-c", options.command],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # As sshd does, whatever this program ignores.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    for flag in options.ssh_flag or []:
        if flag == "-tt":
            terminals.append(process)
        elif flag.startswith("-L") and there:
            # Without a host of its own, the worker's port is this machine's already.
            threading.Thread(target=forward, args=(flag, there), daemon=True).start()
    code = process.wait()
    with locked():
        broken = CLOUD / "broken_connections"
        left = int(broken.read_text()) if broken.exists() else 0
        if left:
            broken.write_text(str(left - 1))
            return 255
    return code


if __name__ == "__main__":
    main(sys.argv[1:])
