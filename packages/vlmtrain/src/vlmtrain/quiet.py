"""The environment that the libraries find when they are imported: no chatter, no network, no spinning, own graphs."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["mark_compiled_graphs", "quieten_libraries", "yield_cores"]

# Deprecations inside torch, and bitsandbytes looking for CPU kernels that nothing here uses.
_LOGGERS = ("torch.utils._pytree", "bitsandbytes", "torchao")


def quieten_libraries() -> None:
    """Call before the libraries are imported; what the user set in the environment stays."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Each of its retries is a line; that the hub cannot be reached is said once.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Tokenizers' threads and forked loader workers do not go together; it says so on every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # TRL tells its makers of each run, in a thread that reads the environment to look their host up, while accelerate
    # writes it: now and then a run ended in a segmentation fault, in glibc's getenv.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def yield_cores() -> None:
    """Lets waiting threads sleep instead of spinning; call before torch is imported.

    torch's threads otherwise burn a core while they wait for each other: on two busy cores a step takes three times
    as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def mark_compiled_graphs() -> None:
    """Keeps torch from taking another program's compiled graphs for ours; call before torch is imported.

    Its cache knows the code of a model, and not what inductor was taught besides (`vlmtrain.speed.product_sums`). The
    number rises when that changes.
    """
    os.environ.setdefault("TORCH_COMPILE_CACHE_KEY_TAG", "vlmtrain-1")
