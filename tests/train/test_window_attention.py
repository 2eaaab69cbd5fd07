"""Kernels for attention within windows, run by Triton's interpreter on a CPU, against plain attention."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vlmtrain.speed.window_attention import LONGEST_WINDOW, window_obstacle


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("triton")
    from vlmtrain.tiny import make_tiny

    folder = tmp_path_factory.mktemp("windows")
    make_tiny("qwen2.5-vl", folder / "model", hidden_size=64, layers=1, vision_hidden_size=64, vision_layers=3)
    command = [sys.executable, Path(__file__).parent / "window_session.py", folder / "model", folder / "report.json"]
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return result


def test_outputs_and_gradients_are_those_of_plain_attention(report: dict[str, Any]) -> None:
    for ways in report["plain"]:
        assert 0 < ways["kernels"]["output"] < 1e-6
        assert 0 < ways["kernels"]["gradient"] < 1e-6


def test_in_16_bit_they_are_no_further_from_32_bit_than_plain_attention(report: dict[str, Any]) -> None:
    for ways in report["plain"]:
        for what in ("output", "gradient"):
            assert ways["kernels in 16 bit"][what] <= 1.1 * ways["plain in 16 bit"][what] < 2e-3


def test_a_tower_has_the_outputs_and_gradients_of_transformers(report: dict[str, Any]) -> None:
    tower = report["tower"]
    assert tower["calls"] == tower["blocks in windows"] > 0
    assert tower["longest"] == tower["said to be longest"] == LONGEST_WINDOW
    assert len(tower["differences"]) > 20
    for name, difference in tower["differences"].items():
        assert difference < 1e-5, name


def test_the_operator_keeps_what_torch_asks_of_one(report: dict[str, Any]) -> None:
    assert set(report["operator"].values()) == {"SUCCESS"}


def obstacle(
    device: str = "cuda", dtype: torch.dtype = torch.bfloat16, tokens: int = 64, channels: int = 80
) -> str | None:
    return window_obstacle(torch.device(device), dtype, tokens, channels)


def test_what_the_kernels_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no GPU" in str(obstacle("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert obstacle() is None
    assert "float32" in str(obstacle(dtype=torch.float32))
    assert "65 patches" in str(obstacle(tokens=65))
    assert "81 channels" in str(obstacle(channels=81))
    assert "130 channels" in str(obstacle(channels=130))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "triton" in str(obstacle())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "8.0" in str(obstacle())


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_the_kernels_are_made_for_gpus(name: str, capability: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vlmtrain.speed import window_kernels

    kernel = getattr(window_kernels, name)
    kinds = {"cos": "*fp32", "sin": "*fp32", "boundaries": "*i32", "scale": "fp32"}
    sizes = {"HEADS": 16, "HALF": 40, "TOKENS": LONGEST_WINDOW, "COLUMNS": 64}
    names = kernel.arg_names
    signature = {each: "constexpr" if each in sizes else kinds.get(each, "*bf16") for each in names}
    constants = {(names.index(each),): value for each, value in sizes.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": window_kernels._WARPS}
    )
    assert len(made.asm["cubin"]) > 1000
