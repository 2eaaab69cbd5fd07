"""Runs that go wrong on the way: ended where nothing can be learned any more, warned of where it may be so."""

from __future__ import annotations

import json
import math

import pytest

from vlmtrain.divergence import DivergedError, GradientWatch
from vlmtrain.training import fit


def step(number: int, norm: float, loss: float = 2.0) -> tuple[int, dict[str, float]]:
    return number, {"loss": loss, "grad_norm": norm}


def test_a_gradient_a_thousand_times_the_usual_is_told_of_once() -> None:
    watch = GradientWatch()
    # what a run of Gemma 3 had whose backward pass was wrong
    assert watch.look(*step(1, 3.86)) is None
    warning = watch.look(*step(2, 11594.34))
    assert warning is not None
    assert warning.startswith("warning: step 2: the gradient's norm is 1.159e+04, 3,004 times that of the steps before")
    assert watch.look(*step(3, 90000.0)) is None


def test_ordinary_runs_are_left_alone() -> None:
    watch = GradientWatch()
    # a bad batch, a long decline, an overflow that the loss scaling of float16 skips, an evaluation
    for number, norm in enumerate([4.0, 250.0, 3.0, math.inf, 0.5, 0.01, 0.02], start=1):
        assert watch.look(*step(number, norm)) is None
    assert watch.look(8, {"eval_loss": 1.2}) is None


def test_a_gradient_of_zero_is_told_of() -> None:
    watch = GradientWatch()
    assert watch.look(*step(1, 0.0)) == "warning: step 1: the gradient is zero, nothing is learned"
    assert watch.look(*step(2, 0.0)) is None
    assert watch.look(*step(3, 5.0)) is None


@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_a_loss_that_is_no_number_ends_the_run(name: str) -> None:
    with pytest.raises(DivergedError, match=rf"step 7: the {name.replace('_', ' ')} is nan.*smaller --lr"):
        GradientWatch().look(7, {name: math.nan})


def test_a_run_with_too_large_a_rate_ends_in_words(settings, tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"step \d+: the loss is (nan|inf)"):
        fit(settings(max_steps=12, eval_steps=12, lr=1e30, warmup=0.0, max_grad_norm=1e30, out=out))
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not math.isfinite(logged[-1]["loss"])
    assert logged[-1]["step"] < 12
