"""cuDNN's attention is left where heads are wide, and lengths are rounded where it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from vlmtrain.speed.cudnn import leave_for_wide_heads, prefers_cudnn

HOPPER = (9, 0)


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def model_on(device: str, tiny: Any, family: str, head_dim: int | None = None) -> Any:
    config = AutoConfig.from_pretrained(tiny(family))
    if head_dim is not None:
        config.get_text_config().head_dim = head_dim
    weight = SimpleNamespace(device=torch.device(device))
    return SimpleNamespace(config=config, parameters=lambda: iter([weight]))


def test_heads_of_256_channels_go_without_on_hopper(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: HOPPER)
    assert leave_for_wide_heads(model_on("cuda", tiny, "gemma3", 256)) == 256
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    # and attention that plans by no length needs no rounding
    assert not prefers_cudnn(torch.device("cuda"))


@pytest.mark.parametrize(
    ("device", "capability", "head_dim"), [("cpu", HOPPER, 256), ("cuda", (8, 9), 256), ("cuda", HOPPER, 128)]
)
def test_others_stay(
    device: str, capability: tuple[int, int], head_dim: int, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert leave_for_wide_heads(model_on(device, tiny, "gemma3", head_dim)) == 0
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_every_family_tells_the_width_of_its_heads(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: HOPPER)
    monkeypatch.setattr("vlmtrain.speed.cudnn._MOST_CHANNELS", 0)
    for family in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "llama3.2-vision", "pixtral", "llava-1.5"):
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert leave_for_wide_heads(model_on("cuda", tiny, family)) % 8 == 0
        assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    ("device", "capability", "cudnn", "expected"),
    [
        ("cuda", HOPPER, True, True),
        ("cuda", (8, 9), True, False),
        ("cuda", HOPPER, False, False),
        ("cpu", HOPPER, True, False),
    ],
)
def test_gpus_on_which_torch_prefers_it(
    device: str, capability: tuple[int, int], cudnn: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    assert prefers_cudnn(torch.device(device)) == expected
