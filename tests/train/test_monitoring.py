"""What a run is watched and judged by: metrics of answers, the best checkpoint, an early end, other programs' logs."""

from __future__ import annotations

import json
import signal
import sys

import pytest
import torch

from made_rows import make_row
from vlmdata.errors import ConfigError, DataError, MissingDependencyError
from vlmtrain import val_loss
from vlmtrain.early_stop import evaluations_since_best, is_out_of_patience
from vlmtrain.inference import load_answering_model
from vlmtrain.loggers import check_loggers
from vlmtrain.metrics import score
from vlmtrain.preparation import prepare
from vlmtrain.training import Stopped, fit


def logs_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve_of(run) -> list[dict]:
    clock = ("runtime", "per_second", "seconds")
    return [{name: value for name, value in log.items() if not name.endswith(clock)} for log in logs_of(run)]


WATCHED = {"eval_metrics": ("exact_match,cer",), "eval_samples": 4, "eval_steps": 2}


@pytest.fixture(scope="module")
def watched(colours, tiny_qwen, tmp_path_factory):
    """A run whose val answers are scored at each evaluation; of all weights, so that it learns something."""
    from vlmtrain.config import FitConfig

    values = {"max_steps": 6, "batch_size": 4, "grad_accum": 2, "lr": 3e-3, "warmup": 0.0, "backend": "transformers"}
    values |= {"method": "full", "data": colours, "model": str(tiny_qwen)}
    values |= {**WATCHED, "best_metric": "cer", "out": tmp_path_factory.mktemp("runs") / "watched"}
    return fit(FitConfig.from_values(values))


def test_answers_are_scored_at_each_evaluation(watched) -> None:
    evaluations = [log for log in logs_of(watched.path) if "eval_loss" in log]
    assert [log["step"] for log in evaluations] == [2, 4, 6]
    lines = [json.loads(line) for line in watched.answers.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4 + [6] * 4
    # the same rows each time
    assert len({tuple(line["id"] for line in lines if line["step"] == step) for step in (2, 4, 6)}) == 1
    for log in evaluations:
        own = [line for line in lines if line["step"] == log["step"]]
        scores = score([line["answer"] for line in own], [line["references"] for line in own], ["exact_match", "cer"])
        assert log["eval_exact_match"] == pytest.approx(scores["exact_match"].value)
        assert log["eval_cer"] == pytest.approx(scores["cer"].value)


def test_the_best_checkpoint_is_that_of_the_metric(watched) -> None:
    values = {log["step"]: log["eval_cer"] for log in logs_of(watched.path) if "eval_cer" in log}
    report = json.loads(watched.report.read_text())
    assert report["best_metric"] == "cer"
    assert report["best_value"] == min(values.values()) == values[report["best_step"]]
    # of equally good ones the first
    assert report["best_step"] == min(step for step, value in values.items() if value == report["best_value"])
    assert (watched.checkpoints / "best").resolve().name == f"checkpoint-{report['best_step']}"
    assert (watched.checkpoints / "last").resolve().name == "checkpoint-6"
    assert not (watched.checkpoints / "last").readlink().is_absolute()


def test_answers_in_training_are_those_of_the_saved_weights(watched) -> None:
    from vlmdata.shards import open_folder
    from vlmtrain.held_out import Questions, answer_limit, read_eval_rows

    report = json.loads(watched.report.read_text())
    split = open_folder(report["data"]).split("val")
    rows = read_eval_rows(split, limit=4, seed=report["config"]["seed"])
    model = load_answering_model(str(watched.path))
    answers = model.answer(Questions(split, rows), max_new_tokens=answer_limit(model, rows), batch_size=2)
    lines = [json.loads(line) for line in watched.answers.read_text().splitlines()]
    assert answers == [line["answer"] for line in lines if line["step"] == report["best_step"]]


def test_answering_does_not_change_what_is_learned(settings, tmp_path) -> None:
    # dropout draws random numbers
    plain = fit(settings(dropout=0.2, max_steps=4, eval_steps=1, out=tmp_path / "plain"))
    asked = fit(settings(dropout=0.2, max_steps=4, eval_steps=1, out=tmp_path / "asked", eval_metrics=("cer",)))
    for ours, other in zip(logs_of(asked.path), logs_of(plain.path), strict=True):
        assert ours.get("loss") == other.get("loss")
        assert ours.get("eval_loss") == other.get("eval_loss")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_stopped_run_with_answers_goes_on_as_if_it_had_not_been(method, settings, tmp_path, stop_at) -> None:
    # two and a half epochs, steps of two passes, evaluations between
    values = {**WATCHED, "method": method, "dropout": 0.1, "best_metric": "exact_match", "lr": 3e-3}
    values |= {"max_steps": None, "epochs": 2.5, "batch_size": 4, "grad_accum": 2}
    whole = fit(settings(**values, out=tmp_path / "whole"))
    with stop_at(5), pytest.raises(Stopped, match="after step 5 of 8"):
        fit(settings(**values))
    resumed = fit(settings(**values), resume=True)
    # transformers sums its speed up once, and counts from where it went on
    assert curve_of(resumed.path)[:-1] == curve_of(whole.path)[:-1]
    assert resumed.answers.read_text() == whole.answers.read_text()
    for name in ("best", "last"):
        assert (resumed.checkpoints / name).readlink() == (whole.checkpoints / name).readlink()
    states = [
        torch.load(run.checkpoints / "last" / "optimizer.pt", weights_only=True)["state"] for run in (whole, resumed)
    ]
    for key, moments in states[0].items():
        for name, value in moments.items():
            assert torch.equal(value, states[1][key][name])


def test_a_run_without_progress_ends_early(settings, monkeypatch, capsys) -> None:
    scripted = iter([5.0, 3.0, 4.0, 3.0])
    monkeypatch.setattr(val_loss, "measure_loss", lambda _: next(scripted))
    run = fit(settings(patience=2, eval_steps=1))
    assert "ending early: 2 evaluations in a row without a better eval_loss" in capsys.readouterr().out
    report = json.loads(run.report.read_text())
    assert (report["steps"], report["planned_steps"], report["best_step"]) == (4, 6, 2)
    # gone on with, it is still at its end
    again = fit(settings(patience=2, eval_steps=1), resume=True)
    assert json.loads(again.report.read_text())["steps"] == 4
    assert [log["step"] for log in logs_of(run.path) if "loss" in log] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("values", "higher", "since"),
    [([], False, 0), ([3.0], True, 0), ([3, 2, 2], False, 1), ([3, 2, 2], True, 2), ([1, 2, 3], True, 0)],
)
def test_evaluations_since_the_best(values, higher, since) -> None:
    assert evaluations_since_best(values, higher_is_better=higher) == since
    log = [{"loss": 1.0}, *({"eval_x": value} for value in values)]
    assert is_out_of_patience(log, "eval_x", higher_is_better=higher, patience=2) == (since >= 2)
    assert not is_out_of_patience(log, "eval_x", higher_is_better=higher, patience=None)


