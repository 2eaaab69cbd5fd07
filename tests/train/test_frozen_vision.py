"""A frozen vision tower: no gradients on the way through it, and the same ones where something is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vlmtrain.collator import VisionCollator
from vlmtrain.layers import part_of
from vlmtrain.speed.batches import BatchPlan
from vlmtrain.speed.checkpointing import LayerSwitches
from vlmtrain.speed.frozen_vision import skip_frozen_vision
from vlmtrain.speed.trainer import Arrangement


def adapted(path: Any, part: str) -> Any:
    """A model with adapters on one part, made ready for recomputation as trainers do it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(path)
    names = [
        name
        for name, each in model.named_modules()
        if isinstance(each, torch.nn.Linear) and part_of(name) == part and not name.endswith("lm_head")
    ]
    model = get_peft_model(model, LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    model.enable_input_require_grads()
    return model.train()


@pytest.mark.parametrize("family", ["qwen2.5-vl", "gemma3", "llama3.2-vision", "pixtral"])
def test_gradients_end_in_front_of_a_frozen_tower(family: str, tiny: Any, chat_of: Any, unlike_rows: Any) -> None:
    model = adapted(tiny(family), "language")
    batch = VisionCollator(chat_of(family), dtype=torch.float32)(unlike_rows[:2])
    asked: list[bool] = []
    blocks = [
        block
        for name, stack in model.named_modules()
        if isinstance(stack, torch.nn.ModuleList) and part_of(name) == "vision"
        for block in stack
    ]
    for block in blocks:
        block.register_forward_hook(
            lambda _module, _inputs, out: asked.append((out[0] if isinstance(out, tuple) else out).requires_grad)
        )

    def gradients() -> dict[str, torch.Tensor]:
        asked.clear()
        model(**batch).loss.backward()
        found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    plan = BatchPlan(lengths=np.ones(2, dtype=np.int64), rows=2, passes=1)
    arrangement = Arrangement(plan=plan, switches=LayerSwitches(model))
    arrangement.set_recomputation()
    before = gradients()
    assert any(asked)
    arrangement.frozen = skip_frozen_vision(model)
    assert arrangement.frozen == blocks
    arrangement.switches = LayerSwitches(model, without=blocks)
    assert not set(map(id, blocks)) & set(map(id, arrangement.switches.layers))
    arrangement.set_recomputation()
    after = gradients()
    assert asked == [False] * len(blocks)
    assert before
    assert set(before) == set(after)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, msg=name)


def test_a_tower_that_learns_keeps_its_backward_pass(tiny: Any) -> None:
    assert skip_frozen_vision(adapted(tiny("qwen2.5-vl"), "vision")) == []
