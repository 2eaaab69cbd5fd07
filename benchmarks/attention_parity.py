"""Vision attention in one call against the loop: errors of outputs and gradients, both held against float32.

    python benchmarks/attention_parity.py

Needs a GPU. Heads and sequence lengths are those of the families' vision towers at 1000x750 px and for windows.
"""

from __future__ import annotations

import torch

from vlmtrain.speed import attention

CASES = {
    "qwen2.5-vl windows": (16, 80, [64] * 400 + [32] * 50 + [16] * 4),
    "qwen2.5-vl pictures": (16, 80, [3888] * 4),
    "qwen3-vl pictures": (16, 72, [2914, 1200, 640]),
    "pixtral pictures": (16, 64, [2914, 1200, 640]),
}


def errors_against_float32(heads: int, channels: int, lengths: list[int]) -> dict[str, list[float]]:
    """Relative errors of output and gradients of queries, keys, values, for the loop and for one call."""
    torch.manual_seed(0)
    total = sum(lengths)
    boundaries = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    states = [torch.randn(total, heads, channels, device="cuda") for _ in range(4)]
    weight = states.pop()

    def run(attend, dtype):
        leaves = [state.detach().clone().to(dtype).requires_grad_() for state in states]
        out = attend(*leaves, boundaries, max(lengths), scale=channels**-0.5, causal=False)
        out.backward(weight.to(dtype))
        return [out.detach().float(), *(leaf.grad.float() for leaf in leaves)]

    exact = run(attention._sequence_by_sequence, torch.float32)
    ways = {"loop": attention._sequence_by_sequence, "one call": attention._kernel}
    return {
        name: [float((a - b).norm() / b.norm()) for a, b in zip(run(attend, torch.bfloat16), exact, strict=True)]
        for name, attend in ways.items()
    }


def main() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{'case':22} {'way':9} {'output':>9} {'d query':>9} {'d key':>9} {'d value':>9}")
    for case, shape in CASES.items():
        for way, errors in errors_against_float32(*shape).items():
            print(f"{case:22} {way:9} " + " ".join(f"{error:9.2e}" for error in errors))


if __name__ == "__main__":
    main()
