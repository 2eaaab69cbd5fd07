"""What attention costs the first time that it meets a length, by backend of torch's attention, on a GPU.

    python benchmarks/attention_lengths.py
    python benchmarks/attention_lengths.py --heads 8 --key-heads 4 --channels 256 --from 264 --step 8

Prints the time of a forward and backward pass at lengths not met before, and once more at the same: eight rows, 32
heads of 128 channels, causal or with a mask of true and false. What torch would take by itself stands first. Where
heads share keys, they are repeated for the backend that takes no such heads.
"""

from __future__ import annotations

import argparse
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
    "math": SDPBackend.MATH,
}
REPEATED = "efficient"
LENGTHS = 12


def time_pass(length: int, options: argparse.Namespace, *, masked: bool, repeated: bool) -> float:
    """Seconds of a forward and backward pass."""
    query, key, value = (
        torch.randn(8, heads, length, options.channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (options.heads, options.key_heads, options.key_heads)
    )
    mask = torch.ones(8, 1, length, length, device="cuda", dtype=torch.bool).tril() if masked else None
    shared = options.heads // options.key_heads
    torch.cuda.synchronize()
    began = time.perf_counter()
    if repeated:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=not masked, enable_gqa=shared > 1 and not repeated
    )
    out.sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--key-heads", type=int, help="of keys and values; as many as of queries when unset")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--from", type=int, default=700, dest="start", help="the first length, in tokens")
    parser.add_argument("--step", type=int, default=7, help="tokens from a length to the next")
    options = parser.parse_args()
    options.key_heads = options.key_heads or options.heads
    for masked in (False, True):
        time_pass(512, options, masked=masked, repeated=False)  # what is loaded once
    print(f"{'backend':15} {'mask':7} {'first, median ms':>17} {'most ms':>9} {'at':>5} {'again, median ms':>17}")
    # no backend meets a length that another has met
    start = options.start
    for name, backend in BACKENDS.items():
        for masked in (False, True):
            if masked and name == "flash":
                continue  # it takes no mask
            first, again = [], []
            with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                lengths = range(start, start + options.step * LENGTHS, options.step)
                for length in lengths:
                    for times in (first, again):
                        seconds = time_pass(length, options, masked=masked, repeated=name == REPEATED)
                        times.append(1e3 * seconds)
            start += options.step * LENGTHS
            kind = "a mask" if masked else "causal"
            most = max(first)
            figures = f"{statistics.median(first):17.1f} {most:9.1f} {lengths[first.index(most)]:5}"
            print(f"{name:15} {kind:7} {figures} {statistics.median(again):17.1f}", flush=True)


if __name__ == "__main__":
    main()
