"""Attention over sequences of any lengths in one call, for vision towers and packed rows.

Without the flash-attn package transformers runs a vision tower's attention as a Python loop over pictures or windows:
thousands of small kernels a step, between which the GPU waits. torch itself has the kernel that takes them all at once
(`torch.nn.attention.varlen`); here it is registered as an attention implementation of transformers. On a device without
the kernel the same function computes sequence by sequence.

The function is traced into compiled layers: nothing in it looks at a tensor's values.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vlmtrain.loaded import base_of
from vlmtrain.speed import tile_attention
from vlmtrain.speed.packing import row_bounds
from vlmtrain.speed.qwen_attention import attend_in_place

__all__ = [
    "IMPLEMENTATION",
    "kernel_obstacle",
    "packed_language_attention",
    "register",
    "takes_any_size",
    "upper_bound",
    "use_varlen_vision",
    "varlen_attention",
    "vision_gains",
    "window_tokens",
]

# transformers passes sequence boundaries to implementations that have "flash" in their name.
IMPLEMENTATION = "torch_varlen_flash"

# By the beginning of vision_config.model_type. The first pass boundaries by themselves, the second a dense mask.
_TOWERS_WITH_BOUNDARIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_TOWERS_WITH_MASK = ("pixtral",)
# All pictures have the same number of tiles, some of them padding.
_TOWERS_WITH_TILES = ("mllama",)
_AMPERE = (8, 0)

Kernel = Callable[..., torch.Tensor]


@dataclass(slots=True)
class _Packed:
    """Where the rows of the packed batch begin that is going through the model."""

    boundaries: torch.Tensor | None = None
    longest: int = 0


_packed = _Packed()


@functools.cache
def kernel_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why torch's variable-length kernel cannot run there, or None.

    Args:
        device: Where the model is.
        dtype: Of its activations.
    """
    if device.type != "cuda":
        return f"the device is a {device.type}"
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"activations are {dtype}, and the kernel takes 16-bit ones"
    if _kernel is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has left it without types
def _has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    return kernel_obstacle(device, dtype) is None


def _find_kernel() -> Kernel | None:
    """Torch's kernel as `_sequence_by_sequence` takes its arguments; its own signature differs by version.

    Returns:
        None where this torch has none.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = set(inspect.signature(varlen_attn).parameters)
    takes_scale, takes_window = "scale" in parameters, "window_size" in parameters
    takes_groups = "enable_gqa" in parameters

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        boundaries: torch.Tensor,
        longest: int,
        *,
        scale: float,
        causal: bool,
        key_bounds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        arguments: dict[str, Any] = {}
        if takes_scale:
            arguments["scale"] = scale
        else:
            query = query * (scale * query.shape[-1] ** 0.5)
        if takes_window:
            arguments["window_size"] = (-1, 0) if causal else (-1, -1)
        else:
            arguments["is_causal"] = causal
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and takes_groups:
            arguments["enable_gqa"] = True
        elif groups > 1:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        bounds = (boundaries, boundaries if key_bounds is None else key_bounds)
        out: torch.Tensor = varlen_attn(query, key, value, *bounds, longest, longest, **arguments)
        return out

    return attend


_kernel = _find_kernel()


def _sequence_by_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    longest: int,
    *,
    scale: float,
    causal: bool,
    key_bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention within sequences, which `boundaries` cut out of the queries, and of the keys unless `key_bounds` do."""
    del longest
    lengths = boundaries.diff().tolist()
    key_lengths = lengths if key_bounds is None else key_bounds.diff().tolist()
    grouped = query.shape[1] != key.shape[1]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            scale=scale,
            is_causal=causal,
            enable_gqa=grouped,
        )[0].transpose(0, 1)
        for q, k, v in zip(query.split(lengths), key.split(key_lengths), value.split(key_lengths), strict=True)
    ]
    return torch.cat(parts)


