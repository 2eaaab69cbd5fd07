"""Adapters sit where the flags say and nowhere else, in every family's real modules."""

from __future__ import annotations

import itertools

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForImageTextToText

from vlmdata.errors import ConfigError
from vlmdata.families import FAMILIES
from vlmtrain.backends import transformers as backend
from vlmtrain.config import AdapterConfig
from vlmtrain.layers import adapter_targets, module_part, part_of
from vlmtrain.loaded import LoadedModel
from vlmtrain.source import find_model
from vlmtrain.trainable import count_parameters

FLAGS = [
    flags for flags in itertools.product([True, False], repeat=4) if (flags[0] or flags[1]) and (flags[2] or flags[3])
]


def config_of(flags, **others) -> AdapterConfig:
    vision, language, attention, mlp = flags
    return AdapterConfig(
        finetune_vision_layers=vision,
        finetune_language_layers=language,
        finetune_attention_modules=attention,
        finetune_mlp_modules=mlp,
        **others,
    )


@pytest.fixture(scope="module")
def model_of(tiny):
    known = {}

    def load(name):
        if name not in known:
            known[name] = AutoModelForImageTextToText.from_pretrained(tiny(name))
        return known[name]

    return load


def lies_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@pytest.mark.parametrize("name", FAMILIES)
def test_flags_choose_layers_by_the_familys_modules(name, model_of) -> None:
    family, model = FAMILIES[name], model_of(name)
    linear = [n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = [n for n in linear if ".layers." in n or ".blocks." in n or ".transformer." in n]
    for flags in FLAGS:
        vision, language, attention, mlp = flags
        expected = {
            n
            for n in blocks
            if not lies_in(n, family.connector_modules)
            and (
                (vision and lies_in(n, (family.vision_module,))) or (language and lies_in(n, (family.language_module,)))
            )
            and ((attention and "att" in n.rpartition(".")[0]) or (mlp and ("mlp" in n or "feed_forward" in n)))
        }
        assert set(adapter_targets(model, config_of(flags))) == expected, flags
        assert expected


@pytest.mark.parametrize("name", FAMILIES)
def test_all_linear_leaves_out_the_head_alone(name, model_of) -> None:
    model = model_of(name)
    linear = {n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    chosen = set(adapter_targets(model, AdapterConfig(targets="all-linear")))
    assert linear - chosen == {"lm_head"}
    if name != "gemma3":  # its connector is a bare matrix
        assert any(lies_in(n, FAMILIES[name].connector_modules) for n in chosen)


@pytest.mark.parametrize("flags", [(True, True, True, True), (True, False, False, True), (False, True, True, False)])
def test_the_modules_that_have_adapters_are_the_chosen_ones(flags, tiny_qwen) -> None:
    config = config_of(flags, r=3, alpha=7)
    loaded = LoadedModel(
        model=AutoModelForImageTextToText.from_pretrained(tiny_qwen),
        processor=None,
        source=find_model(str(tiny_qwen)),
        backend="transformers",
        load_in="32bit",
        dtype=torch.float32,
    )
    expected = adapter_targets(loaded.model, config)
    backend.add_adapter(loaded, config, checkpointing="off", seed=1)
    base = loaded.model.get_base_model()
    adapted = [n for n, module in base.named_modules() if isinstance(module, LoraLayer)]
    assert adapted == expected
    trainable = {n for n, parameter in base.named_parameters() if parameter.requires_grad}
    assert trainable == {f"{n}.lora_{side}.default.weight" for n in adapted for side in "AB"}
    assert base.get_submodule(adapted[0]).scaling["default"] == pytest.approx(7 / 3)
    # the table counts the same
    counts = count_parameters(base.named_parameters())
    assert sum(trained for trained, _ in counts.values()) == sum(
        parameter.numel() for parameter in base.parameters() if parameter.requires_grad
    )
    assert {part for part, (trained, _) in counts.items() if trained} == {
        part for part, on in (("vision", flags[0]), ("language", flags[1])) if on
    }


def test_the_same_seed_gives_the_same_adapter(tiny_qwen) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        model = AutoModelForImageTextToText.from_pretrained(tiny_qwen)
        loaded = LoadedModel(
            model=model,
            processor=None,
            source=find_model(str(tiny_qwen)),
            backend="transformers",
            load_in="32bit",
            dtype=torch.float32,
        )
        backend.add_adapter(loaded, AdapterConfig(), checkpointing="off", seed=seed)
        return next(parameter for parameter in loaded.model.parameters() if parameter.requires_grad)

    assert first_weights(1).equal(first_weights(1))
    assert not first_weights(1).equal(first_weights(2))


@pytest.mark.parametrize(
    ("name", "part", "kind"),
    [
        ("model.visual.blocks.0.attn.qkv", "vision", "attention"),
        ("model.visual.blocks.0.mlp.gate_proj", "vision", "mlp"),
        ("model.visual.merger.mlp.0", "connector", "mlp"),
        ("model.visual.deepstack_merger_list.1.linear_fc1", "connector", "other"),
        ("model.multi_modal_projector.linear_1", "connector", "other"),
        ("model.multi_modal_projector.patch_merger.merging_layer", "connector", "other"),
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj", "vision", "attention"),
        ("model.vision_tower.transformer.layers.0.feed_forward.up_proj", "vision", "mlp"),
        ("model.vision_model.global_transformer.layers.0.mlp.fc1", "vision", "mlp"),
        ("model.language_model.layers.0.cross_attn.q_proj", "language", "attention"),
        ("model.language_model.layers.0.mlp.up_proj", "language", "mlp"),
        ("base_model.model.lm_head", "head", "other"),
    ],
)
def test_the_part_and_kind_of_a_module(name, part, kind) -> None:
    assert (part_of(name), module_part(name)) == (part, kind)


def test_every_parameter_is_counted_once(model_of) -> None:
    for name in FAMILIES:
        model = model_of(name)
        counts = count_parameters(model.named_parameters())
        assert sum(total for _, total in counts.values()) == sum(p.numel() for p in model.parameters())
        assert {"vision", "connector", "language"} <= set(counts)
        vision = model.get_submodule(FAMILIES[name].vision_module)
        connectors = [m for m in FAMILIES[name].connector_modules if lies_in(m, (FAMILIES[name].vision_module,))]
        inside = sum(p.numel() for m in connectors for p in model.get_submodule(m).parameters())
        assert counts["vision"][1] == sum(p.numel() for p in vision.parameters()) - inside


def test_flags_that_match_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="match no linear layer of this model; try --targets all-linear"):
        adapter_targets(model, AdapterConfig())
    assert adapter_targets(model, AdapterConfig(targets="all-linear")) == ["0"]
