"""Kernels of torch's compiler that read what is not written yet, and the models whose layers get them.

Until torch 2.14 inductor lets a kernel write a row in one loop and read it back in the next, with no wait in between.
Triton may give the two accesses different threads; then one reads what another has yet to write, and gets garbage, at
random. The gradients of normalised queries and keys are computed so. With heads of 256 channels, as Gemma 3 has them,
the threads differ, and after some compilations gradients were 17 to 280,000 times too long; with 128 channels, and in
the norms of whole layers, they are the same (benchmarks/kernel_readback.py). Mended by pytorch's pull request 190519;
Triton's issue 10924 says more.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmtrain.loaded import base_of

__all__ = ["race_of"]

_MENDED = (2, 14)
_MOST_CHANNELS = 128


def race_of(model: Any) -> str | None:
    """Why the language layers of a model must not be compiled by this torch, or None.

    Args:
        model: A transformers or peft model.
    """
    base = base_of(model)
    text = base.config.get_text_config()
    channels = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    if torch.__version__ >= _MENDED or channels <= _MOST_CHANNELS:
        return None
    if not any(name.endswith("q_norm") for name, _ in base.named_modules()):
        return None
    return f"torch before 2.14 may compute garbage for normalised heads of {channels} channels"
