"""What a compiled block is said to keep against what torch's partitioner keeps of it, for each kind of vision tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.attention import varlen

from vlmtrain.backends import transformers as backend
from vlmtrain.block_memory import block_bytes
from vlmtrain.config import AdapterConfig
from vlmtrain.layers import vision_stacks
from vlmtrain.loaded import LoadedModel, base_of
from vlmtrain.model_shape import read_shape
from vlmtrain.processors import load_chat_format, load_processor
from vlmtrain.source import find_model
from vlmtrain.speed import attention, window_attention
from vlmtrain.speed.vision_inputs import VisionInputs

Call = tuple[tuple[Any, ...], dict[str, Any]]


def attend(query: Any, key: Any, value: Any, boundaries: Any, *_: Any, **__: Any) -> tuple[Any, ...]:
    """Stands in for torch's variable-length kernel, which a CPU has not; what comes out is not looked at."""
    return torch.zeros_like(query).contiguous(), torch.zeros(query.shape[1], len(query)), torch.zeros(2)


def attend_in_windows(states: Any, *_: Any) -> Any:
    """Stands in for the kernels for windows."""
    return torch.zeros_like(states[:, 0]).contiguous()


def load(family: str, folder: Path) -> tuple[LoadedModel, dict[str, Any]]:
    """A tiny model with adapters on all layers, as fit has it in 16 bit, and a batch of two pictures."""
    from vlmtrain.tiny import make_tiny

    make_tiny(family, folder, hidden_size=64, layers=2, vision_hidden_size=192, vision_layers=2)
    source = find_model(str(folder))
    processor = load_processor(source)
    processor.tokenizer.padding_side = "right"
    loaded = backend.load_model(
        source, processor, load_in="16bit", max_length=4096, method="lora", checkpointing="off", trust_remote_code=False
    )
    backend.add_adapter(loaded, AdapterConfig(), checkpointing="off", seed=0)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ],
        "images": [Image.new("RGB", (448, 448))],
    }
    chat = load_chat_format(source, processor)
    batch = backend.make_collator(loaded, chat, max_length=4096, last_turn_only=False)([row, row])
    return loaded, {name: tensor for name, tensor in batch.items() if name != "labels"}


def catch_calls(model: Any, blocks: list[Any], batch: dict[str, Any]) -> list[Call]:
    """What each block is called with in a forward pass; its first argument, the residual stream, asks for gradients."""
    calls: list[Call] = []

    def catch(_: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not arguments:
            name = next(iter(keywords))
            arguments, keywords = (keywords[name],), {key: each for key, each in keywords.items() if key != name}
        stream = arguments[0].detach().to(torch.bfloat16).requires_grad_()
        calls.append(((stream, *arguments[1:]), keywords))

    hooks = [block.register_forward_pre_hook(catch, with_kwargs=True) for block in blocks]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.train()(**batch)
    for hook in hooks:
        hook.remove()
    return calls


def kept_numbers(forward: Callable[..., Any], block: Any, call: Call, width: int) -> float:
    """16-bit numbers a position that a forward pass keeps, counted once by storage.

    Left out are weights, masks and rotations that all blocks are given, and an adapter's narrow middle.
    """
    storages: dict[int, tuple[int, Any]] = {}
    (stream, *others), keywords = call
    positions = stream.numel() // width
    given = [each for each in [*others, *keywords.values()] if isinstance(each, torch.Tensor)]
    foreign = {each.untyped_storage().data_ptr() for each in [*block.parameters(), *given]}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        of_positions = tensor.numel() % positions == 0 and storage.nbytes() >= positions * width * 2
        if of_positions and storage.data_ptr() not in foreign:
            # the tensor stays alive with the entry, or its address would be given out again
            storages[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each), torch.autocast("cpu", torch.bfloat16):
        forward(block, stream, *others, **keywords)
    return sum(size for size, _ in storages.values()) / 2 / positions


@pytest.mark.parametrize(
    ("family", "in_windows"),
    [
        *(("qwen2-vl", False), ("qwen2.5-vl", False), ("qwen2.5-vl", True), ("qwen3-vl", False), ("gemma3", False)),
        *(("pixtral", False), ("llava-1.5", False), ("llama3.2-vision", False)),
    ],
)
def test_a_compiled_block_keeps_what_the_partitioner_keeps(
    family: str, in_windows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, batch = load(family, tmp_path)
    if attention.takes_any_size(loaded.model):
        varlen._varlen_attn.register_kernel("cpu")(attend)
        window_attention._forward.register_kernel("cpu")(attend_in_windows)
        monkeypatch.setattr(attention, "kernel_obstacle", lambda device, dtype: None)
        attention.use_varlen_vision(loaded.model, in_windows=in_windows)
        vision_config = loaded.model.config.vision_config
        batch = VisionInputs(lambda _: batch, vision_config)([]) if "image_grid_thw" in batch else batch
    firsts = [stack[0] for stack in vision_stacks(base_of(loaded.model))]
    calls = catch_calls(loaded.model, firsts, batch)
    shapes = read_shape(loaded.source.config).stack("vision")
    if family == "qwen2.5-vl":
        assert [shape.in_windows for shape in shapes] == [True, False]
        shapes = [dataclasses.replace(shape, in_windows=in_windows) for shape in shapes]
    targets = {linear.name for shape in shapes for linear in shape.linears}
    torch._dynamo.reset()
    for block, call, shape in zip(firsts, calls, (shapes[0], shapes[-1]), strict=False):
        plain = type(block).forward
        compiled = torch.compile(plain, dynamic=True, fullgraph=True, backend="aot_eager_decomp_partition")
        kept = kept_numbers(compiled, block, call, shape.width)
        assert kept == block_bytes(shape, 1, targets=targets, fused=False, compiled=True) / 2
        # without adapters of its own, Unsloth's way casts nothing: a copy of what attention gives less, if that is kept
        copied = 0 if shape.in_windows else shape.width
        assert kept == block_bytes(shape, 1, targets=targets, fused=True, compiled=True) / 2 + copied
        assert kept <= kept_numbers(plain, block, call, shape.width)
