"""Runs that are started again and again, and what every attempt was given."""

from support import cluster, commands


class Recording:
    """A run in its folder, whose global batches are written down."""

    def __init__(self, folder, *flags):
        """Makes the folder.

        Args:
            folder: for the run and its records.
            flags: of `nest-dist train`, without that of the workdir.
        """
        folder.mkdir(exist_ok=True)
        self.workdir = folder / "run"
        self._batches = folder / "batches"
        self._folder = folder
        self._flags = [f"--workdir={self.workdir}", *flags]

    def attempt(self, processes, devices, *more, killed_after=None, victim=0):
        """Trains to the end, or until a process is killed once some step was done."""
        environment = {
            "BATCHES": str(self._batches),
            "PYTHONPATH": str(commands.TOP / "tests"),
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        flags, program = [*self._flags, *more], ("-m", "support.recorded")
        with cluster.Cluster(
            processes, self._folder, flags, environment, program=program
        ) as started:
            if killed_after is not None:
                assert started.wait_for_step(self.workdir, killed_after, 600), started.said()
                started.processes[victim].kill()
            assert started.wait(600), started.said()
            ended_well = set(started.codes()) == {0}
            assert ended_well == (killed_after is None), started.said()
        return started.said()

    def batches(self):
        """The digest of each step's batch; those that were given twice were the same."""
        found = {}
        for line in self._batches.read_text().splitlines():
            step, digest = line.split()
            assert found.setdefault(int(step), digest) == digest, f"another batch for step {step}"
        return found
