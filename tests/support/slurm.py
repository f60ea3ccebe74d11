"""A real Slurm of two nodes on this machine, from Debian's packages, for one test module.

Each node has GPUS devices, which stand for GPUs.
"""

import contextlib
import os
import secrets
import shutil
import socket
import stat
import subprocess

from support import harness, ports

GPUS = 4
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
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=5
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {resources}
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {resources}
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
            resources=f"CPUs={os.cpu_count()} Gres=gpu:{GPUS}",
        )
    )
    files = folder / "gpu"
    try:
        for number in range(GPUS):  # Slurm wants devices: these are /dev/null by another name
            os.mknod(f"{files}{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        files = "/dev/tty"
    (folder / "gres.conf").write_text(f"Name=gpu File={files}[0-{GPUS - 1}]\n")
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

    def idle():
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%D %T"], env=environment, capture_output=True, text=True
        )
        return done.stdout.split() == ["2", "idle"]

    with contextlib.ExitStack() as stack:

        def start(*command):
            return stack.enter_context(harness.Process(command, environment=environment))

        munged = start("munged", "--foreground", "--force", *munge)
        harness.wait_until((folder / "munge.socket").exists, munged.said)
        controller = start("slurmctld", "-D")
        for node in ("127.0.0.1", "127.0.0.2"):
            start("slurmd", "-D", "-N", node)
        harness.wait_until(idle, controller.said)
        yield environment
        subprocess.run(["scancel", "--full", "--user", user], env=environment, check=False)
        harness.wait_until(idle, controller.said)
