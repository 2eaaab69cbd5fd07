"""Language layers that an older torch would compile into garbage are not compiled."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmtrain import arrangement
from vlmtrain.speed.compiler_race import race_of

OLD, MENDED = "2.13.0+cu130", "2.14.1+cu130"


@pytest.fixture(autouse=True)
def compiling() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")


def build(tiny: Any, family: str, head_dim: int) -> Any:
    config = AutoConfig.from_pretrained(tiny(family))
    config.get_text_config().head_dim = head_dim
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize(
    ("version", "family", "head_dim", "races"),
    [
        (OLD, "gemma3", 256, True),
        (MENDED, "gemma3", 256, False),
        # threads are the same with narrower heads
        (OLD, "gemma3", 128, False),
        (OLD, "qwen3-vl", 128, False),
        # and nothing is read back where heads are not normalised
        (OLD, "llava-1.5", 256, False),
    ],
)
def test_wide_normalised_heads_race_before_torch_2_14(
    version: str, family: str, head_dim: int, races: bool, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    reason = race_of(build(tiny, family, head_dim))
    assert (reason is not None) is races
    assert reason is None or "256 channels" in reason


@pytest.mark.parametrize(("backend", "stopped"), [("unsloth", True), ("transformers", False)])
def test_nothing_is_compiled_then(backend: str, stopped: bool, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrangement, "race_of", lambda _: "it races")
    weight = SimpleNamespace(device=torch.device("cuda"))
    loaded: Any = SimpleNamespace(model=SimpleNamespace(parameters=lambda: iter([weight])))
    said: list[str] = []
    compiles, blocks = arrangement._choose_compilation(
        settings(compile_vision="on" if stopped else "off"),
        SimpleNamespace(COMPILES=backend == "unsloth"),  # type: ignore[arg-type]
        loaded,
        500,
        said.append,
        frozen=False,
    )
    assert (compiles, blocks) == (False, None)
    assert said == (["compiled layers: none in this run, as it races (docs/speed.md)"] if stopped else [])
    calls = []
    torch.compile(lambda x: x + 1, backend=lambda graph, _: calls.append(1) or graph)(torch.ones(1))
    assert bool(calls) is not stopped
