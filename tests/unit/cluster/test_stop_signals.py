"""Stops that a library has unblocked."""

import subprocess
import sys

UNBLOCKED = """
import signal, threading, time
from nest_dist.cluster import stop_signals

stop_signals.hold_back()
read = threading.Event()
stop_signals.listen(lambda number: (print("read", number, flush=True), read.set()))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the main thread's, as a library may
signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
assert read.wait(10)
"""


def test_a_stop_in_an_unblocked_thread_reaches_the_one_that_reads():
    done = subprocess.run([sys.executable, "-c", UNBLOCKED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "read 15\n"), done.stderr


COLLECTING = """
import gc, signal, time
from nest_dist.cluster import stop_signals

stop_signals.hold_back()
stop_signals.release()
def callback(*_):
    if not sent:
        sent.append(True)
        signal.raise_signal(signal.SIGINT)
sent = []
gc.callbacks[:] = [callback]
try:
    gc.collect()
    time.sleep(10)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_counts_while_garbage_is_collected():
    done = subprocess.run([sys.executable, "-c", COLLECTING], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
    assert not done.stderr


TRACKER = """
import signal
from multiprocessing import resource_tracker
from nest_dist.cluster import stop_signals

stop_signals.hold_back()
start()
print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_the_resource_tracker_leaves_the_block_of_its_starter():
    def blocked_after(start):
        program = TRACKER.replace("start()", start)
        command = [sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert blocked_after("stop_signals.start_resource_tracker()") == "True\n"
    assert blocked_after("resource_tracker.ensure_running()") == "False\n"  # why this is needed
