"""Llama 3.2's vision tower without its mask: the same features and gradients, whatever tiles are padding."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.models.mllama.modeling_mllama import _prepare_aspect_ratio_attention_mask

from vlmtrain.collator import VisionCollator
from vlmtrain.speed import attention, tile_attention
from vlmtrain.speed.compiled_blocks import compile_vision_blocks

TILES = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.fixture
def model(tiny: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny("llama3.2-vision"), dtype=torch.float32).train()
    for name, weight in model.named_parameters():
        if "gate" in name and weight.numel() == 1:
            # a new model's gates are shut
            weight.data.fill_(0.5)
    return model


@pytest.fixture
def pictures(model: Any) -> torch.Tensor:
    vision = model.config.vision_config
    return torch.randn(len(TILES), 1, vision.max_num_tiles, 3, vision.image_size, vision.image_size)


def run_tower(model: Any, pictures: torch.Tensor, tiles: list[list[int]]) -> list[torch.Tensor]:
    tower = model.model.vision_model
    mask = torch.tensor(tiles)[:, None]
    out = tower(pictures, torch.tensor([[1], [2], [6]]), aspect_ratio_mask=mask).last_hidden_state
    trained = [weight for weight in tower.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(out.square().sum(), trained, allow_unused=True)
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


def test_features_and_gradients_are_those_with_the_mask(
    model: Any, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run_tower(model, pictures, TILES)
    calls: list[list[int]] = []
    original = attention._sequence_by_sequence

    def counted(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments[2].diff().tolist())
        return original(query, *arguments, **options)

    monkeypatch.setattr(attention, "_sequence_by_sequence", counted)
    attention.use_varlen_vision(model)
    actual = run_tower(model, pictures, TILES)
    assert len(actual) == len(expected) > 20
    for left, right in zip(expected, actual, strict=True):
        torch.testing.assert_close(right, left, rtol=1e-4, atol=float(1e-5 * left.abs().max()))
    # of each picture the tokens of its tiles, and those of the padding, in two calls a block
    vision = model.config.vision_config
    patches = model.model.vision_model.num_patches
    real = [patches * sum(tiles) for tiles in TILES]
    tokens = 4 * (-(-patches // 8) * 8)
    assert calls == [real, [tokens - count for count in real]] * (vision.num_hidden_layers + vision.num_global_layers)


def test_the_layout_says_what_the_mask_says() -> None:
    tokens, patches = 16, 13
    layout = tile_attention.TileLayout.of(TILES, tokens, patches, torch.device("cpu"))
    mask = _prepare_aspect_ratio_attention_mask(torch.tensor(TILES), patches, tokens, torch.float32)[:, 0]
    # padding is what does not see itself
    padding = torch.diagonal(mask, dim1=1, dim2=2) < 0
    kept = (~padding).flatten().nonzero().flatten()
    assert torch.equal(layout.real, kept)
    assert torch.equal(layout.order.sort().values, torch.arange(padding.numel()))
    assert torch.equal(layout.order[layout.back], torch.arange(padding.numel()))
    assert layout.real_bounds.diff().tolist() == (~padding).sum(1).tolist()
    assert layout.rest_bounds.diff().tolist() == padding.sum(1).tolist()


def test_a_model_has_the_loss_of_transformers_with_rows_of_unlike_pictures(
    model: Any, chat_of: Any, unlike_rows: Any
) -> None:
    batch = VisionCollator(chat_of("llama3.2-vision"), dtype=torch.float32)(unlike_rows[:3])
    # places of rows with fewer pictures than the largest
    assert (batch["aspect_ratio_ids"] == 0).any()
    expected = model(**batch).loss
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    attention.use_varlen_vision(model)
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=float(1e-5 * largest), msg=name)


def test_blocks_are_compiled_for_any_number_of_tiles(
    model: Any, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attend(query: Any, key: Any, value: Any, boundaries: Any, *_: Any, scale: float, **__: Any) -> torch.Tensor:
        """Stands in for the kernel, which a CPU has not; the one by sequences looks at lengths, and is not traced."""
        return query * scale + key.mean() + value.mean() + boundaries.sum()

    monkeypatch.setattr(attention, "_attend", attend)
    attention.use_varlen_vision(model)
    numbers = [TILES, [[1, 1, 0, 0], *TILES[1:]], [[1, 0, 0, 0]] * 3]
    expected = [run_tower(model, pictures, tiles) for tiles in numbers]
    said: list[str] = []
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_vision_blocks(model, said.append, make_traceable=lambda _: contextlib.nullcontext, backend=count)
    for tiles, values in zip(numbers, expected, strict=True):
        for left, right in zip(values, run_tower(model, pictures, tiles), strict=True):
            torch.testing.assert_close(right, left)
    assert said == []
    # two kinds of blocks: for the first number of tiles, and for any
    assert len(graphs) == 4


def test_attention_without_a_tower_around_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_attention, "_current", tile_attention._Current())
    attend = tile_attention.make_tile_attention(attention._sequence_by_sequence)
    states = torch.zeros(1, 2, 8, 4)
    with pytest.raises(ValueError, match="a tower around it"):
        attend(torch.nn.Identity(), states, states, states, None)
