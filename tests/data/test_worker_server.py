"""The server of workers: quiet, and the main process as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

STOP_EARLY = """
import os, signal, sys, time
from multiprocessing import forkserver
from vlmdata.worker_server import start_worker_server
before = dict(os.environ)
start_worker_server()
assert dict(os.environ) == before
assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
assert "numpy" not in sys.modules
server = forkserver._forkserver._forkserver_pid
start_worker_server()
assert forkserver._forkserver._forkserver_pid == server
time.sleep(0.1)
os.kill(server, signal.SIGINT)
print(server)
"""


def test_ctrl_c_while_it_starts_is_not_answered() -> None:
    done = subprocess.run([sys.executable, "-c", STOP_EARLY], capture_output=True, text=True, timeout=60)
    # all writers of stderr are gone by now, the server too
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    try:
        os.kill(int(done.stdout), signal.SIGKILL)
    except ProcessLookupError:
        return
