"""The fast way to do a step against the plain one: same loss, same gradients, for every family that has one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlmtrain.collator import VisionCollator
from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.speed import attention
from vlmtrain.speed.loss import keep_supervised, sum_of_losses
from vlmtrain.speed.packing import PackedCollator
from vlmtrain.speed.vision_inputs import VisionInputs

QWEN = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]
VARLEN = [*QWEN, "pixtral", "ministral3"]


def load(tiny: Any, family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_pretrained(tiny(family), dtype=torch.float32).train()


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), gradients


def assert_same(left: tuple[float, dict[str, torch.Tensor]], right: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert right[0] == pytest.approx(left[0], rel=1e-5)
    assert set(left[1]) == set(right[1])
    largest = max(gradient.abs().max() for gradient in left[1].values())
    for name, gradient in left[1].items():
        torch.testing.assert_close(right[1][name], gradient, rtol=1e-3, atol=float(1e-5 * largest), msg=name)


@pytest.mark.parametrize("family", VARLEN)
def test_variable_length_vision_attention_is_the_loop(
    family: str, tiny: Any, chat_of: Any, unlike_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny, family)
    batch = VisionCollator(chat_of(family), dtype=torch.float32)(unlike_rows)
    assert attention.vision_gains(model)
    loop = loss_and_gradients(model, batch)
    calls = []
    original = attention.varlen_attention

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(kwargs["cu_seq_lens_q"]) - 1)
        return original(*args, **kwargs)

    # the Qwen layers are given the function, Pixtral's look it up
    monkeypatch.setattr(attention, "varlen_attention", counted)
    attention.use_varlen_vision(model)
    try:
        varlen = loss_and_gradients(model, batch)
    finally:
        monkeypatch.undo()
        attention.register()
    assert_same(loop, varlen)
    # one call a layer, each over all pictures (or windows)
    assert len(calls) == model.config.vision_config.to_dict().get("depth", 2)
    assert min(calls) >= sum(len(row["images"]) for row in unlike_rows)


@pytest.mark.parametrize("family", ["pixtral", "ministral3"])
def test_features_of_a_picture_do_not_depend_on_its_neighbours(
    family: str, tiny: Any, chat_of: Any, unlike_rows: Any
) -> None:
    model = load(tiny, family).eval()
    attention.use_varlen_vision(model)
    collate = VisionCollator(chat_of(family), dtype=torch.float32)

    def features(some: list[Any]) -> list[torch.Tensor]:
        batch = collate(some)
        with torch.no_grad():
            out = model.model.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"])
        return list(getattr(out, "pooler_output", out))

    together = features(unlike_rows[:2])
    alone = [*features(unlike_rows[:1]), *features(unlike_rows[1:2])]
    for first, second in zip(torch.cat(together).split(8), torch.cat(alone).split(8), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", QWEN)
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(
    family: str, tiny: Any, chat_of: Any, unlike_rows: Any
) -> None:
    model = load(tiny, family)
    collate = VisionCollator(chat_of(family), dtype=torch.float32)
    plain = collate(unlike_rows)
    expected = loss_and_gradients(model, plain)
    packed = VisionInputs(PackedCollator(collate, model), model.config.vision_config)(unlike_rows)
    assert packed["input_ids"].shape == (1, int(plain["attention_mask"].sum()))
    assert (packed["labels"] != IGNORE_INDEX).sum() == (plain["labels"][:, 1:] != IGNORE_INDEX).sum()
    attention.use_varlen_vision(model)
    with attention.packed_language_attention(model, packed["position_ids"][0]):
        actual = loss_and_gradients(model, packed)
    assert_same(expected, actual)
    # without boundaries the rows see each other, and the loss is another
    leaky = copy.copy(packed)
    leaky["position_ids"] = packed["position_ids"][1:]
    assert loss_and_gradients(model, leaky)[0] != pytest.approx(expected[0], rel=1e-5)


def test_the_language_models_attention_is_put_back(tiny: Any) -> None:
    model = load(tiny, "qwen2.5-vl")
    before = model.config.get_text_config()._attn_implementation
    with attention.packed_language_attention(model, torch.arange(4)[None]):
        assert model.config.get_text_config()._attn_implementation == attention.IMPLEMENTATION
    assert model.config.get_text_config()._attn_implementation == before


def test_models_without_gain_are_refused(tiny: Any) -> None:
    model = load(tiny, "gemma3")
    assert not attention.vision_gains(model)
    with pytest.raises(ValueError, match="no use for variable-length"):
        attention.use_varlen_vision(model)


def test_the_kernel_is_not_used_where_there_is_none() -> None:
    assert "cpu" in str(attention.kernel_obstacle(torch.device("cpu"), torch.bfloat16))


def test_masks_and_dropout_are_refused() -> None:
    states = torch.zeros(1, 2, 4, 8)
    layer = torch.nn.Identity()
    with pytest.raises(ValueError, match="without mask and dropout"):
        attention.varlen_attention(layer, states, states, states, None, dropout=0.1)
    with pytest.raises(ValueError, match="without mask and dropout"):
        attention.varlen_attention(layer, states, states, states, torch.ones(1, 4))
    with pytest.raises(ValueError, match="needs cu_seq_lens_q, or a packed batch"):
        attention.varlen_attention(layer, states, states, states, None)


@pytest.mark.parametrize("tokens", [5, 40])
def test_the_loss_at_supervised_positions_is_the_whole_loss(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("vlmtrain.speed.loss._CHUNK", 16)
    hidden = torch.randn(3, 60, 8, requires_grad=True)
    head = torch.nn.Linear(8, 100, bias=False)
    labels = torch.full((3, 60), IGNORE_INDEX)
    for row in range(3):
        labels[row, 10 + row : 10 + row + tokens] = torch.randint(100, (tokens,))
    whole = torch.nn.functional.cross_entropy(
        head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=IGNORE_INDEX
    )
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    positions, kept, targets = keep_supervised(labels)
    assert len(positions) == tokens + 2
    assert len(kept) == len(targets) == 3 * tokens
    total = sum_of_losses(hidden[:, positions], head, kept, targets)
    actual = torch.autograd.grad(total, [hidden, head.weight])
    torch.testing.assert_close(total, whole)
    for first, second in zip(expected, actual, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
