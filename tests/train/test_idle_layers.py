"""Which trained layers may go without a gradient: foreseen, and as autograd finds them in every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from made_rows import make_conversation, make_row, turn
from vlmdata.families import FAMILIES, get_family
from vlmdata.shards import open_folder
from vlmtrain.backends import transformers as backend
from vlmtrain.config import FitConfig
from vlmtrain.idle_layers import why_layers_may_idle
from vlmtrain.lengths import measure_lengths
from vlmtrain.loaded import LoadedModel
from vlmtrain.processors import load_processor
from vlmtrain.rows import open_rows
from vlmtrain.source import find_model

NEEDED = {"data": "data", "model": "model", "out": "run"}


@pytest.fixture
def load(tiny):
    def load_model(name: str) -> LoadedModel:
        source = find_model(str(tiny(name)))
        model = AutoModelForImageTextToText.from_pretrained(source.name)
        processor = load_processor(source)
        return LoadedModel(
            model=model,
            processor=processor,
            source=source,
            backend="transformers",
            load_in="32bit",
            dtype=torch.float32,
        )

    return load_model


def adapter_of(loaded: LoadedModel, **values):
    config = FitConfig.from_values(NEEDED | values).adapter
    if config.method == "lora":
        backend.add_adapter(loaded, config, checkpointing="off", seed=1)
    return config


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_foreseen_is_what_autograd_finds(name, load, chat_of, colours) -> None:
    loaded, family, chat = load(name), get_family(name), chat_of(name)
    adapter = adapter_of(loaded, targets="all-linear")
    split = open_folder(colours).split("train")
    reason = why_layers_may_idle(loaded.model, family, adapter, measure_lengths(split, chat, family))
    collate = backend.make_collator(loaded, chat, max_length=4096, last_turn_only=False)
    loaded.model(**collate([open_rows(split)[1]])).loss.backward()
    idle = [n for n, each in loaded.model.named_parameters() if each.requires_grad and each.grad is None]
    assert (reason is not None) == bool(idle) == name.startswith("llava"), (reason, idle)
    if reason is not None:
        block = reason.removeprefix("the output of ").removesuffix(" is used by nothing")
        assert all(f".{block}." in each for each in idle), (reason, idle)


def test_rows_without_pictures_leave_layers_idle_that_only_pictures_pass(load, chat_of, build) -> None:
    words = make_conversation(1, [turn("user", "Hello?"), turn("assistant", "Yes.")])
    family, chat = get_family("qwen2.5-vl"), chat_of("qwen2.5-vl")
    lengths = measure_lengths(open_folder(build([make_row(0), words])).split("train"), chat, family)
    with_pictures = lengths.take(np.array([0]))
    loaded = load("qwen2.5-vl")
    adapter = adapter_of(loaded)
    assert why_layers_may_idle(loaded.model, family, adapter, lengths) == "1 row has no pictures"
    assert why_layers_may_idle(loaded.model, family, adapter, with_pictures) is None
    assert why_layers_may_idle(loaded.model, None, adapter, with_pictures) == "the model's family is unknown"
    loaded = load("qwen2.5-vl")
    adapter = adapter_of(loaded, preset="language-only")
    assert why_layers_may_idle(loaded.model, family, adapter, lengths) is None
    loaded = load("qwen2.5-vl")
    adapter = adapter_of(loaded, method="full")
    assert "trained in full" in why_layers_may_idle(loaded.model, family, adapter, with_pictures)
    mllama, chat = get_family("llama3.2-vision"), chat_of("llama3.2-vision")
    loaded = load("llama3.2-vision")
    adapter = adapter_of(loaded, preset="language-only")
    assert why_layers_may_idle(loaded.model, mllama, adapter, lengths) == "1 row has no pictures"
