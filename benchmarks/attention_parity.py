"""Vision attention's ways against each other: errors of outputs and gradients against float32, and time.

    python benchmarks/attention_parity.py

Needs a GPU. Heads and sequence lengths are those of the families' vision towers at 1000x750 px and for windows. A way
begins with queries, keys and values as projected and includes the rotation of the former two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from vlmtrain.speed import attention
from vlmtrain.speed.window_attention import LONGEST_WINDOW, attend_in_windows

# Heads, channels of a head, tokens of the sequences, and how many tokens of each have queries, where not all.
CASES = {
    # 8 pictures of 1008x756 px: windows of 8x8 patches, and what is left of them at two edges
    "qwen2.5-vl windows": (16, 80, ([64] * 54 + [48] * 6 + [16] * 9 + [12]) * 8, None),
    "qwen2.5-vl pictures": (16, 80, [3888] * 4, None),
    "qwen3-vl pictures": (16, 72, [2914, 1200, 640], None),
    "pixtral pictures": (16, 64, [2914, 1200, 640], None),
    # one tile of each picture looks at its four
    "llama3.2-vision tiles": (16, 80, [6432] * 4, 1601),
}

Way = Callable[..., torch.Tensor]


def rotated(attend: Way, asking: int | None) -> Way:
    """A way of attention alone, behind the rotation that transformers does; see `CASES` for `asking`."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    def run(
        qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bounds: torch.Tensor, longest: int
    ) -> torch.Tensor:
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        scale = qkv.shape[-1] ** -0.5
        if asking is None:
            return attend(query, key, value, bounds, longest, scale=scale, causal=False)
        rows = (bounds[:-1, None] + torch.arange(asking, device=bounds.device)).flatten()
        some = asking * torch.arange(len(bounds), device=bounds.device, dtype=torch.int32)
        return attend(query[rows], key, value, some, longest, scale=scale, causal=False, key_bounds=bounds)

    return run


def in_windows(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """The kernels for short sequences."""
    return attend_in_windows(qkv, cos, sin, bounds, qkv.shape[-1] ** -0.5)


def compare_ways(
    heads: int, channels: int, lengths: list[int], asking: int | None
) -> Iterator[tuple[str, list[float], float]]:
    """For each way its name, the relative errors of output and gradients of queries, keys, values, and its time.

    Times are in ms, forward and backward, of 16-bit states.
    """
    torch.manual_seed(0)
    total = sum(lengths)
    bounds = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    states = torch.randn(total, 3, heads, channels, device="cuda")
    weight = torch.randn(asking * len(lengths) if asking else total, heads, channels, device="cuda")
    angles = 6 * torch.rand(total, channels // 2, device="cuda")
    cos, sin = (torch.cat([turned, turned], dim=-1) for turned in (angles.cos(), angles.sin()))

    def run(way: Way, dtype: torch.dtype) -> list[torch.Tensor]:
        qkv = states.clone().to(dtype).requires_grad_()
        out = way(qkv, cos, sin, bounds, max(lengths))
        out.backward(weight.to(dtype))
        return [out.detach().float(), *qkv.grad.float().unbind(1)]

    loop = rotated(attention._sequence_by_sequence, asking)
    exact = run(loop, torch.float32)
    ways = {"loop": loop, "one call": rotated(attention._kernel, asking)}
    if max(lengths) <= LONGEST_WINDOW:
        ways["windows"] = in_windows
    for name, way in ways.items():
        pairs = zip(run(way, torch.bfloat16), exact, strict=True)
        errors = [float((got - right).norm() / right.norm()) for got, right in pairs]
        yield name, errors, time_ms(way, (states.bfloat16(), cos, sin, bounds, max(lengths)), weight.bfloat16())


def time_ms(way: Way, inputs: tuple, weight: torch.Tensor) -> float:
    """Median time of a forward and backward pass."""
    from triton.testing import do_bench

    qkv = inputs[0].requires_grad_()

    def run() -> None:
        qkv.grad = None
        way(*inputs).backward(weight)

    return do_bench(run, return_mode="median")


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{'case':22} {'way':9} {'output':>9} {'d query':>9} {'d key':>9} {'d value':>9} {'ms':>8}")
    for case, shape in CASES.items():
        for way, errors, ms in compare_ways(*shape):
            print(f"{case:22} {way:9} " + " ".join(f"{error:9.2e}" for error in errors) + f" {ms:8.3f}")


if __name__ == "__main__":
    main()
