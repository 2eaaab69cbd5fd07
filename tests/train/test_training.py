"""Whole runs on the transformers backend: what they leave behind, stopping, going on, and what they refuse."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer

from made_rows import make_conversation, make_row, turn
from vlmdata.errors import DataError
from vlmdata.manifest import read_manifest
from vlmtrain import trainer as trainer_module
from vlmtrain.preparation import prepare
from vlmtrain.training import Stopped, fit


def logs_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve_of(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    kept = ("step", "loss", "eval_loss", "grad_norm", "learning_rate")
    return [{name: log[name] for name in kept if name in log} for log in logs_of(run)]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    [file] = folder.glob("*.safetensors")
    return load_file(file)


def assert_equal(left: Path, right: Path) -> None:
    expected, actual = tensors_of(left), tensors_of(right)
    assert set(expected) == set(actual)
    assert [name for name in expected if not expected[name].equal(actual[name])] == []


def test_a_lora_run_leaves_an_adapter_and_a_report(lora_run, colours, tiny_qwen) -> None:
    report = json.loads((lora_run / "run.json").read_text())
    assert (report["weights"], report["load_in"], report["backend"]) == ("adapter", "32bit", "transformers")
    assert (report["family"], report["steps"], report["rows"]) == ("qwen2.5-vl", 6, {"train": 24, "val": 6})
    assert report["data"] == str(colours)
    assert report["data_fingerprint"] == read_manifest(colours).fingerprint
    assert report["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
    steps = [log for log in logs_of(lora_run) if "loss" in log]
    assert [log["step"] for log in steps] == [1, 2, 3, 4, 5, 6]
    assert report["last_loss"] == steps[-1]["loss"]
    assert report["train_loss"] == pytest.approx(sum(log["loss"] for log in steps) / 6)
    evaluations = {log["step"]: log["eval_loss"] for log in logs_of(lora_run) if "eval_loss" in log}
    assert list(evaluations) == [1, 2, 3, 4, 5, 6]
    assert report["best_value"] == min(evaluations.values()) == evaluations[report["best_step"]]
    assert evaluations[6] < evaluations[1]
    # the result loads with peft alone
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_qwen), lora_run / "adapter")
    assert any("lora_B" in name and parameter.abs().max() > 0 for name, parameter in model.named_parameters())


def test_a_full_run_leaves_a_model_that_still_stops(full_run, tiny_qwen) -> None:
    model = AutoModelForImageTextToText.from_pretrained(full_run / "model")
    before = json.loads((tiny_qwen / "generation_config.json").read_text())["eos_token_id"]
    assert set(model.generation_config.eos_token_id) == set(before)
    assert not (full_run / "adapter").exists()
    processor = AutoProcessor.from_pretrained(full_run / "model")
    assert processor.chat_template == AutoProcessor.from_pretrained(tiny_qwen).chat_template


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json", "chat_template.jinja"])
def test_the_processor_is_saved_as_it_came(name, lora_run, full_run, tiny_qwen) -> None:
    for folder in (lora_run / "adapter", full_run / "model"):
        assert (folder / name).read_text() == (tiny_qwen / name).read_text()


def test_a_processor_that_is_code_of_the_models_own_is_saved_too(settings, tiny_qwen, tmp_path) -> None:
    """What --trust-remote-code lets in at the beginning of a run is let in at its end."""
    model = tmp_path / "model"
    shutil.copytree(tiny_qwen, model)
    code = "from transformers import Qwen2_5_VLProcessor\n\n\nclass OwnProcessor(Qwen2_5_VLProcessor):\n    pass\n"
    (model / "own_processor.py").write_text(code)
    path = model / "processor_config.json"
    own = {"auto_map": {"AutoProcessor": "own_processor.OwnProcessor"}, "processor_class": "OwnProcessor"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    run = fit(settings(model=str(model), max_steps=1, trust_remote_code=True, report=False))
    assert (run.weights / "own_processor.py").read_text() == code


def test_what_was_chosen_is_printed(settings, capsys) -> None:
    fit(settings(max_steps=1))
    out = capsys.readouterr().out
    assert "backend: transformers (asked for)" in out
    assert "(family qwen2.5-vl)" in out
    assert "train: 24 rows; tokens a row: median" in out
    assert "weights in 32bit (there is no GPU)" in out
    assert "trainable   adapted layers" in out
    assert "1 steps of 4 rows (6 an epoch), 0 of them warm-up; adamw_torch, lr 0.01 (vision tower 0.01)" in out
    assert "warning: 1 step is few" in out
    assert "<|im_start|>assistant\n⟦white<|im_end|>⟧" in out
    assert "step 1/1: loss " in out
    assert "step 1/1: eval loss " in out


@pytest.mark.parametrize(
    ("method", "family"),
    # transformers stores each of these under other names than it has them in memory; Gemma's head is its embedding
    [("lora", "qwen2.5-vl"), ("full", "qwen2.5-vl"), ("full", "gemma3"), ("full", "llama3.2-vision")],
)
def test_the_best_checkpoint_is_kept_and_becomes_the_result(method, family, settings, tiny, monkeypatch) -> None:
    scripted = iter([5.0, 1.0, 3.0, 2.0])
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda *a, **k: evaluate(*a, **k) | {"eval_loss": next(scripted)})
    values = {"method": method, "model": str(tiny(family)), "max_steps": 4, "keep_checkpoints": 1, "lr": 1e-3}
    run = fit(settings(**values, over_long="drop", max_length=100))
    report = json.loads(run.report.read_text())
    assert (report["best_step"], report["best_value"]) == (2, 1.0)
    assert {path.name for path in run.checkpoints.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    result = weights_of(method, run.weights)
    best, last = (weights_of(method, run.checkpoints / f"checkpoint-{step}") for step in (2, 4))
    assert all(result[name].equal(best[name]) for name in best)
    assert not all(result[name].equal(last[name]) for name in last)


def weights_of(method: str, folder: Path) -> dict[str, torch.Tensor]:
    """As a user gets them."""
    if method == "lora":
        return tensors_of(folder)
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def test_a_checkpoint_of_another_model_is_not_passed_over(settings, stop_at) -> None:
    with stop_at(2), pytest.raises(Stopped):
        fit(settings(method="full"))
    checkpoint = settings().run.out / "checkpoints" / "checkpoint-2" / "model.safetensors"
    save_file({f"other.{name}": tensor for name, tensor in load_file(checkpoint).items()}, checkpoint)
    with pytest.raises(DataError, match=r"not one of this model: \d+ of its weights are not in it"):
        fit(settings(method="full"), resume=True)


def test_without_a_val_split_the_last_checkpoint_is_the_result(settings, build, capsys) -> None:
    run = fit(settings(data=build([make_row(i) for i in range(6)]), keep_checkpoints=2))
    assert "no rows in a split 'val': no evaluation loss, the last checkpoint is kept" in capsys.readouterr().out
    report = json.loads(run.report.read_text())
    assert (report["best_value"], report["rows"]["val"]) == (None, 0)
    assert not any("eval_loss" in log for log in logs_of(run.path))
    assert_equal(run.weights, run.checkpoints / "checkpoint-6")
    assert {path.name for path in run.checkpoints.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-6"}


def test_evaluation_looks_at_as_many_rows_as_allowed(settings, monkeypatch) -> None:
    seen = []
    evaluate = Trainer.evaluate
    monkeypatch.setattr(
        Trainer, "evaluate", lambda self, *a, **k: seen.append(len(self.eval_dataset)) or evaluate(self)
    )
    fit(settings(max_steps=1, eval_rows=4))
    assert seen == [4]


def test_the_same_settings_give_the_same_run_and_another_seed_another(settings, lora_run, tmp_path) -> None:
    again = fit(settings(out=tmp_path / "again"))
    assert curve_of(again.path) == curve_of(lora_run)
    assert_equal(again.weights, lora_run / "adapter")
    other = fit(settings(out=tmp_path / "other", seed=1))
    assert curve_of(other.path) != curve_of(lora_run)


@pytest.mark.parametrize(("method", "number", "code"), [("lora", signal.SIGTERM, 143), ("full", signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(method, number, code, settings, stop_at, tmp_path):
    # dropout draws random numbers, and every second step is one without a checkpoint of its own
    values = {"method": method, "dropout": 0.2, "eval_steps": 2, "lr": 3e-3}
    whole = fit(settings(**values, out=tmp_path / "whole"))
    with stop_at(3, number), pytest.raises(Stopped, match="after step 3 of 6; a checkpoint is saved") as caught:
        fit(settings(**values))
    assert caught.value.exit_code == code
    out = settings(**values).run.out
    assert not (out / "run.json").exists()
    assert (out / "checkpoints" / "checkpoint-3").is_dir()
    resumed = fit(settings(**values), resume=True)
    assert curve_of(resumed.path) == curve_of(whole.path)
    assert_equal(resumed.weights, whole.weights)
    reports = [json.loads(run.report.read_text()) for run in (whole, resumed)]
    for key in ("last_loss", "train_loss", "best_step", "best_value", "steps"):
        assert reports[0][key] == reports[1][key], key


def test_a_run_killed_between_checkpoints_repeats_the_steps_after_the_last(settings, tmp_path, monkeypatch) -> None:
    whole = fit(settings(out=tmp_path / "whole", eval_steps=2))

    def die(metrics, stop):
        callback = make(metrics, stop)
        callback.on_step_begin = lambda args, state, control, **_: 1 / 0 if state.global_step == 5 else None
        return callback

    make = trainer_module._make_callback
    monkeypatch.setattr(trainer_module, "_make_callback", die)
    with pytest.raises(ZeroDivisionError):
        fit(settings(eval_steps=2))
    monkeypatch.undo()
    out = settings().run.out
    assert [log["step"] for log in logs_of(out) if "loss" in log] == [1, 2, 3, 4, 5]
    resumed = fit(settings(eval_steps=2), resume=True)
    assert curve_of(resumed.path) == curve_of(whole.path)
    assert_equal(resumed.weights, whole.weights)


def test_a_moved_run_remembers_its_best_checkpoint(settings, stop_at, tmp_path, monkeypatch) -> None:
    with stop_at(3), pytest.raises(Stopped):
        fit(settings())
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-3" / "trainer_state.json").read_text())
    best = state["best_global_step"]
    (tmp_path / "run").rename(tmp_path / "moved")
    # nothing after the move is as good
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda *a, **k: evaluate(*a, **k) | {"eval_loss": 99.0})
    run = fit(settings(out=tmp_path / "moved"), resume=True)
    assert json.loads(run.report.read_text())["best_step"] == best
    assert_equal(run.weights, run.checkpoints / f"checkpoint-{best}")


def test_a_finished_run_resumed_is_the_same_run(lora_run, settings, tmp_path) -> None:
    out = shutil.copytree(lora_run, tmp_path / "copy")
    resumed = fit(settings(out=out), resume=True)
    assert_equal(resumed.weights, lora_run / "adapter")
    assert curve_of(resumed.path) == curve_of(lora_run)
    before, after = (json.loads((run / "run.json").read_text()) for run in (lora_run, out))
    assert {k: before[k] for k in ("last_loss", "train_loss", "best_step")} == {
        k: after[k] for k in ("last_loss", "train_loss", "best_step")
    }


def test_an_adapter_is_trained_on(lora_run, settings, capsys) -> None:
    run = fit(settings(model=str(lora_run), max_steps=1, lr=1e-9))
    assert "going on with the adapter in" in capsys.readouterr().out
    before, after = tensors_of(lora_run / "adapter"), tensors_of(run.weights)
    assert max(float((before[n] - after[n]).abs().max()) for n in before) < 1e-6


def test_over_long_rows_are_left_out_where_asked(settings, build) -> None:
    long = make_conversation(6, [turn("user", None, "Which? " * 40), turn("assistant", "red")], [(56, 56)])
    data = build([*(make_row(i) for i in range(1, 5)), long])
    run = fit(settings(data=data, max_length=60, over_long="drop", max_steps=1))
    report = json.loads(run.report.read_text())
    assert (report["rows"]["train"], report["max_length"]) == (4, 60)


def test_the_limit_covers_the_longest_row_of_either_split(settings, build) -> None:
    long = make_conversation(6, [turn("user", None, "Which? " * 40), turn("assistant", "red")], [(56, 56)])
    prepared = prepare(settings(data=build([make_row(1)], val=[long])))
    assert prepared.val is not None
    assert prepared.max_length == prepared.val.max_length > prepared.train.max_length