def _attend(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    """With the kernel where the device has it; see `_sequence_by_sequence`."""
    attend = _kernel if _kernel is not None and _has_kernel(query.device, query.dtype) else _sequence_by_sequence
    return attend(query, *arguments, **options)


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attends within each sequence of a row of sequences; an attention function as transformers registers them.

    Args:
        module: The attention layer.
        query: `(1, H, T, D)`, T the tokens of all sequences.
        key: `(1, K, T, D)`, K dividing H.
        value: `(1, K, T, D)`.
        attention_mask: Must be None: nothing is padded.
        scaling: Of the scores; 1 / √D when None.
        dropout: Must be 0.
        is_causal: Whether a token sees only those before it; the layer's own when None.
        cu_seq_lens_q: `(N + 1,)` int32 beginnings of the sequences and their end. Unset: those of the packed batch.
        max_length_q: Tokens of the longest sequence, or more.

    Returns:
        `(1, T, H, D)`, and None for the weights, which are never formed.

    Raises:
        ValueError: A mask or dropout, or no boundaries.
    """
    if attention_mask is not None or dropout or query.shape[0] != 1:
        raise ValueError("variable-length attention takes one row of sequences, without mask and dropout")
    if cu_seq_lens_q is None:
        if _packed.boundaries is None:
            raise ValueError("variable-length attention needs cu_seq_lens_q, or a packed batch around it")
        cu_seq_lens_q, max_length_q = _packed.boundaries, _packed.longest
    elif max_length_q is None:
        max_length_q = int(cu_seq_lens_q.diff().max())
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    out = _attend(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens_q.to(torch.int32),
        max_length_q,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=causal,
    )
    return out[None], None


def upper_bound(longest: int) -> int:
    """The next power of two: the kernel takes any bound, and compiled layers are compiled anew for each number."""
    return 1 << max(0, longest - 1).bit_length()


def register() -> None:
    """Makes the function known to transformers, under `IMPLEMENTATION`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    AttentionInterface.register(IMPLEMENTATION, varlen_attention)
    AttentionInterface.register(tile_attention.IMPLEMENTATION, tile_attention.make_tile_attention(_attend))
    AttentionMaskInterface.register(IMPLEMENTATION, flash_attention_mask)


def vision_gains(model: Any) -> bool:
    """Whether the model's vision tower attends within pictures or windows of several in one row, or has a mask."""
    return takes_any_size(model) or _tower_type(model).startswith(_TOWERS_WITH_TILES)


def takes_any_size(model: Any) -> bool:
    """Whether pictures of any size go through the model's vision tower, in one row."""
    return _tower_type(model).startswith(_TOWERS_WITH_BOUNDARIES + _TOWERS_WITH_MASK)


def use_varlen_vision(model: Any, *, in_windows: bool = False) -> None:
    """Switches the vision tower of a model, possibly under adapters, to variable-length attention.

    Args:
        model: A transformers or peft model of a family for which `vision_gains`.
        in_windows: Whether a Qwen tower gives short sequences to the kernels for windows.

    Raises:
        ValueError: The tower is of another family.
    """
    if not vision_gains(model):
        raise ValueError(f"the vision tower of type {_tower_type(model)!r} has no use for variable-length attention")
    register()
    base = base_of(model)
    if _tower_type(model).startswith(_TOWERS_WITH_TILES):
        base.set_attn_implementation({"vision_config": tile_attention.IMPLEMENTATION})
        [tower] = [module for module in base.modules() if type(module).__name__ == "MllamaVisionModel"]
        tower.register_forward_pre_hook(tile_attention.note_tiles, with_kwargs=True)
        return
    base.set_attn_implementation({"vision_config": IMPLEMENTATION})
    if _tower_type(model).startswith(_TOWERS_WITH_BOUNDARIES):
        attend_in_place(model, varlen_attention, in_windows=in_windows)
    else:
        [tower] = [module for module in base.modules() if type(module).__name__ == "PixtralVisionModel"]
        tower.register_forward_pre_hook(_add_image_boundaries, with_kwargs=True)


def _add_image_boundaries(tower: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Pixtral keeps pictures apart with a dense T × T mask, which this implementation goes without."""
    sizes: Any = keywords.get("image_sizes", arguments[1] if len(arguments) > 1 else None)
    pixels: Any = keywords.get("pixel_values", arguments[0] if arguments else None)
    if sizes is None:
        sizes = [tuple(pixels.shape[-2:])] * len(pixels)
    elif isinstance(sizes, torch.Tensor):
        sizes = sizes.tolist()
    counts = [(height // tower.patch_size) * (width // tower.patch_size) for height, width in sizes]
    boundaries = torch.tensor([0, *counts], device=pixels.device).cumsum(0).to(torch.int32)
    # as plain numbers: slicing by numbers on the GPU would wait for it at each picture
    return (pixels,), {key: value for key, value in keywords.items() if key != "pixel_values"} | {
        "image_sizes": sizes,
        "cu_seq_lens_q": boundaries,
        "max_length_q": upper_bound(max(counts)),
    }


@contextlib.contextmanager
def packed_language_attention(model: Any, positions: torch.Tensor) -> Iterator[None]:
    """Within, the language model attends within the rows of a packed batch.

    Args:
        model: A transformers or peft model.
        positions: `(1, T)` positions that begin at 0 with each row; on the CPU, lest the GPU is waited for.
    """
    register()
    config = base_of(model).config.get_text_config()
    before = config._attn_implementation
    boundaries = row_bounds(positions).to(torch.int32)
    _packed.longest = upper_bound(int(boundaries.diff().max()))
    _packed.boundaries = boundaries.to(next(model.parameters()).device)
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before
        _packed.boundaries = None


def window_tokens(model: Any) -> int:
    """Patches of a window in which most blocks of the vision tower attend; 0 where there are no windows."""
    vision: Any = getattr(base_of(model).config, "vision_config", None)
    window_px: int | None = getattr(vision, "window_size", None)
    return (window_px // vision.patch_size) ** 2 if window_px else 0


def _tower_type(model: Any) -> str:
    return str(getattr(getattr(base_of(model).config, "vision_config", None), "model_type", ""))
