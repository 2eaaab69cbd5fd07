"""The GPU memory of a training step, by arithmetic from the shapes of the layers; nothing is loaded.

What stays all the time, in bytes a parameter:

    weights      32bit 4, 16bit 2, 8bit 1 + 4/columns, 4bit 0.516: NF4 in blocks of 64 with 8-bit scales, and a
                 32-bit scale for 256 of these (QLoRA, arXiv 2305.14314). Only linear layers of the language model
                 are quantised; vision tower, connector, embeddings and output head stay in 16 bit.
    trained      adapters of r (inputs + outputs) parameters a layer, held in 32 bit (4) with gradients (4), moments
                 (8; 8-bit AdamW 2) and the 16-bit copy that autocast keeps (2); with `--method full`, all weights.

What a block keeps of the forward pass is worked out in `vlmtrain.block_memory`. Checkpointing keeps the block's input
instead, and one block at a time is computed again. The peak is the highest of three moments: at the loss, in the
backward pass of the language model, and in that of the vision tower, when all that the language model kept is gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vlmtrain.adapter_config import AdapterConfig
from vlmtrain.block_memory import block_bytes, gradient_bytes
from vlmtrain.layers import adapter_targets, full_modules
from vlmtrain.model_shape import Block, ModelShape

__all__ = [
    "OPTIMIZER_BYTES",
    "Checkpointing",
    "MemoryEstimate",
    "StepLoad",
    "estimate_memory",
    "trainable_parameters",
]

Checkpointing = Literal["off", "selective", "full"]

_WEIGHT_BYTES = {"32bit": 4.0, "16bit": 2.0, "8bit": 1.0 + 4 / 4096, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
OPTIMIZER_BYTES = {"adamw_8bit": 2.03, "paged_adamw_8bit": 2.03, "adamw_torch": 8.0, "adamw_torch_fused": 8.0}
"""Bytes of state for each trained weight."""
_HALF = 2
_SINGLE = 4
# Unsloth's fused loss goes through the logits in pieces of at most 4 GiB, counted as 16 bytes a logit, in a multiple
# of four pieces; what its compiled form really holds of a piece is about half.
_CHUNK_BYTES = 4 << 30
_CHUNK_LOGIT_BYTES = 16
_CHUNK_SHARE = 0.5
# The reference backend: 16-bit logits, log-softmax and gradient in 32 bit, gradient in 16 bit.
_EAGER_LOGIT_BYTES = 12
_RUNTIME_BYTES = 600 << 20
"""CUDA context and libraries' workspaces, which torch's allocator does not count."""
_FRAGMENTATION = 0.04
"""What the allocator reserves beyond what is in use at the peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """What one forward pass has to carry."""

    rows: int
    """Of the micro-batch."""
    tokens: int
    """Positions of the language model, padding included: rows x longest row."""
    patches: int
    """Positions of the vision tower, all pictures of the micro-batch together."""
    loss_tokens: int | None = None
    """Positions whose logits are computed, where a backend leaves out those without loss; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Where the memory goes, in bytes."""

    weights: int
    """Of the base model."""
    adapters: int
    """Adapters, or in full fine-tuning the 16-bit copies of the weights."""
    optimizer: int
    """Gradients and moments of what is trained."""
    vision_activations: int
    """Kept by the vision tower and the connector, their adapters included."""
    language_activations: int
    """Kept by the language model, its adapters included."""
    transient: int
    """The most that the loss, or one block of the backward pass, needs on top at the peak."""
    peak: int
    """Highest sum in use, as `torch.cuda.max_memory_allocated` counts."""

    @property
    def device(self) -> int:
        """What the GPU must have free: the peak, the allocator's slack and CUDA itself."""
        return int(self.peak * (1 + _FRAGMENTATION)) + _RUNTIME_BYTES


