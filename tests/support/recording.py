"""Runs that are started again and again, and what every attempt was given."""

import sys

from support import commands, harness


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
        self._flags = [f"--workdir={self.workdir}", *flags]

    def attempt(self, processes, devices, *more, killed_after=None, victim=0):
        """Trains to the end, or until a process is killed once some step was done."""
        environment = harness.environment(
            devices, BATCHES=str(self._batches), PYTHONPATH=harness.module_path()
        )
        program = [sys.executable, "-m", "support.recorded", *self._flags, *more]
        with harness.Group.of(processes, program, environment=environment) as group:
            if killed_after is not None:
                commands.wait_for_step(self.workdir, killed_after, group)
                group.processes[victim].kill()
            ended_well = set(group.wait()) == {0}
            assert ended_well == (killed_after is None), group.said()
            return group.said()

    def batches(self):
        """The digest of each step's batch; those that were given twice were the same."""
        found = {}
        for line in self._batches.read_text().splitlines():
            step, digest = line.split()
            assert found.setdefault(int(step), digest) == digest, f"another batch for step {step}"
        return found
