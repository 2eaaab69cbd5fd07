"""The memory arithmetic against what torch really keeps for the backward pass, and against measured peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmdata.errors import ConfigError
from vlmtrain.config import AdapterConfig
from vlmtrain.memory import StepLoad, estimate_memory, trainable_parameters
from vlmtrain.model_shape import ModelShape, read_shape
from vlmtrain.source import find_model

SMALL = StepLoad(rows=8, tokens=2224, patches=8064)
LARGE = StepLoad(rows=8, tokens=7984, patches=31104)


@pytest.fixture(scope="module")
def measured_shape(measured_config: dict[str, Any]) -> ModelShape:
    return read_shape(measured_config)


@pytest.mark.parametrize(
    ("load", "checkpointing", "options", "peak_gb"),
    [
        (SMALL, "off", {}, 28.0),
        (LARGE, "off", {}, 84.0),
        (SMALL, "full", {}, 10.0),
        (LARGE, "full", {}, 13.0),
        (SMALL, "full", {"offloaded": True}, 9.0),
        (LARGE, "full", {"offloaded": True}, 11.0),
        (SMALL, "full", {"fused": False}, 13.0),
        (LARGE, "full", {"fused": False}, 26.0),
    ],
)
def test_peaks_measured_on_a_gpu_are_foreseen(
    measured_shape: ModelShape, load: StepLoad, checkpointing: Any, options: dict[str, Any], peak_gb: float
) -> None:
    estimate = estimate_memory(
        measured_shape, load, adapter=AdapterConfig(), load_in="16bit", checkpointing=checkpointing, **options
    )
    assert estimate.peak / 1e9 == pytest.approx(peak_gb, rel=0.15)
    assert estimate.device > estimate.peak


def test_parts_add_up_and_follow_the_settings(measured_shape: ModelShape) -> None:
    def peak(load_in: str = "16bit", checkpointing: Any = "off", **given: Any) -> int:
        adapter = AdapterConfig(**given)
        return estimate_memory(
            measured_shape, LARGE, adapter=adapter, load_in=load_in, checkpointing=checkpointing
        ).peak

    off, selective, full = (peak(checkpointing=each) for each in ("off", "selective", "full"))
    assert off > selective > full
    assert peak("32bit") > peak("16bit") > peak("8bit") > peak("4bit")
    assert peak(r=64) > peak(r=16)
    # a frozen tower keeps nothing: 48 GB less of what its 31,104 patches would keep
    assert peak() - peak(finetune_vision_layers=False) > 40e9
    assert peak(method="full") - peak() > 4e9 * 4
    estimate = estimate_memory(measured_shape, LARGE, adapter=AdapterConfig(), load_in="16bit", checkpointing="off")
    assert estimate.weights == measured_shape.total * 2
    assert estimate.peak == pytest.approx(
        estimate.weights
        + estimate.adapters
        + estimate.optimizer
        + estimate.vision_activations
        + estimate.language_activations
        + estimate.transient,
        abs=10,
    )


def test_adapter_parameters_are_those_of_peft(lora_run: Path) -> None:
    from safetensors.torch import load_file

    stored = sum(tensor.numel() for tensor in load_file(lora_run / "adapter" / "adapter_model.safetensors").values())
    assert trainable_parameters(read_shape(find_model(str(lora_run)).config), AdapterConfig()) == stored


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "gemma3", "llama3.2-vision", "pixtral", "llava-1.6"])
def test_activations_are_those_that_torch_keeps(family: str, tmp_path: Path) -> None:
    """Every tensor that autograd saves in the reference backend, weights apart, counted once by its storage."""
    from vlmtrain.backends import transformers as backend
    from vlmtrain.processors import load_chat_format, load_processor
    from vlmtrain.tiny import make_tiny

    make_tiny(family, tmp_path, hidden_size=256, layers=2, vision_hidden_size=192, vision_layers=2)
    source = find_model(str(tmp_path))
    processor = load_processor(source)
    chat = load_chat_format(source, processor)
    loaded = backend.load_model(
        source, processor, load_in="16bit", max_length=4096, method="lora", checkpointing="off", trust_remote_code=False
    )
    adapter = AdapterConfig()
    backend.add_adapter(loaded, adapter, checkpointing="off", seed=0)
    shape = read_shape(source.config)
    trained = sum(each.numel() for each in loaded.model.parameters() if each.requires_grad)
    assert trainable_parameters(shape, adapter) == trained
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what " * 200}]},
            {"role": "assistant", "content": [{"type": "text", "text": "it is " * 50}]},
        ],
        "images": [Image.new("RGB", (448, 448))],
    }
    batch = backend.make_collator(loaded, chat, max_length=4096, last_turn_only=False)([row, row])
    kept, patches = _keep_and_count(loaded.model, batch, shape.stack("vision")[0].linears[0].name)
    load = StepLoad(rows=2, tokens=batch["input_ids"].numel(), patches=patches)
    estimate = estimate_memory(shape, load, adapter=adapter, load_in="16bit", checkpointing="off", fused=False)
    assert estimate.vision_activations + estimate.language_activations == pytest.approx(kept, rel=0.15)


def test_an_unknown_type_has_no_shape() -> None:
    with pytest.raises(ConfigError, match="no vision-language model of type 'nothing'"):
        read_shape({"model_type": "nothing"})


def _keep_and_count(model: Any, batch: dict[str, Any], first_vision_layer: str) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward pass, and positions of the vision tower."""
    storages: dict[int, tuple[int, Any]] = {}
    own = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    patches = 0

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # the tensor stays alive with the entry, or its address would be given out again
            storages[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    def count(_module: Any, inputs: Any, _output: Any) -> None:
        nonlocal patches
        patches = inputs[0].numel() // inputs[0].shape[-1]

    layer = next(each for name, each in model.named_modules() if name.endswith(first_vision_layer))
    layer.register_forward_hook(count)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each), torch.autocast("cpu", torch.bfloat16):
        model.train()(**inputs)
    return sum(size for size, _ in storages.values()), patches


@pytest.mark.parametrize(("model_type", "in_windows"), [("got_ocr2", 0), ("florence2", 0), ("qwen2_5_vl", 28)])
def test_a_window_size_of_another_family_is_none_of_ours(model_type: str, in_windows: int) -> None:
    from transformers import AutoConfig

    blocks = read_shape(AutoConfig.for_model(model_type).to_dict()).blocks
    assert sum(block.in_windows for block in blocks) == in_windows
