"""The loop: steps, loss over the global batch, and which weights move at which rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText

from made_rows import make_row
from vlmdata.errors import ConfigError
from vlmdata.shards import open_folder
from vlmtrain.collator import VisionCollator
from vlmtrain.layers import part_of
from vlmtrain.rows import open_rows, sample_indices
from vlmtrain.speed.batches import BatchPlan
from vlmtrain.trainer import plan_schedule
from vlmtrain.training import fit


def losses_of(run: Path) -> list[dict]:
    return [log for log in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in log]


@pytest.mark.parametrize(
    ("values", "rows", "steps", "steps_per_epoch"),
    [
        ({"batch_size": 2, "grad_accum": 4}, 24, 3, 3),
        ({"batch_size": 2, "grad_accum": 4}, 25, 4, 4),
        ({"batch_size": 2, "grad_accum": 4, "epochs": 2.5}, 24, 8, 3),
        ({"batch_size": 8, "grad_accum": 4}, 5, 1, 1),
        ({"batch_size": 2, "grad_accum": 4, "max_steps": 7, "epochs": 100.0}, 24, 7, 3),
    ],
)
def test_steps_are_counted(values, rows, steps, steps_per_epoch, settings) -> None:
    config = settings(**{"max_steps": None, "warmup": 0.03} | values)
    lengths = np.ones(rows, dtype=np.int64)
    plan = BatchPlan(lengths=lengths, rows=config.optimizer.batch_size, passes=config.optimizer.grad_accum)
    schedule = plan_schedule(config, plan.steps)
    assert (schedule.steps, schedule.steps_per_epoch) == (steps, steps_per_epoch)
    assert schedule.warmup_steps == 1
    assert schedule.eval_steps == 1


def test_evaluations_are_a_tenth_of_the_run_apart(settings) -> None:
    assert plan_schedule(settings(max_steps=500, warmup=0.03), 24).eval_steps == 50
    assert plan_schedule(settings(max_steps=500, warmup=0.03), 24).warmup_steps == 15
    assert plan_schedule(settings(max_steps=500, eval_steps=7), 24).eval_steps == 7


def test_an_epoch_takes_the_steps_that_were_planned(settings) -> None:
    run = fit(settings(max_steps=None, epochs=1.0, batch_size=5, grad_accum=2))
    report = json.loads(run.report.read_text())
    assert report["steps"] == 3
    assert [log["step"] for log in losses_of(run.path)] == [1, 2, 3]
    assert losses_of(run.path)[-1]["epoch"] == 1.0


def test_the_first_loss_is_the_mean_over_all_learned_tokens(settings, tiny_qwen, colours, chat_of) -> None:
    run = fit(settings(max_steps=1, batch_size=5, grad_accum=5))
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen)
    collate = VisionCollator(chat_of("qwen2.5-vl"), dtype=torch.float32)
    total, tokens = 0.0, 0
    for row in open_rows(open_folder(colours).split("train")):
        batch = collate([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[0, :-1]
        total += float(cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels >= 0).sum())
    # fresh adapters change nothing, and one step of 25 places takes all 24 rows
    assert losses_of(run.path)[0]["loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_accumulation_gives_the_loss_and_gradient_of_one_batch(settings, tmp_path) -> None:
    runs = {
        (rows, steps): fit(settings(max_steps=3, batch_size=rows, grad_accum=steps, out=tmp_path / f"{rows}x{steps}"))
        for rows, steps in ((8, 1), (2, 4), (1, 8))
    }
    whole = runs[8, 1]
    # conversations of one and two answers: a mean of the parts' means would differ
    rows = open_rows(open_folder(settings().data.data).split("train"))
    assert len({len(row["messages"]) for row in rows}) == 2
    for run in runs.values():
        for ours, reference in zip(losses_of(run.path), losses_of(whole.path), strict=True):
            assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)


def change_of(run, tiny_qwen) -> dict[str, float]:
    """The largest change of a weight, by part."""
    before, after = load_file(tiny_qwen / "model.safetensors"), load_file(run.weights / "model.safetensors")
    changes: dict[str, float] = {}
    for name, tensor in after.items():
        change = float((tensor.float() - before[name].float()).abs().max())
        changes[part_of(name)] = max(changes.get(part_of(name), 0.0), change)
    return changes


def test_the_vision_towers_rate_is_its_own(settings, tiny_qwen, tmp_path) -> None:
    common = {"method": "full", "max_steps": 2, "weight_decay": 0.0}
    still = change_of(fit(settings(**common, lr=1e-2, vision_lr=1e-12)), tiny_qwen)
    assert still["vision"] < 1e-8
    # the connector lies inside Qwen's vision tower, and moves with the language model
    assert min(still["connector"], still["language"], still["head"]) > 1e-3
    moving = change_of(fit(settings(**common, lr=1e-12, vision_lr=1e-2, out=tmp_path / "other")), tiny_qwen)
    assert moving["vision"] > 1e-3
    assert max(moving["connector"], moving["language"], moving["head"]) < 1e-8


def test_adapters_of_the_vision_tower_have_their_rate_too(settings) -> None:
    run = fit(settings(max_steps=2, vision_lr=1e-12))
    # the B side of an adapter begins at zero
    sides = {n: float(t.abs().max()) for n, t in load_file(run.weights / "adapter_model.safetensors").items()}
    ups = {n: size for n, size in sides.items() if "lora_B" in n}
    assert {part_of(n) for n in ups} == {"vision", "language"}
    assert max(size for n, size in ups.items() if part_of(n) == "vision") < 1e-8
    assert min(size for n, size in ups.items() if part_of(n) == "language") > 1e-4


def test_biases_and_gains_do_not_decay(settings, tiny_qwen) -> None:
    # so large that what decays is gone after a step, and so slow that nothing else moves
    run = fit(settings(method="full", max_steps=1, lr=1e-6, vision_lr=1e-6, weight_decay=1e6))
    before, after = load_file(tiny_qwen / "model.safetensors"), load_file(run.weights / "model.safetensors")
    for name, tensor in after.items():
        if tensor.ndim > 1:
            assert float(tensor.abs().max()) < 1e-4, name
        else:
            assert torch.allclose(tensor, before[name], atol=1e-5), name


def test_a_training_argument_that_trl_dropped_is_said(settings, monkeypatch) -> None:
    from vlmtrain import trainer

    arguments = trainer._training_arguments
    monkeypatch.setattr(trainer, "_training_arguments", lambda *a, **k: arguments(*a, **k) | {"group_by_lenght": True})
    with pytest.raises(ConfigError, match="this version of trl does not know the training arguments group_by_lenght"):
        fit(settings())


def test_rows_are_drawn_once_in_rising_order() -> None:
    assert sample_indices(5, 9, seed=1) == [0, 1, 2, 3, 4]
    drawn = sample_indices(1000, 20, seed=1)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 20
    assert drawn == sample_indices(1000, 20, seed=1) != sample_indices(1000, 20, seed=2)


def test_the_evaluation_loss_is_the_mean_over_all_learned_tokens(settings, tiny_qwen, build, chat_of) -> None:
    # answers of one and of many tokens, in batches that do not divide them evenly
    val = [make_row(i, turns=1 + 3 * (i % 2)) for i in range(5)]
    data = build([make_row(i) for i in range(4)], val=val)
    run = fit(settings(data=data, max_steps=1, lr=1e-12, batch_size=2))
    model = AutoModelForImageTextToText.from_pretrained(tiny_qwen)
    collate = VisionCollator(chat_of("qwen2.5-vl"), dtype=torch.float32)
    total, tokens = 0.0, 0
    for row in open_rows(open_folder(data).split("val")):
        batch = collate([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            total += float(cross_entropy(model(**batch).logits[0, :-1], labels, reduction="sum"))
        tokens += int((labels >= 0).sum())
    [evaluated] = [
        log["eval_loss"] for log in map(json.loads, run.metrics.read_text().splitlines()) if "eval_loss" in log
    ]
    assert evaluated == pytest.approx(total / tokens, rel=1e-5)
