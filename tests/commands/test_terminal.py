"""What stands on a terminal, and what in a file."""

import os
import pty
import re
import sys

from support import harness

PROGRAM = """
from nest_dist.telemetry import terminal
shown = terminal.Progress(first_step=10, num_steps=40, steps_per_epoch=10)
shown.say("compiling [1]")
for step in (20, 30):
    shown.report(step, {"train/loss": 1 / step, "speed/images_per_second": 1234.5})
shown.report(30, {"eval/top_1": 0.5, "eval/examples": 10})
shown.report(30, {"goodput/fraction": 0.5})
shown.close()
"""


def test_a_file_gets_plain_lines():
    done = harness.python("-c", PROGRAM)
    assert done.stdout.splitlines() == [
        "compiling [1]",
        "step 20/40  epoch 2.00  loss 0.0500  1,234 images/s",
        "step 30/40  epoch 3.00  loss 0.0333  1,234 images/s",
        "step 30/40  epoch 3.00  test top-1 50.00%",
    ]


def test_a_terminal_gets_a_bar_that_stays_at_the_bottom():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    program = PROGRAM + "import sys; sys.stdout.flush()"
    command = [sys.executable, "-c", program]
    with harness.Process(command, stdin=theirs, output=theirs, environment=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other side is closed
            pass
        assert process.wait() == 0
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "compiling [1]" in text
    assert "step 30/40  epoch 3.00  test top-1 50.00%" in text
    bar = re.findall(r"step 30/40 epoch 3\.00 .* loss 0\.0333  1,234 images/s (\S+)", text)
    assert re.fullmatch(r"\d:\d\d:\d\d", bar[-1])  # the time left
    assert text.rstrip().endswith(bar[-1])
    assert "loss 0.0500  1,234 images/s\r\n" not in text  # no line a report
