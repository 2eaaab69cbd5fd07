"""Passes tried before the first step: they leave nothing behind, and find compiled layers with wrong gradients."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlmtrain.collator import VisionCollator
from vlmtrain.speed import trials
from vlmtrain.speed.batches import BatchPlan
from vlmtrain.speed.trainer import Arrangement
from vlmtrain.speed.trials import TrialPass, keep_compiled_if_right


@pytest.fixture(autouse=True)
def compiling() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def trial(tiny_qwen: Any, chat_of: Any, unlike_rows: Any) -> TrialPass:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen, dtype=torch.float32)
    plan = BatchPlan(lengths=np.ones(2, dtype=np.int64), rows=2, passes=1)
    collate = VisionCollator(chat_of("qwen2.5-vl"), dtype=torch.float32)
    loaded: Any = SimpleNamespace(model=model, dtype=torch.float32)
    return TrialPass(unlike_rows[:2], loaded, Arrangement(plan=plan, collate=collate))


def compile_head(trial: TrialPass, factor: float) -> None:
    """Compiles the output head with a compiler whose results are off by a factor, and the gradients with them."""

    def compiler(graph: Any, inputs: Any) -> Any:
        return lambda *values: [factor * each for each in graph(*values)]

    head = trial._loaded.model.lm_head
    head.forward = torch.compile(head.forward, backend=compiler)


def test_a_trial_leaves_gradients_and_random_numbers_as_they_were(trial: TrialPass) -> None:
    before = torch.random.get_rng_state()
    trial.run()
    norm = trial.gradient_norm()
    assert all(each.grad is None for each in trial._loaded.model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)
    model = trial._loaded.model
    model(**trial._batch, use_cache=False).loss.backward()
    assert norm == pytest.approx(float(torch.cat([w.grad.flatten() for w in model.parameters()]).norm()), rel=1e-4)


def test_compiled_layers_that_are_right_stay(trial: TrialPass) -> None:
    compile_head(trial, 1.0)
    said: list[str] = []
    assert keep_compiled_if_right(trial, said.append)
    assert said == [
        "compiled layers: gradients of the first pass have 1.00 times the norm that they have without compiling"
    ]


def test_compiled_layers_with_wrong_gradients_do_not(trial: TrialPass) -> None:
    expected = trial.gradient_norm()
    compile_head(trial, 300.0)
    assert trial.gradient_norm() > 2 * expected
    said: list[str] = []
    assert not keep_compiled_if_right(trial, said.append)
    assert "nothing is compiled in this run" in said[0]
    # from here on, what was compiled runs as it is
    assert trial.gradient_norm() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("norms", "right"),
    [((3.0, 3.1), True), ((3.0, 0.0), False), ((0.0, 0.0), True), ((0.0, 3.0), False), ((float("nan"), 3.0), False)],
)
def test_norms_of_nothing_and_of_no_number_are_compared_too(norms: tuple[float, float], right: bool) -> None:
    remaining = iter(norms)
    trial: Any = SimpleNamespace(gradient_norm=lambda: next(remaining))
    assert keep_compiled_if_right(trial, print) is right


def test_one_process_with_wrong_gradients_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "gather", lambda ratio: [ratio, 40.0, None])
    trial: Any = SimpleNamespace(gradient_norm=lambda: 3.0)
    said: list[str] = []
    assert not keep_compiled_if_right(trial, said.append)
    assert "40.00 times" in said[0]


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize(
    ("error", "obstacle"),
    [(torch.OutOfMemoryError(), "takes more memory than there is"), (RuntimeError("no\nkernel"), "fails: no kernel")],
)
def test_a_pass_that_cannot_run_is_not_compared(error: Exception, obstacle: str, failing: int) -> None:
    passes: list[float] = []

    def gradient_norm() -> float:
        passes.append(3.0)
        if len(passes) == failing:
            raise error
        return 3.0

    trial: Any = SimpleNamespace(gradient_norm=gradient_norm)
    said: list[str] = []
    assert keep_compiled_if_right(trial, said.append)
    assert said == [f"compiled layers: their gradients are not checked, a pass {obstacle}"]
