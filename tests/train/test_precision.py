"""How weights are held: the choice by memory, and what bitsandbytes really quantises."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from vlmdata.errors import ConfigError, MissingDependencyError
from vlmdata.families import FAMILIES
from vlmtrain.backends import transformers as backend
from vlmtrain.layers import part_of
from vlmtrain.precision import MEMORY_SHARE, choose_precision, count_weights
from vlmtrain.source import find_model

GIB = 1 << 30


def choose(requested="auto", method="lora", config=None, **more):
    return choose_precision(requested, method=method, config=config or {}, **more)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of so many GiB, and a model of so many billion weights."""

    def make(gib: float, billion: float) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        properties = SimpleNamespace(total_memory=int(gib * GIB))
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: properties)
        monkeypatch.setattr("vlmtrain.precision.count_weights", lambda _: int(billion * 1e9))

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_counted_without_loading_them(name, tiny) -> None:
    config = json.loads((tiny(name) / "config.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(tiny(name))
    assert count_weights(config) == sum(parameter.numel() for parameter in model.parameters())
    assert count_weights(config | {"quantization_config": {"load_in_4bit": True}}) == count_weights(config)


def test_an_unknown_type_has_no_known_size() -> None:
    with pytest.raises(ConfigError, match=r"no vision-language model of type 'brand_new'.*pass --load-in"):
        count_weights({"model_type": "brand_new"})


def test_a_cpu_takes_32_bits_and_no_quantised_weights() -> None:
    assert choose().load_in == "32bit"
    assert choose().reason == "there is no GPU"
    assert choose("16bit").load_in == "16bit"
    for requested in ("4bit", "8bit"):
        with pytest.raises(MissingDependencyError, match=f"load_in '{requested}' needs a GPU.*use 32bit or 16bit"):
            choose(requested)


@pytest.mark.parametrize(
    ("gib", "billion", "load_in"),
    [
        (16, 3.0, "16bit"),
        (16, 3.8, "4bit"),
        (80, 8.3, "16bit"),
        (24, 8.3, "4bit"),
        (141, 33.5, "16bit"),
        (80, 33.5, "4bit"),
    ],
)
def test_lora_takes_16_bits_where_they_fit(gib, billion, load_in, gpu) -> None:
    gpu(gib, billion)
    needed, limit = billion * 1e9 * 2 * 1.15 / GIB + 6, MEMORY_SHARE * gib
    chosen = choose()
    assert chosen.load_in == load_in
    assert f"{billion:.2f} B weights in 16 bit" in chosen.reason
    assert f"about {needed:.1f} GiB of the {limit:.1f} GiB" in chosen.reason
    assert chosen.reason.endswith("they fit" if chosen.load_in == "16bit" else "they do not fit")


def test_a_limit_below_the_gpus_memory_counts(gpu) -> None:
    gpu(141, 8.3)
    assert choose(gpu_memory_gb=24).load_in == "4bit"
    assert choose(gpu_memory_gb=80).load_in == "16bit"
    assert choose(gpu_memory_gb=500).reason == choose().reason


def test_full_fine_tuning_takes_32_bits_where_they_fit(gpu) -> None:
    gpu(80, 3.0)
    assert choose(method="full").load_in == "32bit"
    gpu(80, 8.3)
    chosen = choose(method="full")
    assert chosen.load_in == "16bit"
    assert "small updates round away" in chosen.reason


def test_what_was_asked_for_is_taken(gpu) -> None:
    gpu(8, 70)
    for requested in ("4bit", "8bit", "16bit", "32bit"):
        assert choose(requested).load_in == requested
        assert choose(requested).reason == "asked for"


def test_bases_that_are_quantised_already(monkeypatch) -> None:
    stored = {"quantization_config": {"load_in_4bit": True}}
    with pytest.raises(MissingDependencyError, match="the model's weights are stored in 4bit, which needs a GPU"):
        choose(config=stored)
    monkeypatch.setattr("vlmtrain.precision.can_quantise", lambda: True)
    assert choose(config=stored).load_in == "4bit"
    assert choose("4bit", config=stored).reason == "the model's weights are stored so"
    assert choose(config={"quantization_config": {"load_in_8bit": True}}).load_in == "8bit"
    with pytest.raises(ConfigError, match="load_in '16bit': the model's weights are stored in 4bit"):
        choose("16bit", config=stored)
    with pytest.raises(ConfigError, match="stored in 4bit: they cannot be fine-tuned in full"):
        choose(method="full", config=stored)


@pytest.mark.parametrize("name", FAMILIES)
def test_4_bit_weights_are_those_of_the_language_layers(name, tiny) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    source = find_model(str(tiny(name)))
    loaded = backend.load_model(
        source,
        None,
        load_in="4bit",
        max_length=64,
        method="lora",
        checkpointing="off",
        trust_remote_code=False,
    )
    linear = {n: module for n, module in loaded.model.named_modules() if isinstance(module, torch.nn.Linear)}
    quantised = {n for n, module in linear.items() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert quantised == {n for n in linear if part_of(n) == "language"}
    assert {linear[n].weight.quant_type for n in quantised} == {"nf4"}
    assert loaded.dtype == torch.bfloat16
