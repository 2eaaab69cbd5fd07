"""Whole runs arranged in other ways: the same losses as the plain run on the same global batches."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vlmdata.errors import ConfigError
from vlmtrain.speed.timing import StepClock
from vlmtrain.speed.trainer import ArrangedSteps
from vlmtrain.training import Stopped, fit

# All 24 rows make one step, so that every arrangement has the same global batches.
WHOLE = {"batch_size": 24, "grad_accum": 1, "max_steps": 3}


def logs_of(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module")
def plain(colours: Path, tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlmtrain.config import FitConfig

    out = tmp_path_factory.mktemp("plain") / "run"
    values = {"data": colours, "model": str(tiny_qwen), "out": out, "lr": 1e-2, "warmup": 0.0}
    return fit(FitConfig.from_values(values | WHOLE | {"backend": "transformers"})).path


@pytest.mark.parametrize(
    "how",
    [
        {"batching": "packed", "attention": "varlen", "loss_on": "supervised"},
        {"batching": "packed", "micro_batch": 6},
        {"batching": "length", "micro_batch": 4, "loss_on": "supervised"},
        {"batching": "packed", "batch_tokens": 200, "batch_size": 24, "grad_accum": 100},
    ],
    ids=lambda how: "-".join(str(value) for value in how.values()),
)
def test_arrangements_learn_what_the_plain_run_learns(how: dict[str, Any], settings: Any, plain: Path) -> None:
    run = fit(settings(**(WHOLE | how))).path
    assert logs_of(run, "loss") == pytest.approx(logs_of(plain, "loss"), rel=2e-4)
    assert logs_of(run, "grad_norm") == pytest.approx(logs_of(plain, "grad_norm"), rel=2e-3)
    assert logs_of(run, "eval_loss") == pytest.approx(logs_of(plain, "eval_loss"), rel=2e-4)


def test_the_time_of_a_step_is_logged(plain: Path) -> None:
    seconds, waiting = logs_of(plain, "step_seconds"), logs_of(plain, "waiting_seconds")
    assert len(seconds) == len(waiting) == 3
    assert all(0 < wait < second for wait, second in zip(waiting, seconds, strict=True))
    assert all(rate > 0 for rate in logs_of(plain, "tokens_per_second"))


def test_a_packed_run_goes_on_where_it_stopped(settings: Any, tmp_path: Path, monkeypatch: Any) -> None:
    how = {"batching": "packed", "batch_size": 4, "grad_accum": 2, "max_steps": 5, "eval_steps": 5}
    whole = fit(settings(**how, out=tmp_path / "whole")).path
    with monkeypatch.context() as patched:
        # the time is read once a step, after the check for signals
        read, steps = StepClock.read, []

        def read_and_stop(clock: StepClock) -> dict[str, float]:
            steps.append(clock)
            if len(steps) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return read(clock)

        patched.setattr(StepClock, "read", read_and_stop)
        with pytest.raises(Stopped, match="after step 2 of 5"):
            fit(settings(**how, out=tmp_path / "part"))
    resumed = fit(settings(**how, out=tmp_path / "part"), resume=True).path
    assert logs_of(resumed, "loss") == logs_of(whole, "loss")


def test_what_cannot_be_arranged_is_said(settings: Any, tiny: Any) -> None:
    with pytest.raises(ConfigError, match="micro_batch 5 does not divide the global batch of 24 rows"):
        fit(settings(**WHOLE, micro_batch=5))
    with pytest.raises(ConfigError, match="rows of a gemma3 model cannot be packed; use 'length'"):
        fit(settings(model=str(tiny("gemma3")), batching="packed"))
    with pytest.raises(ConfigError, match="attends to one picture at a time"):
        fit(settings(model=str(tiny("gemma3")), attention="varlen"))


def test_tokens_of_all_processes_are_counted_in_the_exchange_that_is_made_anyway() -> None:
    asked = []

    class Other(SimpleNamespace):
        """Stands for accelerate in a group of two: the other process has 3 supervised tokens of 50."""

        def gather(self, counts: torch.Tensor) -> torch.Tensor:
            asked.append(counts)
            return torch.cat([counts, torch.tensor([[3, 50]])])

    steps = ArrangedSteps.__new__(ArrangedSteps)
    steps.clock, steps.accelerator = StepClock(), Other()
    steps.args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    batch = {"input_ids": torch.zeros(2, 10), "labels": torch.tensor([[-100] * 9 + [5]] * 2)}
    batches, items = steps.get_batch_samples(iter([batch, batch, batch]), 2)
    assert len(batches) == 2
    assert int(items) == 3 + 2 * 2
    assert len(asked) == 1
    figures = steps.clock.read()
    assert figures["tokens_per_second"] * figures["step_seconds"] == pytest.approx(50 + 2 * 20, rel=0.2)
