"""A real Slurm of two nodes on this machine, from Debian's packages, for one test module."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess

from support import cloud, ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
# JAX goes to the first node by its name, so the nodes are called as their addresses.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/linear
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=5
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus}
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES
"""


def missing():
    """Programs of Slurm that this machine lacks."""
    return [name for name in PROGRAMS if not shutil.which(name)]


@contextlib.contextmanager
def cluster(folder):
    """Starts its daemons; gives the environment for sbatch and its like."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    configuration = folder / "slurm.conf"
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(),
            folder=folder,
            ports=[ports.free() for _ in range(3)],
            user=user,
            cpus=os.cpu_count(),
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    munge = [
        f"--{name}={folder}/munge.{end}"
        for name, end in (
            ("key-file", "key"),
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        )
    ]
    daemons = []

    def start(*command):
        daemons.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    def idle():
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%D %T"], env=environment, capture_output=True, text=True
        )
        return done.stdout.split() == ["2", "idle"]

    try:
        start("munged", "--foreground", "--force", *munge)
        cloud.wait_until((folder / "munge.socket").exists, "munge")
        start("slurmctld", "-D")
        for node in ("127.0.0.1", "127.0.0.2"):
            start("slurmd", "-D", "-N", node)
        cloud.wait_until(idle, "Slurm")
        yield environment
    finally:
        subprocess.run(["scancel", "--full", "--user", user], env=environment, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=60)
