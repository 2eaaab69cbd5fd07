"""What attention costs the first time that it meets a length, by backend of torch's attention, on a GPU.

    python benchmarks/attention_lengths.py

Prints the time of a forward and backward pass at lengths not met before, and once more at the same: eight rows, 32
heads of 128 channels, causal or with a mask of true and false. What torch would take by itself stands first.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "torch's choice": None,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LENGTHS = 12


def time_pass(length: int, *, masked: bool) -> float:
    """Seconds of a forward and backward pass."""
    query, key, value = (
        torch.randn(8, 32, length, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    mask = torch.ones(8, 1, length, length, device="cuda", dtype=torch.bool).tril() if masked else None
    torch.cuda.synchronize()
    began = time.perf_counter()
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=not masked)
    out.sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    for masked in (False, True):
        time_pass(512, masked=masked)  # what is loaded once
    print(f"{'backend':15} {'mask':7} {'first, median ms':>17} {'most ms':>9} {'again, median ms':>17}")
    # no backend meets a length that another has met
    start = 700
    for name, backend in BACKENDS.items():
        for masked in (False, True):
            if masked and name == "flash":
                continue  # it takes no mask
            first, again = [], []
            with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                for length in range(start, start + 7 * LENGTHS, 7):
                    first.append(1e3 * time_pass(length, masked=masked))
                    again.append(1e3 * time_pass(length, masked=masked))
            start += 7 * LENGTHS
            kind = "a mask" if masked else "causal"
            times = (statistics.median(first), max(first), statistics.median(again))
            print(f"{name:15} {kind:7} {times[0]:17.1f} {times[1]:9.1f} {times[2]:17.1f}", flush=True)


if __name__ == "__main__":
    main()