def estimate_memory(
    shape: ModelShape,
    load: StepLoad,
    *,
    adapter: AdapterConfig,
    load_in: str,
    checkpointing: Checkpointing,
    selective_share: float = 0.5,
    fused: bool = True,
    offloaded: bool = False,
    optimizer: str = "adamw_8bit",
    compiled_vision: bool = False,
    window_kernels: bool = True,
) -> MemoryEstimate:
    """Estimates the peak of a training step.

    Args:
        shape: The model's layers, from `read_shape`.
        load: The micro-batch; for a plan, the one of the longest rows.
        adapter: Method, rank and the layers that are adapted.
        load_in: `4bit`, `8bit`, `16bit` or `32bit`.
        checkpointing: `off` keeps every activation, `full` recomputes every block, `selective` a share of them.
        selective_share: Share of the blocks of either stack that `selective` recomputes.
        fused: Norms and loss are compiled and adapters share their input, as in Unsloth; False for plain
            transformers with peft.
        offloaded: Checkpoints go to the host's memory, as with Unsloth's own checkpointing.
        optimizer: Name of the optimizer.
        compiled_vision: The blocks of the vision tower are compiled, as `vlmtrain.speed.compiled_blocks` does it.
        window_kernels: Attention within windows goes through the kernels for it, as on a GPU that has them.

    Returns:
        The parts and the peak.
    """
    weights = _weight_bytes(shape, load_in)
    trained = trainable_parameters(shape, adapter)
    full = adapter.method == "full"
    wide = not full or load_in == "32bit"
    size = _SINGLE if wide else _HALF
    states = trained * (size + OPTIMIZER_BYTES.get(optimizer, 8.0))
    copies = trained * ((_HALF if wide else 0) + (0 if full else _SINGLE))
    static = weights + copies + states

    targets = {layer.name for layer in shape.linears} if full else set(adapter_targets(shape.model, adapter))
    share = {"off": 0.0, "selective": selective_share, "full": 1.0}[checkpointing]
    kept = {"vision": 0.0, "language": 0.0, "connector": 0.0}
    work = {"vision": 0.0, "language": 0.0, "connector": 0.0}
    vision_learns = _learns_in(targets, shape)
    for block in shape.blocks:
        if block.part != "language" and not vision_learns:
            continue
        positions = _positions(block, load, shape)
        compiled = compiled_vision and block.part == "vision"
        pictures = load.patches / max(positions, 1) if block.is_cross_attention else 1.0
        how = {"fused": fused, "compiled": compiled, "window_kernels": window_kernels and load_in != "32bit"}
        held = block_bytes(block, positions, pictures=pictures, targets=targets, **how)
        boundary = 0 if offloaded else positions * block.width * _HALF
        kept[block.part] += share * boundary + (1 - share) * held
        gradients = gradient_bytes(block, positions, fused=fused or compiled)
        work[block.part] = max(work[block.part], (held if share else 0.0) + gradients)
    vision = kept["vision"] + kept["connector"] + _input_bytes(shape, load)
    if vision_learns:
        vision += _connector_bytes(shape, load, targets)
    elif shape.stack("vision"):
        # Nothing of a frozen tower is kept, but its widest block has to run.
        widest = max(shape.stack("vision"), key=lambda block: block.parameters)
        work["vision"] = gradient_bytes(widest, load.patches, fused=fused)
    if _masks_all_pairs(shape):
        vision += load.patches**2 * _HALF
    language = kept["language"] + 2 * load.tokens * shape.hidden * _HALF
    moments = (
        vision + language + _loss_bytes(shape, load, fused=fused),
        vision + language + work["language"] + _unpacked_bytes(shape, load_in),
        vision + max(work["vision"], work["connector"]),
    )
    return MemoryEstimate(
        weights=int(weights),
        adapters=int(copies),
        optimizer=int(states),
        vision_activations=int(vision),
        language_activations=int(language),
        transient=int(max(moments) - vision - language if max(moments) > vision + language else 0),
        peak=int(static + max(moments)),
    )


def trainable_parameters(shape: ModelShape, adapter: AdapterConfig) -> int:
    """Parameters that are trained: r (inputs + outputs) of each adapted layer, and modules in full; or all."""
    if adapter.method == "full":
        return shape.total
    targets = set(adapter_targets(shape.model, adapter))
    in_full = [shape.model.get_submodule(name) for name in full_modules(shape.model, adapter)]
    adapted = [each for each in shape.linears if each.name in targets]
    # DoRA learns a magnitude for each output besides
    magnitudes = sum(each.outputs for each in adapted) if adapter.dora else 0
    copied = sum(int(parameter.numel()) for module in in_full for parameter in module.parameters())
    return sum(adapter.r * (each.inputs + each.outputs) for each in adapted) + magnitudes + copied


def _positions(block: Block, load: StepLoad, shape: ModelShape) -> int:
    if block.part == "vision":
        return load.patches
    return load.patches // shape.merge if block.part == "connector" else load.tokens


def _learns_in(targets: set[str], shape: ModelShape) -> bool:
    before_text = [each.name for block in shape.blocks if block.part != "language" for each in block.linears]
    before_text += [each.name for each in shape.others if each.leaf != "lm_head"]
    return not targets.isdisjoint(before_text)


def _connector_bytes(shape: ModelShape, load: StepLoad, targets: set[str]) -> float:
    layers = [each for each in shape.others if each.leaf != "lm_head"]
    numbers = sum(each.outputs + (each.inputs if each.name in targets else 0) for each in layers)
    return load.patches / shape.merge * numbers * _HALF


def _input_bytes(shape: ModelShape, load: StepLoad) -> float:
    """Pixels in 32 bit, and the embedded patches."""
    vision = shape.stack("vision")
    return load.patches * (3 * 16**2 * _SINGLE + (vision[0].width * _HALF if vision else 0))


def _masks_all_pairs(shape: ModelShape) -> bool:
    """Pixtral's tower puts all pictures into one sequence, and keeps them apart by a mask of all pairs."""
    return shape.vision_type == "pixtral"


def _loss_bytes(shape: ModelShape, load: StepLoad, *, fused: bool) -> float:
    positions = load.tokens if load.loss_tokens is None or not fused else load.loss_tokens
    logits = positions * shape.vocabulary
    if not fused:
        return float(logits * _EAGER_LOGIT_BYTES)
    whole = logits * _CHUNK_LOGIT_BYTES
    pieces = 1 if whole <= _CHUNK_BYTES else math.ceil(whole / _CHUNK_BYTES / 4) * 4
    return whole / pieces * _CHUNK_SHARE + load.tokens * shape.hidden * _HALF


def _weight_bytes(shape: ModelShape, load_in: str) -> float:
    if load_in in ("16bit", "32bit"):
        return shape.total * _WEIGHT_BYTES[load_in]
    packed = sum(each.inputs * each.outputs for block in shape.stack("language") for each in block.linears)
    return packed * _WEIGHT_BYTES[load_in] + (shape.total - packed) * _WEIGHT_BYTES["16bit"]


def _unpacked_bytes(shape: ModelShape, load_in: str) -> float:
    """A quantised layer is unpacked whole when it is used."""
    if load_in not in ("4bit", "8bit"):
        return 0.0
    return max(each.inputs * each.outputs for block in shape.stack("language") for each in block.linears) * _HALF
