"""Lengths rounded up: few of them, little padding, and nothing that the loss would notice."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText

from vlmdata.families import FAMILIES
from vlmtrain.arrangement import choose_batching
from vlmtrain.collator import VisionCollator
from vlmtrain.speed import rounding
from vlmtrain.speed.batches import BatchPlan
from vlmtrain.speed.rounding import RoundingCollator, prefers_cudnn, round_up


@given(st.integers(1, 10**6))
def test_a_length_grows_by_a_32nd_or_two(length: int) -> None:
    assert length <= round_up(length) <= max(length + 1, length * 34 / 32)
    assert round_up(round_up(length)) == round_up(length)
    assert round_up(length) % 128 != 64


def test_there_are_few_lengths() -> None:
    lengths = (1, 37, 64, 65, 300, 315, 704, 1500)
    assert [round_up(length) for length in lengths] == [1, 37, 66, 66, 304, 328, 720, 1504]
    # 4 of the 32 between 512 and 1024 are passed over
    assert len({round_up(length) for length in range(513, 1025)}) == 28


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_and_its_gradients_stay_the_same(
    name: str, tiny: Any, chat_of: Any, unlike_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "_BITS", 2)
    chat = chat_of(name)
    collate = VisionCollator(chat, dtype=torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(tiny(name), dtype=torch.float32)
    batch = collate(unlike_rows[:3])
    rounded = RoundingCollator(collate, chat.processor.tokenizer.pad_token_id)(unlike_rows[:3])
    assert rounded["input_ids"].shape[1] == round_up(batch["input_ids"].shape[1]) > batch["input_ids"].shape[1]
    losses, gradients = [], []
    for each in (batch, rounded):
        model.zero_grad()
        loss = model(**each).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))


def test_the_share_of_padding_counts_what_is_rounded() -> None:
    plan = BatchPlan(lengths=np.array([300, 300]), rows=2, passes=1)
    assert plan.padding() == 0
    assert dataclasses.replace(plan, rounded=True).padding() == pytest.approx(4 / 304)
    assert dataclasses.replace(plan, rounded=True, packed=True).padding() == 0


@pytest.mark.parametrize(("batching", "rounded"), [("plain", True), ("length", True), ("packed", False)])
def test_the_choice_is_printed(batching: str, rounded: bool, settings: Any) -> None:
    said: list[str] = []
    config = settings(batching=batching)
    plan = choose_batching(config, np.array([300] * 9), "qwen2_5_vl", said.append, has_kernel=True, rounded=True)
    assert plan.rounded == rounded
    assert ["rounded up" in line for line in said] == [rounded]


@pytest.mark.parametrize(
    ("device", "capability", "enabled", "expected"),
    [
        ("cuda", (9, 0), True, True),
        ("cuda", (8, 9), True, False),
        ("cuda", (9, 0), False, False),
        ("cpu", (9, 0), True, False),
    ],
)
def test_gpus_on_which_torch_prefers_cudnn(
    device: str, capability: tuple[int, int], enabled: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled)
    assert prefers_cudnn(torch.device(device)) == expected


def test_a_run_has_its_batches_rounded_where_torch_prefers_cudnn(
    settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmtrain import arrangement, training

    monkeypatch.setattr(rounding, "_BITS", 2)
    widths: dict[bool, set[int]] = {}
    losses: dict[bool, list[float]] = {}
    collate = VisionCollator.__call__
    rounded = RoundingCollator.__call__
    seen: set[int] = set()

    def watch(call: Any) -> Any:
        def run(self: Any, rows: Any) -> Any:
            batch = call(self, rows)
            seen.add(batch["input_ids"].shape[1])
            return batch

        return run

    for preferred, call in ((False, collate), (True, rounded)):
        seen.clear()
        monkeypatch.setattr(training, "prefers_cudnn", lambda _, preferred=preferred: preferred)
        monkeypatch.setattr(arrangement, "prefers_cudnn", lambda _, preferred=preferred: preferred)
        owner = RoundingCollator if preferred else VisionCollator
        monkeypatch.setattr(owner, "__call__", watch(call))
        run = training.fit(settings(out=tmp_path / str(preferred), max_steps=2))
        monkeypatch.setattr(owner, "__call__", call)
        assert ("lengths rounded up" in capsys.readouterr().out) is preferred
        lines = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
        losses[preferred] = [line["loss"] for line in lines if "loss" in line]
        widths[preferred] = set(seen)
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert widths[True] <= {round_up(width) for width in widths[False]}
    assert not widths[True] <= widths[False]
