"""Adapters of every kind, in every family: where they sit, what is trained beside them, and what is printed of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForImageTextToText

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import FAMILIES
from vlmtrain.adapter_config import PRESETS, describe_preset
from vlmtrain.backends import transformers as backend
from vlmtrain.config import FitConfig
from vlmtrain.layers import adapter_targets, full_modules, part_of
from vlmtrain.loaded import LoadedModel
from vlmtrain.loftq import begin_with_rounding
from vlmtrain.memory import trainable_parameters
from vlmtrain.merged_weights import compare_weights, sample_merged_weights
from vlmtrain.model_shape import read_shape
from vlmtrain.preparation import check_named_modules
from vlmtrain.source import find_model
from vlmtrain.trainable import describe_trainable, list_trainable, widen_trained_copies

NEEDED = {"data": "data", "model": "model", "out": "run"}


@pytest.fixture(scope="module")
def load(tiny):
    def load_model(name: str, **options) -> LoadedModel:
        source = find_model(str(tiny(name)))
        model = AutoModelForImageTextToText.from_pretrained(source.name, **options)
        return LoadedModel(
            model=model, processor=None, source=source, backend="transformers", load_in="32bit", dtype=torch.float32
        )

    return load_model


def adapter_of(**values):
    return FitConfig.from_values(NEEDED | values).adapter


def add(loaded: LoadedModel, **values):
    config = adapter_of(**values)
    backend.add_adapter(loaded, config, checkpointing="off", seed=1)
    return config


EXPECTED_PARTS = {
    "full": {"vision", "language"},
    "new-domain": {"vision", "connector", "language"},
    "same-domain": {"language"},
    "quick": {"language"},
    "vision-only": {"vision"},
    "language-only": {"language"},
    "minimal": {"language"},
    "medical": {"vision", "language"},
    "notebook": {"vision", "language"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_is_that_of_the_modules_that_have_adapters(name, load) -> None:
    for preset in ("medical", "quick", "vision-only") + (() if name == "gemma3" else ("new-domain",)):
        loaded = load(name)
        config = add(loaded, preset=preset)
        adapted = [n for n, module in loaded.model.named_modules() if isinstance(module, LoraLayer)]
        table = {each.part: each for each in list_trainable(loaded.model)}
        assert {part for part, each in table.items() if each.adapted} == EXPECTED_PARTS[preset]
        for part, each in table.items():
            assert each.adapted == sum(part_of(n) == part for n in adapted)
            trained = [p for n, p in loaded.model.named_parameters() if part_of(n) == part and p.requires_grad]
            assert each.trainable == sum(p.numel() for p in trained)
            assert (each.trainable > 0) == (each.adapted > 0)
        if preset == "quick":
            assert all("attn" in n for n in adapted)
        # the plan foresees the same number
        shape = read_shape(loaded.source.config)
        assert trainable_parameters(shape, config) == sum(each.trainable for each in table.values())


def test_every_preset_is_a_config_and_flags_win() -> None:
    assert set(EXPECTED_PARTS) == set(PRESETS)
    for preset, values in PRESETS.items():
        config = FitConfig.from_values(NEEDED | {"preset": preset})
        flat = config.flat()
        assert {name: flat[name] for name in values} == values
        # a run's config.yaml makes the same run
        assert FitConfig.from_values(flat).flat() == flat
        assert 2e-5 <= min(config.lr, config.vision_lr, config.connector_lr) <= config.lr <= 2e-4
    own = FitConfig.from_values(
        NEEDED | {"preset": "medical", "r": 4, "vision_lr": 3e-5, "finetune_mlp_modules": False}
    )
    assert (own.adapter.r, own.adapter.alpha, own.lr, own.vision_lr) == (4, 32, 1e-4, 3e-5)
    assert not own.adapter.finetune_mlp_modules
    notebook = FitConfig.from_values(NEEDED | {"preset": "notebook", "load_in": "16bit"})
    assert (notebook.model.load_in, notebook.optimizer.grad_accum, notebook.optimizer.optimizer) == (
        "16bit",
        4,
        "adamw_8bit",
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"preset": "big"}, "unknown preset 'big'; there are full, new-domain"),
        ({"preset": "medical", "method": "full"}, "preset 'medical' chooses adapters, and method 'full' trains all"),
        (
            {"method": "full", "dora": True, "connector": "lora"},
            "dora, connector: of adapters; method 'full' trains all",
        ),
        ({"dora": True, "loftq": True}, "dora clashes with loftq"),
        ({"loftq": True, "load_in": "16bit"}, "loftq clashes with load_in '16bit'"),
        ({"connector_lr": 0.0}, "connector_lr must be positive"),
        (
            {"finetune_vision_layers": False, "finetune_language_layers": False, "connector": "full"},
            "nothing is left to train",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(values, problem) -> None:
    with pytest.raises(ConfigError) as caught:
        FitConfig.from_values(NEEDED | values)
    assert any(problem in each for each in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("name", FAMILIES)
def test_a_connector_trained_in_full_is_merged_with_the_adapters(name, load) -> None:
    loaded = load(name)
    family = FAMILIES[name]
    connectors = [loaded.model.get_submodule(each) for each in family.connector_modules]
    expected = sum(p.numel() for module in connectors for p in module.parameters())
    config = add(loaded, connector="full", finetune_vision_layers=False)
    [connector] = [each for each in list_trainable(loaded.model) if each.part == "connector"]
    assert (connector.adapted, connector.trainable) == (0, expected)
    assert trainable_parameters(read_shape(loaded.source.config), config) == sum(
        p.numel() for p in loaded.model.parameters() if p.requires_grad
    )
    move(loaded.model)
    samples = sample_merged_weights(loaded.model)
    merged = loaded.model.merge_and_unload(safe_merge=True)
    found = compare_weights(samples, merged)
    assert found.changed_layers == found.layers == len(samples)
    assert sum(part_of(each) == "connector" for each in samples) > 0
    with pytest.raises(DataError, match="adapted layers are not merged as trained"):
        compare_weights(samples, AutoModelForImageTextToText.from_pretrained(loaded.source.name))


def move(model) -> None:
    """Every trained parameter away from where it began."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_connector_of_linear_layers_is_adapted(load) -> None:
    loaded = load("qwen3-vl")
    add(loaded, connector="lora", finetune_vision_layers=False, finetune_language_layers=False)
    adapted = [n for n, module in loaded.model.named_modules() if isinstance(module, LoraLayer)]
    assert adapted
    assert {part_of(n) for n in adapted} == {"connector"}
    with pytest.raises(ConfigError, match="no linear layer to adapt: use --connector full"):
        adapter_targets(load("gemma3").model, adapter_of(connector="lora"))


