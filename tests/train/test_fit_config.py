"""Settings: everything that is wrong with them at once, and which source of a value wins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlmdata.errors import ConfigError
from vlmdata.options import field_help, read_yaml
from vlmtrain.config import SECTIONS, FitConfig, OptimizerConfig
from vlmtrain.metrics import METRICS
from vlmtrain.preview_config import PreviewConfig
from vlmtrain.settings import EvalConfig, ExportConfig, GenerateConfig

NEEDED = {"data": Path("data"), "model": "model", "out": Path("run")}


def problems_of(**values) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        FitConfig.from_values(NEEDED | values)
    return caught.value.problems


def test_defaults_are_those_of_the_design() -> None:
    config = FitConfig.from_values(NEEDED)
    assert (config.adapter.r, config.adapter.alpha, config.adapter.dropout) == (16, 16, 0.0)
    assert (config.lr, config.vision_lr) == (1e-4, 1e-4)
    assert (config.optimizer.warmup, config.optimizer.schedule, config.optimizer.epochs) == (0.03, "cosine", 1.0)
    assert config.optimizer.weight_decay == 0.01
    full = FitConfig.from_values(NEEDED | {"method": "full"})
    assert full.lr == 1e-5
    assert full.vision_lr == pytest.approx(2e-6)
    assert FitConfig.from_values(NEEDED | {"method": "full", "lr": 1e-3}).vision_lr == pytest.approx(2e-4)
    assert FitConfig.from_values(NEEDED | {"lr": 1e-3, "vision_lr": 5e-4}).vision_lr == 5e-4


def test_what_is_missing_and_what_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FitConfig.from_values({"r": 0, "lr": -1.0, "eval_rows": 0, "max_length": 0, "workers": -1, "warmup": 2.0})
    assert caught.value.problems == (
        "--data is missing",
        "--model is missing",
        "--out is missing",
        "max_length must be positive, not 0",
        "workers must not be negative, as -1 is",
        "r must be positive, not 0",
        "lr must be positive, not -1.0",
        "warmup is a share of the steps and must lie in [0, 1], not 2.0",
        "eval_rows must be positive, not 0",
    )


def test_flags_that_leave_nothing_to_train() -> None:
    off = dict.fromkeys(
        (
            "finetune_vision_layers",
            "finetune_language_layers",
            "finetune_attention_modules",
            "finetune_mlp_modules",
        ),
        False,
    )
    first, second = problems_of(**off)
    assert first == "finetune_vision_layers and finetune_language_layers are both off: nothing is left to train"
    assert second == "finetune_attention_modules and finetune_mlp_modules are both off: nothing is left to train"
    assert len(problems_of(**off, dropout=1.0)) == 3
    # flags say nothing about these
    assert FitConfig.from_values(NEEDED | off | {"targets": "all-linear"})
    assert FitConfig.from_values(NEEDED | off | {"method": "full"})


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_precisions_that_clash_with_full_fine_tuning(load_in) -> None:
    assert problems_of(method="full", load_in=load_in) == (
        f"load_in {load_in!r} clashes with method 'full': quantised weights cannot be trained",
    )
    assert FitConfig.from_values(NEEDED | {"load_in": load_in})


def test_checkpointing_of_the_other_backend() -> None:
    [problem] = problems_of(backend="transformers", gradient_checkpointing="unsloth")
    assert problem == "gradient_checkpointing 'unsloth' clashes with backend 'transformers': use 'on'"


def test_a_config_file_with_several_mistakes(tmp_path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("max_stesp: 3\nlerning_rate: 1\nr: sixteen\nload_in: 5bit\nlr: 1e-4\nbatch-size: 4\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(path, SECTIONS)
    assert caught.value.problems == (
        f"{path}: unknown key 'max_stesp'; did you mean 'max_steps'?",
        f"{path}: unknown key 'lerning_rate'",
        f"{path}: r: 'sixteen' is not a whole number",
        f"{path}: load_in: '5bit' is not one of auto, 4bit, 8bit, 16bit, 32bit",
    )


def test_a_config_file_goes_round(tmp_path) -> None:
    path = tmp_path / "fit.yaml"
    path.write_text("data: out/set\nmodel: m\nout: out/run\nlr: 1e-4\nbatch-size: 4\nfinetune_vision_layers: false\n")
    config = FitConfig.from_values(read_yaml(path, SECTIONS))
    assert (config.lr, config.optimizer.batch_size, config.adapter.finetune_vision_layers) == (1e-4, 4, False)
    assert (
        FitConfig.from_values(config.flat() | {"data": Path(config.flat()["data"]), "out": Path("out/run")}) == config
    )


@pytest.mark.parametrize(
    ("make", "problems"),
    [
        (
            lambda: GenerateConfig(max_new_tokens=0, temperature=-1.0),
            (
                "max_new_tokens must be positive, not 0",
                "temperature must not be negative, as -1.0 is",
                "pass either --prompt (with --image) or --batch",
            ),
        ),
        (
            lambda: GenerateConfig(batch=Path("b.jsonl"), image=(Path("a.png"),)),
            ("--image goes with --prompt; the lines of --batch name their own pictures",),
        ),
        (
            lambda: GenerateConfig(prompt="?", batch=Path("b.jsonl")),
            ("pass either --prompt (with --image) or --batch",),
        ),
        (
            lambda: EvalConfig(rows=0, batch_size=-1, out=Path("scores.jsonl")),
            (
                "rows must be positive, not 0",
                "batch_size must be positive, not -1",
                "out: 'scores.jsonl' is where the predictions go; name a .json file for the scores",
            ),
        ),
        (lambda: ExportConfig(out=Path("out"), check_rows=0), ("check_rows must be positive, not 0",)),
        (
            lambda: OptimizerConfig(lr=float("nan"), epochs=0.0),
            ("lr must be positive, not nan", "epochs must be positive, not 0.0"),
        ),
    ],
)
def test_settings_of_the_other_commands(make, problems) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.problems == problems


@pytest.mark.parametrize(
    ("choice", "method", "on_gpu", "name"),
    [
        ("auto", "lora", True, "adamw_torch_fused"),
        ("auto", "full", True, "adamw_8bit"),
        ("auto", "lora", False, "adamw_torch"),
        ("adamw_8bit", "lora", True, "adamw_8bit"),
    ],
)
def test_one_place_says_which_optimizer_auto_is(choice: str, method: str, on_gpu: bool, name: str) -> None:
    assert OptimizerConfig(optimizer=choice).resolve_optimizer(method, on_gpu=on_gpu) == name


def test_a_seed_that_numpy_does_not_take_is_refused_by_every_command() -> None:
    words = "seed must lie in [0, 4294967295], not "
    assert problems_of(seed=-1) == (f"{words}-1",)
    assert problems_of(epochs=float("inf")) == ("epochs must be positive, not inf",)
    for make in (EvalConfig, lambda **given: GenerateConfig(prompt="?", **given)):
        with pytest.raises(ConfigError) as caught:
            make(seed=2**32)
        assert caught.value.problems == (f"{words}{2**32}",)
    with pytest.raises(ConfigError):
        PreviewConfig(data=Path("data"), model="model", seed=-1)


def test_metrics_may_stand_between_commas_wherever_they_are_named() -> None:
    given = ("cer, wer", "anls", "cer")
    assert EvalConfig(metrics=given).metrics == ("cer", "wer", "anls")
    assert ExportConfig(out=Path("out"), metrics=given).metrics == ("cer", "wer", "anls")
    assert set(METRICS) == set(re.findall(r"\w+", field_help(EvalConfig)["metrics"].partition(":")[2]))
