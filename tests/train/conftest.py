"""Small built folders, tiny models and short runs, made once a session: pictures of one colour, and which it is."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from made_rows import make_conversation, make_row, turn, write_folder
from vlmdata.schema import Row

# Two threads on two busy cores mostly wait for each other, and spin while they do.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What runs remember about shards stays out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder of 24 training and 6 val rows, some of several turns or pictures."""
    train = [make_row(i, turns=1 + (i % 5 == 0), images=1 + (i % 7 == 0)) for i in range(24)]
    val = [make_row(100 + i) for i in range(6)]
    return write_folder(tmp_path_factory.mktemp("colours"), {"train": train, "val": val})


@pytest.fixture(scope="session")
def unlike_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows as a collator gets them: one of one picture, one of two, one of two turns, one of text alone."""
    from vlmdata.shards import open_folder
    from vlmtrain.rows import open_rows

    chosen = [make_row(1), make_row(2, images=2), make_row(3, turns=2)]
    chosen.append(make_conversation(4, [turn("user", "A word?"), turn("assistant", "yes, of many letters")]))
    opened = open_rows(open_folder(write_folder(tmp_path_factory.mktemp("rows"), {"train": chosen})).split("train"))
    return [opened[index] for index in range(len(opened))]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Writes a built folder with these rows."""

    def write(train: list[Row], **others: list[Row]) -> Path:
        return write_folder(tmp_path / "built", {"train": train, **others})

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The smallest model of a family, made when it is first asked for."""
    from vlmtrain.tiny import make_tiny

    root = tmp_path_factory.mktemp("tiny")

    def make(family: str) -> Path:
        if not (root / family).exists():
            make_tiny(family, root / family, hidden_size=64, layers=2, vision_hidden_size=64, vision_layers=2)
        return root / family

    return make


@pytest.fixture(scope="session")
def tiny_qwen(tiny: Callable[[str], Path]) -> Path:
    """A tiny Qwen2.5-VL."""
    return tiny("qwen2.5-vl")


@pytest.fixture(scope="session")
def chat_of(tiny: Callable[[str], Path]) -> Callable[[str], Any]:
    """The chat format of a family's tiny model; its processor pads on the right."""
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.source import find_model

    known: dict[str, Any] = {}

    def load(family: str) -> Any:
        if family not in known:
            source = find_model(str(tiny(family)))
            known[family] = load_chat_format(source, load_processor(source))
        known[family].processor.tokenizer.padding_side = "right"
        return known[family]

    return load


@pytest.fixture
def settings(colours: Path, tiny_qwen: Path, tmp_path: Path) -> Callable[..., Any]:
    """The settings of a short run of the tiny Qwen on the colours; what is given wins."""
    from vlmtrain.config import FitConfig

    def make(**given: Any) -> FitConfig:
        usual = {**SHORT_RUN, "data": colours, "model": str(tiny_qwen), "out": tmp_path / "run"}
        return FitConfig.from_values(usual | given)

    return make


SHORT_RUN = {
    "report": False,
    "max_steps": 6,
    "batch_size": 2,
    "grad_accum": 2,
    "lr": 1e-2,
    "warmup": 0.0,
    "backend": "transformers",
}


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Lets a signal arrive during a step, or something else happen, within a `with`."""
    from vlmtrain import trainer

    @contextlib.contextmanager
    def arrange(step: int, number: int = signal.SIGTERM, act: Callable[[], None] | None = None) -> Iterator[None]:
        make = trainer._make_callback

        def make_stopping(*arguments: Any) -> Any:
            callback = make(*arguments)
            on_step_end = callback.on_step_end

            def act_first(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == step:
                    act() if act else os.kill(os.getpid(), number)
                on_step_end(args, state, control, **kwargs)

            callback.on_step_end = act_first
            return callback

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "_make_callback", make_stopping)
            yield

    return arrange


@pytest.fixture(scope="session")
def lora_run(colours: Path, tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run of six steps."""
    from vlmtrain.config import FitConfig
    from vlmtrain.training import fit

    out = tmp_path_factory.mktemp("runs") / "lora"
    return fit(FitConfig.from_values({**SHORT_RUN, "data": colours, "model": str(tiny_qwen), "out": out})).path


@pytest.fixture(scope="session")
def full_run(colours: Path, tiny_qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all weights, long enough to tell the colours apart."""
    from vlmtrain.config import FitConfig
    from vlmtrain.training import fit

    out = tmp_path_factory.mktemp("runs") / "full"
    values = {**SHORT_RUN, "method": "full", "max_steps": 40, "batch_size": 8, "grad_accum": 1, "eval_steps": 40}
    values |= {"lr": 3e-3, "vision_lr": 3e-3, "data": colours, "model": str(tiny_qwen), "out": out}
    return fit(FitConfig.from_values(values)).path


@pytest.fixture(scope="session")
def measured_config() -> dict[str, Any]:
    """Config of a Qwen2.5-VL of 4.07 billion parameters, whose peaks were measured on an H200 (LoRA r 16, batch 8)."""
    return {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "intermediate_size": 11008,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
        },
    }
