"""Runs a vlmtrain command line through Unsloth's own code on a CPU: `python unsloth_on_cpu.py fit --backend unsloth …`.

Not a mode for users: Unsloth refuses a machine without a GPU, and here a stand-in device is put before it so that its
collator, its patched trainer, its adapters and its merge run in CI. Kernels and 4-bit weights are not touched by it.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import SimpleNamespace

os.environ["UNSLOTH_ALLOW_CPU"] = "1"
os.environ["UNSLOTH_COMPILE_DISABLE"] = "0"
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch

torch.cuda.get_device_properties = lambda *_: SimpleNamespace(
    name="stand-in", major=8, minor=0, total_memory=16 << 30, multi_processor_count=1
)
torch.cuda.get_device_capability = lambda *_: (8, 0)
torch.cuda.mem_get_info = lambda *_: (8 << 30, 16 << 30)
torch.cuda.current_device = lambda: 0

from vlmtrain import backends, cli  # noqa: E402  # torch must be prepared before

backends._unsloth_obstacle = lambda: None


def patch_trainer() -> None:
    """Unsloth leaves trl alone in this mode unless asked."""
    importlib.import_module("vlmtrain.backends.unsloth")  # makes its settings before it imports unsloth
    from unsloth.models import loader
    from unsloth.models.rl import _patch_trl_rl_trainers

    if "WORLD_SIZE" in os.environ:
        # in a group it would put each process's model on a GPU of its own
        loader.prepare_device_map = lambda: ("cpu", True)
    _patch_trl_rl_trainers("sft_trainer")


if __name__ == "__main__":
    patch_trainer()
    cli.main(sys.argv[1:])
