"""When two models count as the same: by their logits, and by the weights of merged layers."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vlmdata.errors import DataError
from vlmdata.shards import open_folder
from vlmtrain.collator import VisionCollator
from vlmtrain.inference import load_answering_model
from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.merged_weights import compare_weights, sample_merged_weights
from vlmtrain.parity import Parity, answer_logits, base_logits, compare_logits, require_parity
from vlmtrain.rows import open_rows

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = [torch.randn(5, 100, generator=GENERATOR) for _ in range(3)]


def shifted(by: float) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    return [each + by * torch.randn(each.shape, generator=noise) for each in LOGITS]


def test_rounding_is_the_same_model_and_more_is_not() -> None:
    same = compare_logits(LOGITS, shifted(0.0), tolerance=0.05)
    assert (same.relative_error, same.holds, same.positions, same.rows) == (0.0, True, 15, 3)
    rounded = compare_logits(LOGITS, shifted(0.01), tolerance=0.05)
    assert rounded.relative_error == pytest.approx(0.01, rel=0.2)
    assert rounded.holds
    other = compare_logits(LOGITS, shifted(0.2), tolerance=0.05)
    assert not other.holds
    with pytest.raises(DataError, match=r"the export is not the trained model: its logits differ by (19|2\d)\.\d+%"):
        require_parity(other, "the export")
    require_parity(rounded, "the export")


def test_a_clear_token_that_changes_is_not_rounding() -> None:
    expected = torch.zeros(4, 50)
    expected[:, 0], expected[:, 1] = 10.0, 8.0
    other = expected.clone()
    other[3, 0], other[3, 1] = 8.0, 10.0
    parity = compare_logits([expected], [other], tolerance=1.0)
    assert (parity.clear_positions, parity.agreeing_tokens, parity.holds) == (4, 3, False)
    # a tie may fall either way
    expected[:, 1], other = 9.99, expected.clone()
    other[:, 0], other[:, 1] = 9.99, 10.0
    parity = compare_logits([expected], [other], tolerance=1.0)
    assert (parity.clear_positions, parity.holds) == (0, True)


@pytest.mark.parametrize(
    ("error", "change", "holds"),
    [
        (0.04, None, True),
        (0.06, None, False),
        (0.04, 0.5, True),  # training changed much: rounding is small beside it
        (0.04, 0.06, False),  # as far as from the base
        (0.015, 0.001, True),  # too little was learned to tell; the weights are compared too
        (0.03, 0.001, False),
    ],
)
def test_rounding_must_be_small_beside_what_training_changed(error, change, holds) -> None:
    parity = Parity(
        rows=1,
        positions=9,
        relative_error=error,
        training_change=change,
        clear_positions=3,
        agreeing_tokens=3,
        tolerance=0.05,
    )
    assert parity.holds == holds
    assert parity.to_json() == dataclasses.asdict(parity) | {"holds": holds}
    assert not dataclasses.replace(parity, agreeing_tokens=2).holds


def test_other_vocabularies_are_another_model() -> None:
    with pytest.raises(DataError, match="other shapes"):
        compare_logits(LOGITS, [each[:, :-1] for each in LOGITS], tolerance=0.05)


def test_logits_are_those_of_the_answers(lora_run, colours) -> None:
    model = load_answering_model(str(lora_run))
    rows = [dict(row) for row in open_rows(open_folder(colours).split("train")).select([0, 1])]
    logits = answer_logits(model, rows)
    for row, found in zip(rows, logits, strict=True):
        batch = VisionCollator(model.chat, dtype=torch.float32)([row])
        labels = batch.pop("labels")[0]
        with torch.no_grad():
            everything = model.loaded.model(**batch).logits[0]
        # the token at a place is foretold at the one before
        places = [i for i in range(1, len(labels)) if labels[i] != IGNORE_INDEX]
        expected = torch.stack([everything[i - 1] - everything[i - 1].mean() for i in places])
        assert torch.allclose(found, expected, atol=1e-5)
    without = base_logits(model, rows)
    assert without is not None
    assert not torch.allclose(without[0], logits[0], atol=1e-3)
    # and the adapter is on again
    assert answer_logits(model, rows)[0].equal(logits[0])


def test_whole_models_have_no_base(full_run, colours) -> None:
    model = load_answering_model(str(full_run))
    assert base_logits(model, []) is None


@pytest.fixture
def peft_model():
    torch.manual_seed(0)
    base = torch.nn.Sequential()
    base.add_module("first", torch.nn.Linear(32, 48))
    base.add_module("second", torch.nn.Linear(48, 16))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def merged_copy(model) -> SimpleNamespace:
    modules = {}
    for name in ("first", "second"):
        layer = model.get_base_model().get_submodule(name)
        weight = layer.get_base_layer().weight + layer.get_delta_weight("default")
        modules[name] = SimpleNamespace(weight=weight.detach().to(torch.bfloat16))
    return SimpleNamespace(named_modules=modules.items, modules=modules)


def test_merged_weights_are_found_again(peft_model) -> None:
    samples = sample_merged_weights(peft_model)
    assert set(samples) == {"first", "second"}
    layer = peft_model.get_base_model().first
    whole = (layer.get_base_layer().weight + layer.get_delta_weight("default")).flatten()
    assert torch.allclose(samples["first"].expected, whole[samples["first"].positions])
    found = compare_weights(samples, merged_copy(peft_model))
    assert (found.layers, found.changed_layers, found.wrong_layers) == (2, 2, ())


def test_a_layer_that_was_not_merged_is_named(peft_model) -> None:
    samples = sample_merged_weights(peft_model)
    merged = merged_copy(peft_model)
    merged.modules["second"].weight = peft_model.get_base_model().second.get_base_layer().weight
    with pytest.raises(DataError, match="1 of 2 adapted layers are not merged as trained, the first is second"):
        compare_weights(samples, merged)
    del merged.modules["second"]
    with pytest.raises(DataError, match="the export has no layer second, which was adapted"):
        compare_weights(samples, merged)


def test_an_adapter_below_rounding_is_not_counted_as_seen(peft_model) -> None:
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(1e-6)
    found = compare_weights(sample_merged_weights(peft_model), merged_copy(peft_model))
    assert (found.layers, found.changed_layers) == (2, 0)
