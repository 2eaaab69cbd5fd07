"""Compiled vision blocks: the same losses and gradients, a fallback in words, and no compilation that does not pay."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlmtrain.collator import VisionCollator
from vlmtrain.speed.compiled_blocks import CompiledBlocks, compile_vision_blocks, keep_if_faster


def train_step(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.train()
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), gradients


def test_shapes_are_not_left_to_a_timing(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    """Two graphs of a block, one for recomputation, must keep tensors of the same shapes."""
    from transformers import AutoModelForImageTextToText

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or function)
    model = AutoModelForImageTextToText.from_pretrained(tiny("qwen2.5-vl"))
    compile_vision_blocks(model, print, make_traceable=untouched)
    assert [each["options"] for each in asked] == [{"shape_padding": True, "force_shape_pad": True}]
    assert asked[0]["options"].keys() <= torch._inductor.config.get_config_copy().keys()


def untouched(classes: Any) -> Any:
    return contextlib.nullcontext


@pytest.mark.parametrize(("family", "kinds"), [("gemma3", 1), ("llama3.2-vision", 2)])
def test_compiled_blocks_give_the_same_loss_and_gradients(
    family: str, kinds: int, tiny: Any, chat_of: Any, unlike_rows: Any
) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny(family))
    batch = VisionCollator(chat_of(family), dtype=torch.float32)(unlike_rows[:2])
    loss, gradients = train_step(model, batch)
    said: list[str] = []
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    blocks = compile_vision_blocks(model, said.append, make_traceable=untouched, backend=count)
    assert blocks.count >= 2
    compiled_loss, compiled_gradients = train_step(model, batch)
    assert said == []
    # blocks of one kind share a graph; those of Llama's second stage have gates
    assert len(graphs) == kinds
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled_gradients[name], gradient, msg=name)
    # answers come from the model as it is
    graphs.clear()
    model.eval()
    with torch.no_grad():
        model(**batch)
    assert graphs == []


def test_a_block_that_cannot_be_compiled_goes_on_as_it_was(tiny: Any, chat_of: Any, unlike_rows: Any) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny("gemma3"))
    batch = VisionCollator(chat_of("gemma3"), dtype=torch.float32)(unlike_rows[:2])
    loss, _ = train_step(model, batch)
    said: list[str] = []

    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such kernel")

    blocks = compile_vision_blocks(model, said.append, make_traceable=untouched, backend=fail)
    assert train_step(model, batch)[0] == pytest.approx(loss, rel=1e-6)
    assert not blocks.enabled
    [line] = said
    assert "the vision tower is not compiled" in line
    assert "no such kernel" in line


@pytest.mark.parametrize(("compiled", "kept"), [(1.0, True), (3.0, False)])
def test_only_what_is_faster_is_kept(compiled: float, kept: bool) -> None:
    blocks = CompiledBlocks(count=4)
    now = 0.0
    said: list[str] = []

    def run() -> None:
        nonlocal now
        now += compiled if blocks.enabled else 2.0

    keep_if_faster(blocks, run, lambda: None, said.append, lambda: now)
    assert blocks.enabled is kept
    assert said == [
        f"a pass takes {compiled:.3f} s with the 4 blocks of the vision tower compiled and 2.000 s without: they are "
        + ("compiled" if kept else "left as they are")
    ]


@pytest.mark.parametrize(("steps", "wanted", "tried"), [(199, "auto", False), (200, "auto", True), (3, "on", True)])
def test_short_runs_go_without_unless_asked(
    steps: int, wanted: str, tried: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlmtrain import arrangement

    monkeypatch.setattr(arrangement, "compile_vision_blocks", lambda *_, **__: CompiledBlocks(count=4))
    on_gpu = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    said: list[str] = []
    _, blocks = arrangement._choose_compilation(
        settings(compile_vision=wanted),
        SimpleNamespace(make_traceable=untouched, COMPILES=False),
        SimpleNamespace(model=on_gpu),
        steps,
        said.append,
        frozen=False,
    )
    assert (blocks is not None) is tried
    assert ("not compiled for 199 steps" in said[0]) is not tried


def test_blocks_without_which_memory_runs_out_stay_compiled() -> None:
    blocks = CompiledBlocks(count=4)
    said: list[str] = []

    def run() -> None:
        if not blocks.enabled:
            raise torch.OutOfMemoryError("no room")

    keep_if_faster(blocks, run, lambda: None, said.append)
    assert blocks.enabled
    assert "more memory than there is without: they are compiled" in said[0]
