"""cuDNN's attention is left where heads are wide, and lengths are rounded where it is taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmtrain.speed import cudnn
from vlmtrain.speed.cudnn import IMPLEMENTATION, leave_for_wide_heads, takes_cudnn

HOPPER = (9, 0)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: HOPPER)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True)


def model_on(device: str, tiny: Any, family: str, head_dim: int | None = None, attention: str = "sdpa") -> Any:
    config = AutoConfig.from_pretrained(tiny(family), attn_implementation=attention)
    if head_dim is not None:
        config.get_text_config().head_dim = head_dim
    weight = SimpleNamespace(device=torch.device(device))
    return SimpleNamespace(config=config, parameters=lambda: iter([weight]))


def test_heads_of_256_channels_go_without_on_hopper(tiny: Any) -> None:
    model = model_on("cuda", tiny, "gemma3", 256)
    assert takes_cudnn(model)
    assert leave_for_wide_heads(model) == 256
    assert model.config.get_text_config()._attn_implementation == IMPLEMENTATION
    # narrow heads of the tower keep it
    assert model.config.vision_config._attn_implementation == "sdpa"
    # and attention that plans by no length needs no rounding
    assert not takes_cudnn(model)


@pytest.mark.parametrize(
    ("device", "capability", "head_dim", "attention"),
    [
        ("cpu", HOPPER, 256, "sdpa"),
        ("cuda", (8, 9), 256, "sdpa"),
        ("cuda", HOPPER, 128, "sdpa"),
        ("cuda", HOPPER, 256, "eager"),
    ],
)
def test_others_stay(
    device: str,
    capability: tuple[int, int],
    head_dim: int,
    attention: str,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    model = model_on(device, tiny, "gemma3", head_dim, attention)
    assert leave_for_wide_heads(model) == 0
    assert model.config.get_text_config()._attn_implementation == attention


@pytest.mark.parametrize(
    "family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "llama3.2-vision", "pixtral", "llava-1.5"]
)
def test_every_family_tells_the_width_of_its_heads(family: str, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "_MOST_CHANNELS", 0)
    model = model_on("cuda", tiny, family)
    channels = leave_for_wide_heads(model)
    assert channels > 0
    assert channels % 8 == 0
    assert not takes_cudnn(model)


@pytest.mark.parametrize(
    ("device", "capability", "enabled", "expected"),
    [
        ("cuda", HOPPER, True, True),
        ("cuda", (8, 9), True, False),
        ("cuda", HOPPER, False, False),
        ("cpu", HOPPER, True, False),
    ],
)
def test_gpus_on_which_torch_takes_it(
    device: str,
    capability: tuple[int, int],
    enabled: bool,
    expected: bool,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: enabled)
    assert takes_cudnn(model_on(device, tiny, "gemma3")) == expected


class Watched(torch.fx.Interpreter):
    """Runs a graph, and notes at each attention whether cuDNN's was allowed."""

    def __init__(self, graph: torch.fx.GraphModule, allowed: list[bool]) -> None:
        super().__init__(graph)
        self.allowed = allowed

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.nn.functional.scaled_dot_product_attention:
            self.allowed.append(torch._C._get_cudnn_sdp_enabled())
        return super().call_function(target, args, kwargs)


def test_layers_of_one_graph_attend_without_it_and_learn_the_same(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny("gemma3"), dtype=torch.float32)
    text = model.config.get_text_config()
    ids = torch.randint(10, 200, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 20:] = 0

    def learn() -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=ids, token_type_ids=(ids < 60).long()).loss
        loss.backward()
        return float(loss.detach()), [each.grad for each in model.parameters() if each.grad is not None]

    loss, gradients = learn()
    monkeypatch.setattr(cudnn, "_MOST_CHANNELS", 0)
    monkeypatch.setattr(cudnn, "takes_cudnn", lambda _: True)
    assert leave_for_wide_heads(model)
    assert learn()[0] == loss
    allowed: list[bool] = []
    for layer in model.model.language_model.layers:
        layer.forward = torch.compile(
            layer.forward, fullgraph=True, backend=lambda graph, _: Watched(graph, allowed).run, dynamic=False
        )
    compiled_loss, compiled_gradients = learn()
    assert allowed == [False] * text.num_hidden_layers
    assert torch._C._get_cudnn_sdp_enabled()
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    for got, right in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(got, right)
