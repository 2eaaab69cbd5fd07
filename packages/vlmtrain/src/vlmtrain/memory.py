"""The GPU memory of a training step, by arithmetic from the shapes of the layers; nothing is loaded.

What stays all the time, in bytes a parameter:

    weights      32bit 4, 16bit 2, 8bit 1 + 4/columns, 4bit 0.516: NF4 in blocks of 64 with 8-bit scales, and a
                 32-bit scale for 256 of these (QLoRA, arXiv 2305.14314). Only linear layers of the language model
                 are quantised; vision tower, connector, embeddings and output head stay in 16 bit.
    trained      adapters of r (inputs + outputs) parameters a layer, held in 32 bit (4) with gradients (4), moments
                 (8; 8-bit AdamW 2) and the 16-bit copy that autocast keeps (2); with `--method full`, all weights.

What the forward pass keeps for the backward pass, in 16-bit numbers a position of one block. `h` is the width of the
residual stream, `m` of the MLP, `q`, `k`, `v` of the projections; a frozen linear layer keeps nothing, an adapter its
input. After Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198),
whose layers are all trained, so that their terms differ:

    norms        h each; 2 h where autocast computes it in 32 bit (LayerNorm, and every norm that is not compiled)
    adapters     h for those of the attention, h for those of the MLP; in eager PEFT each casts a copy of its own
    attention    q + k + v after rotation, and its output q; a fused `qkv` is held whole by its view of the values
    MLP          what gate and up give (2 m; 1 m without a gate), the activation (m; eager and gated), the product (m)

Checkpointing keeps one h a block instead, and one block at a time is computed again. The peak is the highest of three
moments: at the loss, in the backward pass of the language model, and in that of the vision tower, when all that the
language model kept is gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vlmtrain.adapter_config import AdapterConfig
from vlmtrain.layers import adapter_targets, full_modules
from vlmtrain.model_shape import Block, Linear, ModelShape, Norm

__all__ = [
    "OPTIMIZER_BYTES",
    "Checkpointing",
    "MemoryEstimate",
    "StepLoad",
    "block_bytes",
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
        held = block_bytes(block, positions, load=load, targets=targets, fused=fused)
        boundary = 0 if offloaded else positions * block.width * _HALF
        kept[block.part] += share * boundary + (1 - share) * held
        gradients = _gradient_bytes(block, positions, fused=fused)
        work[block.part] = max(work[block.part], (held if share else 0.0) + gradients)
    vision = kept["vision"] + kept["connector"] + _input_bytes(shape, load)
    if vision_learns:
        vision += _connector_bytes(shape, load, targets)
    elif shape.stack("vision"):
        # Nothing of a frozen tower is kept, but its widest block has to run.
        widest = max(shape.stack("vision"), key=lambda block: block.parameters)
        work["vision"] = _gradient_bytes(widest, load.patches, fused=fused)
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


def block_bytes(block: Block, positions: int, *, load: StepLoad, targets: set[str], fused: bool) -> int:
    """What one block keeps of a forward pass without checkpointing.

    Args:
        block: The block.
        positions: Tokens or patches that go through it.
        load: The micro-batch, for the pictures' share of cross-attention.
        targets: Names of the layers that are trained, by adapters or wholly.
        fused: See `estimate_memory`.
    """
    attention = [each for each in block.linears if each.kind == "attention"]
    mlp = [each for each in block.linears if each.kind != "attention"]
    numbers = sum(_norm_numbers(norm, block, fused=fused) for norm in block.norms)
    numbers += _attention_numbers(attention, targets, fused=fused, block=block, load=load, positions=positions)
    numbers += _mlp_numbers(mlp, targets, fused=fused)
    return int(numbers * positions * _HALF)


def _attention_numbers(
    layers: list[Linear], targets: set[str], *, fused: bool, block: Block, load: StepLoad, positions: int
) -> float:
    if not layers:
        return 0.0
    *projections, output = _output_last(layers)
    into = [each for each in projections if each.name in targets]
    numbers = float(sum(each.inputs for each in into[:1] if fused) + sum(each.inputs for each in into if not fused))
    if len(projections) == 1:
        # One layer gives queries, keys and values: rotation makes new queries and keys, the values hold the whole.
        numbers += projections[0].outputs * 2
    elif block.is_cross_attention:
        pictures = sum(each.outputs for each in projections if each.leaf in ("k_proj", "v_proj"))
        numbers += sum(each.outputs for each in projections) - pictures
        numbers += pictures * load.patches / max(positions, 1)
    else:
        numbers += sum(each.outputs for each in projections)
    numbers += output.inputs
    return numbers + (output.inputs if output.name in targets and not fused else 0)


def _mlp_numbers(layers: list[Linear], targets: set[str], *, fused: bool) -> float:
    if not layers:
        return 0.0
    *rising, falling = _output_last(layers)
    into = [each for each in rising if each.name in targets]
    numbers = float(sum(each.inputs for each in into[:1] if fused) + sum(each.inputs for each in into if not fused))
    numbers += sum(each.outputs for each in rising)
    if len(rising) > 1 and not fused:
        numbers += falling.inputs
    return numbers + (falling.inputs if falling.name in targets else 0)


def _output_last(layers: list[Linear]) -> list[Linear]:
    """Projections into the block first, the one back into the residual stream last; their order differs by model."""
    last = [each for each in layers if each.leaf in ("o_proj", "out_proj", "proj", "down_proj", "fc2", "linear_fc2")]
    output = last[-1] if last else layers[-1]
    return [each for each in layers if each is not output] + [output]


def _norm_numbers(norm: Norm, block: Block, *, fused: bool) -> float:
    features = norm.features
    if features < block.width:
        # Norms of queries and keys go over each head by itself.
        wanted = "q_proj" if "q" in norm.name.rpartition(".")[2] else "k_proj"
        features = next((each.outputs for each in block.linears if each.leaf == wanted), features)
    return features * (1.0 if fused and not norm.is_layer_norm else 2.0)


def _gradient_bytes(block: Block, positions: int, *, fused: bool) -> float:
    """What is in use at once while one block's gradients are computed: its widest tensors, four or six of them."""
    widest = max(each.outputs if each.outputs > each.inputs else each.inputs for each in block.linears)
    return positions * widest * _HALF * (4 if fused else 6)


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
