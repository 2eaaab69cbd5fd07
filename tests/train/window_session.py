"""A process with Triton's interpreter, which must be chosen before triton is imported: `window_session.py MODEL OUT`.

Runs the kernels for attention in windows on a CPU and writes how far they are from plain attention, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from vlmtrain.speed import attention, qwen_attention
from vlmtrain.speed.vision_inputs import VisionInputs
from vlmtrain.speed.window_attention import attend_in_windows

_LENGTHS = [64, 17, 1, 32, 64, 5]


def differ(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to what is expected."""
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-12))


def draw_states(heads: int, channels: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values, cosines, sines, and the beginnings of sequences."""
    torch.manual_seed(0)
    tokens = sum(_LENGTHS)
    qkv = torch.randn(tokens, 3, heads, channels, requires_grad=True)
    angles = 6 * torch.rand(tokens, channels // 2)
    cos, sin = (torch.cat([half, half], dim=-1) for half in (angles.cos(), angles.sin()))
    return qkv, cos, sin, torch.tensor([0, *_LENGTHS]).cumsum(0).to(torch.int32)


def attend_plainly(qkv: Any, cos: Any, sin: Any, boundaries: Any, scale: float) -> torch.Tensor:
    """Rotation, softmax and two products for each sequence."""
    query, key, value = qkv.unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    parts = []
    for q, k, v in zip(*(states.split(boundaries.diff().tolist()) for states in (query, key, value)), strict=True):
        weights = (scale * torch.einsum("thd,shd->hts", q, k)).softmax(dim=-1)
        parts.append(torch.einsum("hts,shd->thd", weights, v))
    return torch.cat(parts)


def compare_plain(heads: int, channels: int) -> dict[str, dict[str, float]]:
    """How far output and gradient are from plain attention in 32 bit: the kernels' in 32 and 16 bit, and its own in 16.

    In 16 bit that is float16: Triton's interpreter does not multiply matrices of bfloat16 rightly.
    """
    qkv, *others = draw_states(heads, channels)
    upstream = torch.randn(len(qkv), heads, channels)

    def run(attend: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaf = qkv.detach().clone().to(dtype).requires_grad_()
        out = attend(leaf, *others, 0.3)
        return [out.detach().float(), torch.autograd.grad(out, leaf, upstream.to(dtype))[0].float()]

    exact = run(attend_plainly, torch.float32)
    ways = {
        "kernels": (attend_in_windows, torch.float32),
        "kernels in 16 bit": (attend_in_windows, torch.float16),
        "plain in 16 bit": (attend_plainly, torch.float16),
    }
    return {
        name: dict(zip(("output", "gradient"), map(differ, run(*way), exact), strict=True))
        for name, way in ways.items()
    }


def compare_tower(folder: Path) -> dict[str, Any]:
    """A whole vision tower with and without the kernels."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    vision = model.config.vision_config
    grids = torch.tensor([[1, 12, 20], [1, 8, 10]])
    inputs = VisionInputs(lambda _: {"image_grid_thw": grids}, vision)([])
    inputs = {name.removeprefix("image_"): value for name, value in inputs.items()}
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * vision.temporal_patch_size * vision.patch_size**2)
    names, trained = zip(*model.model.visual.named_parameters(), strict=True)

    def run() -> tuple[torch.Tensor, ...]:
        out = model.model.visual(pixels, **inputs).pooler_output
        return out.detach(), *torch.autograd.grad(out.square().sum(), trained)

    expected = run()
    longest: list[int] = []

    def counted(states: Any, cos: Any, sin: Any, boundaries: Any, scale: float) -> Any:
        longest.append(int(boundaries.diff().max()))
        return attend_in_windows(states, cos, sin, boundaries, scale)

    qwen_attention.attend_in_windows = counted
    attention.use_varlen_vision(model, in_windows=True)
    differences = map(differ, run(), expected)
    return {
        "differences": dict(zip(("output", *names), differences, strict=True)),
        "calls": len(longest),
        "blocks in windows": vision.depth - len(vision.fullatt_block_indexes),
        "longest": max(longest),
        "said to be longest": attention.window_tokens(model),
    }


def main(folder: Path, out: Path) -> None:
    report: dict[str, Any] = {"plain": [compare_plain(2, 80), compare_plain(3, 24)], "tower": compare_tower(folder)}
    checks = torch.library.opcheck(torch.ops.vlmtrain.attend_in_windows.default, (*draw_states(2, 16), 0.5))
    out.write_text(json.dumps(report | {"operator": checks}), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
