"""Which attention a run's vision tower gets, what is said of it, and how torch's kernel is called."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from transformers import AutoModelForImageTextToText

from vlmdata.errors import ConfigError
from vlmtrain import arrangement
from vlmtrain.speed import attention


@pytest.fixture
def choose(tiny: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chooses for a family on a device with or without kernels; gives what was switched on, and what was said."""

    def run(family: str, wanted: str, *, kernel: str | None = None, windows: str | None = None) -> tuple[Any, str]:
        monkeypatch.setattr(arrangement, "kernel_obstacle", lambda device, dtype: kernel)
        monkeypatch.setattr(arrangement, "window_obstacle", lambda *_: windows)
        switched: list[bool] = []
        monkeypatch.setattr(arrangement, "use_varlen_vision", lambda model, *, in_windows: switched.append(in_windows))
        model = AutoModelForImageTextToText.from_pretrained(tiny(family))
        said: list[str] = []
        loaded: Any = SimpleNamespace(model=model, dtype=torch.bfloat16)
        has_kernel = arrangement._choose_attention(settings(attention=wanted), loaded, said.append)
        assert has_kernel is (kernel is None)
        return switched, "; ".join(said)

    return run


def test_windows_get_their_kernels_only_where_nothing_was_asked_for(choose: Any) -> None:
    switched, said = choose("qwen2.5-vl", "auto")
    assert switched == [True]
    assert "all pictures in one call; within windows of" in said
    switched, said = choose("qwen2.5-vl", "auto", windows="triton is not installed")
    assert switched == [False]
    assert said.endswith("all pictures in one call, windows like pictures: triton is not installed")
    switched, said = choose("qwen2.5-vl", "varlen")
    assert switched == [False]
    assert said == "vision attention: variable-length, all pictures in one call"


def test_towers_without_windows_say_nothing_of_them(choose: Any) -> None:
    assert choose("pixtral", "auto") == ([False], "vision attention: variable-length, all pictures in one call")
    assert choose("llama3.2-vision", "auto") == (
        [False],
        "vision attention: variable-length, all pictures in two calls, without a mask",
    )


@pytest.mark.parametrize(("wanted", "kernel"), [("loop", None), ("auto", "the device is a cpu")])
def test_transformers_own_attention_is_said_with_its_reason(choose: Any, wanted: str, kernel: str | None) -> None:
    reason = kernel or "asked for"
    assert choose("qwen2.5-vl", wanted, kernel=kernel) == ([], f"vision attention: transformers' own ({reason})")


def test_what_was_asked_for_runs_without_the_kernel_too(choose: Any) -> None:
    switched, said = choose("pixtral", "varlen", kernel="the device is a cpu")
    assert switched == [False]
    assert said.endswith("in one call, sequence by sequence: the device is a cpu")


def test_a_tower_that_gains_nothing_stays_as_it_is(choose: Any) -> None:
    assert choose("gemma3", "auto") == ([], "")
    with pytest.raises(ConfigError, match="one picture at a time"):
        choose("gemma3", "varlen")


def test_torchs_kernel_is_given_bounds_of_queries_and_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def varlen_attn(
        query: Any, key: Any, value: Any, of_queries: Any, of_keys: Any, longest: int, longest_keys: int, **options: Any
    ) -> torch.Tensor:
        calls.append((of_queries.tolist(), of_keys.tolist(), longest, longest_keys, key.shape[1], options))
        return query

    def newest(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        options = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
        return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)

    def oldest(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, is_causal: bool = False
    ) -> torch.Tensor:
        return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=is_causal)

    query, states = torch.ones(3, 4, 16), torch.ones(5, 2, 16)
    bounds, of_keys = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 5])
    for function in (newest, oldest):
        monkeypatch.setattr(varlen, "varlen_attn", function)
        kernel = attention._find_kernel()
        assert kernel is not None
        out = kernel(query, states, states, bounds, 8, scale=0.5, causal=True, key_bounds=of_keys)
        kernel(states, states, states, of_keys, 8, scale=0.25, causal=False)
        # what has no scale of its own gets queries that make up for it
        assert out.unique().tolist() == [1.0 if function is newest else 0.5 * 16**0.5]
    assert calls == [
        ([0, 1, 3], [0, 2, 5], 8, 8, 2, {"scale": 0.5, "window_size": (-1, 0), "enable_gqa": True}),
        ([0, 2, 5], [0, 2, 5], 8, 8, 2, {"scale": 0.25, "window_size": (-1, -1), "enable_gqa": False}),
        ([0, 1, 3], [0, 2, 5], 8, 8, 4, {"is_causal": True}),
        ([0, 2, 5], [0, 2, 5], 8, 8, 2, {"is_causal": False}),
    ]
