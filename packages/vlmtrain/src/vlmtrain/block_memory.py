"""What one block keeps of a forward pass for the backward pass, by arithmetic from the shapes of its layers.

In 16-bit numbers a position. `h` is the width of the residual stream, `m` of the MLP, `q`, `k`, `v` of the projections;
a frozen linear layer keeps nothing, an adapter its input. After Korthikanti et al., "Reducing Activation Recomputation
in Large Transformer Models" (arXiv 2205.05198), whose layers are all trained, so that their terms differ:

    norms        h each; 2 h where autocast computes it in 32 bit (LayerNorm, and every norm that is not compiled)
    adapters     h for those of the attention, h for those of the MLP; in eager PEFT each casts a copy of its own
    attention    q + k + v after rotation, and its output q; a fused `qkv` is held whole by its view of the values, and
                 is all that the kernels for windows keep
    MLP          what gate and up give (2 m; 1 m without a gate), the activation (m; eager and gated), the product (m)

A block that torch.compile takes whole is cut into forward and backward pass by its min-cut partitioner, which computes
32-bit copies, rotations and gates again, but nothing that a matrix product of the backward pass reads: the input of
each adapter stays. Under Unsloth, whose norms and MLPs are compiled one by one in any case, little is left to save: h
for each LayerNorm.
"""

from __future__ import annotations

from vlmtrain.model_shape import Block, Linear, Norm

__all__ = ["block_bytes", "gradient_bytes"]

_HALF = 2


def block_bytes(
    block: Block,
    positions: int,
    *,
    targets: set[str],
    fused: bool,
    compiled: bool = False,
    window_kernels: bool = True,
    pictures: float = 1.0,
) -> int:
    """What one block keeps of a forward pass without checkpointing.

    Args:
        block: The block.
        positions: Tokens or patches that go through it.
        targets: Names of the layers that are trained, by adapters or wholly.
        fused: Norms are compiled and adapters share their input, as in Unsloth.
        compiled: The block is compiled as a whole.
        window_kernels: Attention within windows goes through the kernels for it.
        pictures: Patches for each token, whose keys and values cross-attention keeps.
    """
    attention = [each for each in block.linears if each.kind == "attention"]
    in_windows = block.in_windows and window_kernels
    mlp = [each for each in block.linears if each.kind != "attention"]
    numbers = sum(_norm_numbers(norm, block, fused=fused, compiled=compiled) for norm in block.norms)
    if attention:
        numbers += _projection_numbers(
            block, attention, targets, fused=fused, compiled=compiled, in_windows=in_windows, pictures=pictures
        )
        output = _output_last(attention)[-1]
        adapted = output.name in targets
        # What attention gives is kept for its own sake, but by the kernels for windows, and for an adapter: peft casts
        # that to 32 bit, and autocast back, a copy, compiled or not.
        copies = adapted if in_windows else 1 + (adapted and not fused)
        numbers += copies * output.inputs
    if mlp:
        numbers += _mlp_numbers(mlp, targets, shared=fused or compiled)
    return int(numbers * positions * _HALF)


def gradient_bytes(block: Block, positions: int, *, fused: bool) -> float:
    """What is in use at once while one block's gradients are computed: its widest tensors, four or six of them.

    Args:
        block: The block.
        positions: Tokens or patches that go through it.
        fused: Its elementwise operations are compiled.
    """
    widest = max(each.outputs if each.outputs > each.inputs else each.inputs for each in block.linears)
    return positions * widest * _HALF * (4 if fused else 6)


def _projection_numbers(
    block: Block,
    layers: list[Linear],
    targets: set[str],
    *,
    fused: bool,
    compiled: bool,
    in_windows: bool,
    pictures: float,
) -> float:
    projections = _output_last(layers)[:-1]
    numbers = _input_numbers(projections, targets, shared=fused or compiled)
    if len(projections) == 1 and in_windows:
        return numbers + projections[0].outputs
    if len(projections) == 1:
        # One layer gives queries, keys and values, a third each: rotation makes new queries and keys, the values hold
        # the whole. That is five thirds; peaks measured with blocks that were not compiled fit six.
        return numbers + projections[0].outputs * (5 / 3 if compiled else 2)
    if block.is_cross_attention:
        of_pictures = sum(each.outputs for each in projections if each.leaf in ("k_proj", "v_proj"))
        numbers += of_pictures * (pictures - 1)
    return numbers + sum(each.outputs for each in projections)


def _mlp_numbers(layers: list[Linear], targets: set[str], *, shared: bool) -> float:
    *rising, falling = _output_last(layers)
    numbers = _input_numbers(rising, targets, shared=shared) + sum(each.outputs for each in rising)
    if len(rising) > 1 and not shared:
        numbers += falling.inputs
    return numbers + (falling.inputs if falling.name in targets else 0)


def _input_numbers(layers: list[Linear], targets: set[str], *, shared: bool) -> float:
    """Inputs of adapters on layers that are given the same: one, or a copy for each."""
    adapted = [each.inputs for each in layers if each.name in targets]
    return float(sum(adapted[:1] if shared else adapted))


def _output_last(layers: list[Linear]) -> list[Linear]:
    """Projections into the block first, the one back into the residual stream last; their order differs by model."""
    last = [each for each in layers if each.leaf in ("o_proj", "out_proj", "proj", "down_proj", "fc2", "linear_fc2")]
    output = last[-1] if last else layers[-1]
    return [each for each in layers if each is not output] + [output]


def _norm_numbers(norm: Norm, block: Block, *, fused: bool, compiled: bool) -> float:
    features = norm.features
    if features < block.width:
        # Norms of queries and keys go over each head by itself.
        wanted = "q_proj" if "q" in norm.name.rpartition(".")[2] else "k_proj"
        features = next((each.outputs for each in block.linears if each.leaf == wanted), features)
    return features * (1.0 if compiled or (fused and not norm.is_layer_norm) else 2.0)