def test_settings_that_do_not_go_together(settings) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(eval_metrics=("exact_mach,cer",), best_metric="wer", patience=0, report_to=("wandbb",), gpus=0)
    words = "\n".join(caught.value.problems)
    assert "eval_metrics: unknown metric 'exact_mach': did you mean 'exact_match'?" in words
    assert "best_metric 'wer' is not computed in the run: choose from loss, exact_mach, cer" in words
    assert "report_to: unknown logger 'wandbb'; did you mean 'wandb'?" in words
    assert "patience must be positive" in words
    assert "gpus must be positive" in words
    assert settings(eval_metrics=("cer, wer", "cer")).monitor.eval_metrics == ("cer", "wer")


def test_the_direction_is_the_metrics(settings) -> None:
    for metric, higher in (("loss", False), ("exact_match", True), ("cer", False), ("chrf", True)):
        assert settings(eval_metrics=("exact_match,cer,chrf",), best_metric=metric).monitor.higher_is_better == higher


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"patience": 3}, "--patience"),
        ({"eval_metrics": ("cer",), "best_metric": "cer"}, "--eval-metrics, --best-metric"),
        ({"val_split": "dev"}, "--val-split dev"),
    ],
)
def test_what_needs_a_val_split_says_so(values, option, settings, build) -> None:
    data = build([make_row(i) for i in range(3)], empty=[])
    with pytest.raises(DataError, match=rf"{option} needs? rows in a split '\w+', and there are none; the splits are"):
        fit(settings(data=data, **values))


def test_a_split_that_is_learned_from_and_judged_by_is_said(settings, capsys) -> None:
    prepare(settings(val_split="train"))
    assert "warning: split 'train' is learned from and judged by" in capsys.readouterr().out
    prepare(settings())
    assert "judged by" not in capsys.readouterr().out


def test_a_logger_that_is_not_there_is_named_before_anything_is_loaded(settings, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vlmtrain.preparation", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="report_to wandb, trackio: not installed; pip install wandb trac"):
        check_loggers(("wandb", "trackio"))
    with pytest.raises(MissingDependencyError, match="pip install tensorboard") as caught:
        fit(settings(report_to=("tensorboard",)))
    assert caught.value.exit_code == 4
    assert not settings().run.out.exists()


def test_tensorboard_gets_the_log_once(settings, stop_at) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = {"report_to": ("tensorboard",), "eval_steps": 2, "max_steps": 4, "eval_metrics": ("cer",)}
    with stop_at(3, signal.SIGINT), pytest.raises(Stopped):
        fit(settings(**values))
    run = fit(settings(**values), resume=True)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    losses = [log["loss"] for log in logs_of(run.path) if "loss" in log]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert {"eval/loss", "eval/cer", "train/learning_rate"} <= set(events.Tags()["scalars"])
