"""What is recomputed: the choice by memory, and that it changes nothing that is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlmtrain.collator import VisionCollator
from vlmtrain.rows import open_rows
from vlmtrain.speed.checkpointing import Candidate, LayerSwitches, Measured, choose

# 10 bytes of weights; a pass of 1,024 tokens takes 20 more, and each of 4 layers 5 more when it is not recomputed
MEASURED = Measured(resting=10, peak=30, kept_by_layer=[5, 5, 5, 5])


def candidates(*rows: int, tokens: int) -> list[Candidate]:
    return [Candidate(rows=count, tokens=count * tokens) for count in rows]


@pytest.mark.parametrize(
    ("budget", "rows", "kept", "used"),
    [
        (400, 8, 4, 330),  # everything fits: 10 + 8 * (20 + 20)
        (329, 4, 4, 170),  # the largest pass in which nothing is recomputed
        (169, 4, 3, 150),  # 2,000 tokens do not fill a GPU: rather 4,000 with a layer recomputed
        (95, 4, 0, 90),
        (59, 2, 0, 50),  # not even all recomputed do 4 rows fit
        (1, 1, 0, 30),  # nothing fits: the least, which is then tried
    ],
)
def test_rows_and_layers_follow_from_memory(budget: int, rows: int, kept: int, used: int) -> None:
    choice = choose(MEASURED, 1024, candidates(8, 4, 2, 1, tokens=1024), budget)
    assert (choice.candidate.rows, choice.kept, choice.bytes) == (rows, kept, used)


def test_a_global_batch_of_few_tokens_is_one_pass() -> None:
    choice = choose(MEASURED, 100, candidates(2, 1, tokens=100), 1000)
    assert (choice.candidate.rows, choice.kept) == (2, 4)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "gemma3", "llama3.2-vision"])
def test_recomputed_layers_have_the_same_gradients(family: str, tiny: Any, chat_of: Any, colours: Any) -> None:
    from vlmdata.shards import open_folder

    rows = open_rows(open_folder(colours).split("train"))
    batch = VisionCollator(chat_of(family), dtype=torch.float32)([rows[0], rows[1]])
    model = AutoModelForImageTextToText.from_pretrained(tiny(family), dtype=torch.float32).train()
    calls: list[str] = []

    def gradients() -> dict[str, torch.Tensor]:
        calls.clear()
        model(**batch, use_cache=False).loss.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return found

    switches = LayerSwitches(model)
    for layer, kind in zip(switches.layers, switches.kinds, strict=True):
        layer.register_forward_pre_hook(lambda *_, kind=kind: calls.append(kind))
    all_recomputed = gradients()
    twice = len(calls)
    assert twice == 2 * len(switches.layers)
    switches.keep_last(1)
    some = gradients()
    assert len(calls) == twice - 1
    switches.keep_last(len(switches.layers))
    none = gradients()
    assert len(calls) == len(switches.layers)
    assert switches.describe() == "no layer is recomputed"
    for name, gradient in none.items():
        assert some[name].equal(gradient), name
        assert all_recomputed[name].equal(gradient), name
