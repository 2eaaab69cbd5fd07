"""The process that worker processes are forked from: it imports what they need once, while the main process starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

__all__ = ["WORKER_ENVIRONMENT", "start_worker_server"]

# Workers share the cores among themselves; threads inside each would only get in their way.
WORKER_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
"""Variables that worker processes have in place of the main process's."""


def start_worker_server() -> BaseContext:
    """Start the server, unless it runs, and return the context to start workers with; does not wait for it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlmdata.stage.preload"])
    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    # started by itself, because doing so unblocks the signal
    resource_tracker.ensure_running()
    # Ctrl-C is for the main process; until the server is ready it would answer with a traceback
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return context
