"""Patches embedded by a product: what the convolution gives, forward and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vlmtrain.loaded import base_of
from vlmtrain.speed.patch_products import embed_patches_by_products


@pytest.mark.parametrize(("family", "layers"), [("qwen2-vl", 1), ("qwen2.5-vl", 1), ("qwen3-vl", 1), ("gemma3", 0)])
def test_a_product_embeds_as_the_convolution_does(
    family: str, layers: int, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny(family))
    embedding = [module for module in base_of(model).modules() if type(module).__name__.endswith("PatchEmbed")]
    torch.manual_seed(0)
    patches = [torch.randn(5, each.proj.weight[0].numel()) for each in embedding]

    def run() -> list[torch.Tensor]:
        results = []
        for each, rows in zip(embedding, patches, strict=True):
            each.proj.weight.grad = None
            out = each(rows)
            out.square().sum().backward()
            results += [out.detach(), each.proj.weight.grad]
        return results

    before = run()
    assert embed_patches_by_products(model) == layers == len(embedding)
    monkeypatch.delattr(torch.nn.Conv3d, "forward")
    for a, b in zip(before, run(), strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