def test_further_modules_are_trained_in_full(load) -> None:
    loaded = load("llava-1.5")
    add(loaded, modules_to_save=("lm_head", "embed_tokens"))
    wrapped = {n for n, module in loaded.model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    assert wrapped == {"base_model.model.lm_head", "base_model.model.model.language_model.embed_tokens"}
    [head] = [each for each in list_trainable(loaded.model) if each.part == "head"]
    assert (head.in_full, head.trainable) == (1, loaded.model.config.text_config.vocab_size * 64)
    move(loaded.model)
    samples = sample_merged_weights(loaded.model)
    assert "lm_head" in samples
    compare_weights(samples, loaded.model.merge_and_unload())


def test_modules_that_are_not_there_or_tied_are_refused(load) -> None:
    with pytest.raises(ConfigError) as caught:
        full_modules(load("gemma3").model, adapter_of(modules_to_save=("lm_haed", "lm_head")))
    missing, tied = caught.value.problems
    assert missing == "modules_to_save: the model has no module 'lm_haed'"
    assert tied.startswith("modules_to_save: 'lm_head' shares its weights with another module (tied embeddings)")
    # the same before weights are loaded
    shape = read_shape(load("gemma3").source.config)
    with pytest.raises(ConfigError, match="tied embeddings"):
        full_modules(shape.model, adapter_of(modules_to_save=("lm_head",)))


@pytest.mark.parametrize("name", ["qwen2.5-vl", "llama3.2-vision"])
def test_dora_is_merged_as_it_computes(name, load) -> None:
    loaded = load(name)
    config = add(loaded, dora=True, rslora=True)
    trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert trainable_parameters(read_shape(loaded.source.config), config) == trained
    assert any("lora_magnitude_vector" in n for n, _ in loaded.model.named_parameters())
    move(loaded.model)
    samples = sample_merged_weights(loaded.model)
    found = compare_weights(samples, loaded.model.merge_and_unload(safe_merge=True))
    assert found.changed_layers == found.layers > 0


def test_copies_that_are_trained_are_held_in_32_bit(load) -> None:
    loaded = load("qwen2.5-vl", dtype=torch.bfloat16)
    add(loaded, connector="full")
    assert {p.dtype for n, p in loaded.model.named_parameters() if "modules_to_save" in n} == {torch.bfloat16}
    widen_trained_copies(loaded.model)
    trained = {p.dtype for p in loaded.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    assert {p.dtype for p in loaded.model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_loftq_begins_with_the_rounding_of_4_bit_weights(load) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=[r".*\bvisual\b"]
    )
    loaded = load("qwen2.5-vl", quantization_config=quantised, dtype=torch.bfloat16)
    add(loaded, r=8, alpha=32)
    layers, share = begin_with_rounding(loaded)
    original = AutoModelForImageTextToText.from_pretrained(loaded.source.name, dtype=torch.bfloat16)
    errors = []
    for name, module in loaded.model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if part_of(name) == "vision":
            assert not module.lora_B["default"].weight.any()
            continue
        base = module.get_base_layer().weight
        rounded = dequantize_4bit(base.data, base.quant_state).float()
        rounding = original.get_submodule(name).weight.float() - rounded
        rest = rounding - module.get_delta_weight("default").float()
        # no matrix of that rank comes nearer (Eckart and Young)
        best = torch.linalg.svdvals(rounding)[8:].square().sum()
        assert rest.square().sum() < 1.1 * best
        errors.append(1 - float(rest.square().sum() / rounding.square().sum()))
    assert layers == len(errors) == 14
    assert share == pytest.approx(sum(errors) / len(errors), rel=1e-3)
    assert share > 0.2


def test_what_unsloth_cannot_train_is_refused_before_loading(load) -> None:
    stand_in = SimpleNamespace(NAME="unsloth")
    config = FitConfig.from_values(NEEDED | {"connector": "full"})
    words = "would leave model.multi_modal_projector.mm_input_projection_weight as it is, which is no layer's weight"
    with pytest.raises(ConfigError, match=words):
        check_named_modules(config, load("gemma3").source, stand_in)
    check_named_modules(config, load("gemma3").source, backend)
    check_named_modules(config, load("qwen3-vl").source, stand_in)


def test_what_a_preset_sets_is_said() -> None:
    config = FitConfig.from_values(NEEDED | {"preset": "medical", "r": 4})
    assert describe_preset("medical", config.flat()) == (
        "preset medical: alpha 32, lr 0.0001, vision_lr 5e-05; given instead: r 4"
    )


def test_the_table_as_text(load) -> None:
    loaded = load("qwen2.5-vl")
    add(loaded, connector="full", modules_to_save=("norm",))
    lines = describe_trainable(list_trainable(loaded.model)).splitlines()
    assert lines[0].split() == ["trainable", "adapted", "layers", "in", "full", "parameters", "of", "all", "share"]
    assert [line.split()[0] for line in lines[1:]] == ["vision", "connector", "language", "head", "together"]
    assert lines[2].split()[1:3] == ["0", "3"]
    trained = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    assert lines[-1].split()[3] == f"{trained:,}"
