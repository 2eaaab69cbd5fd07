"""Keeps the libraries' chatter out of the output, so that what this program says is seen. Errors still come through."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["quieten_libraries"]

# Deprecations inside torch, and bitsandbytes looking for CPU kernels that nothing here uses.
_LOGGERS = ("torch.utils._pytree", "bitsandbytes", "torchao")


def quieten_libraries() -> None:
    """Call before the libraries are imported; what the user set in the environment stays."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Tokenizers' threads and forked loader workers do not go together; it says so on every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
