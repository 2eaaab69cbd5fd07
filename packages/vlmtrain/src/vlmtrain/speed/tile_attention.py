"""Attention of Llama 3.2's vision tower without its mask: tokens of tiles that are padding go apart from the others.

A picture always has as many tiles as the largest, most of them padding. A dense mask of all pairs of tokens keeps the
padding from seeing itself; for its sake torch takes a kernel that is a multiple slower than the one without masks. What
the mask says can be said in two calls with sequences of any lengths: tokens of the picture see all tokens, those of the
padding the picture's. That leaves out half of the pairs or more where most tiles are padding. The tower still makes its
mask, once a pass; nobody looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["IMPLEMENTATION", "TileLayout", "make_tile_attention", "note_tiles"]

IMPLEMENTATION = "torch_varlen_tiles"

Attend = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLayout:
    """Which tokens of some pictures are padding. T is the tokens of all pictures, R those that are no padding."""

    order: torch.Tensor
    """`(T,)` tokens by number: those of the pictures, one picture after the other, then the padding likewise."""
    back: torch.Tensor
    """`(T,)` where each token is in `order`."""
    real: torch.Tensor
    """`(R,)` the first of `order`."""
    real_bounds: torch.Tensor
    """`(N + 1,)` int32: where each picture's tokens begin in `real`, and their number."""
    rest_bounds: torch.Tensor
    """`(N + 1,)` int32: the same of the padding, in the rest of `order`."""
    all_bounds: torch.Tensor
    """`(N + 1,)` int32: the same of all tokens."""

    @classmethod
    def of(cls, tiles: list[list[int]], tile_tokens: int, patches: int, device: torch.device) -> TileLayout:
        """From the tiles that pictures have.

        Args:
            tiles: For each picture and tile 1, or 0 where it is padding; the first is never 0.
            tile_tokens: Tokens of a tile.
            patches: Those of them that are no padding, its first.
            device: Where to.
        """
        kept = torch.tensor(tiles, dtype=torch.bool)
        real = (kept[:, :, None] & (torch.arange(tile_tokens) < patches)).flatten(1)
        order = torch.cat([real.flatten().nonzero().flatten(), (~real).flatten().nonzero().flatten()])
        counts = real.sum(dim=1)

        def bounds(lengths: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32, non_blocking=True)

        return cls(
            order=order.to(device),
            back=order.argsort().to(device),
            real=order[: int(counts.sum())].to(device),
            real_bounds=bounds(counts),
            rest_bounds=bounds(real.shape[1] - counts),
            all_bounds=bounds(torch.full_like(counts, real.shape[1])),
        )


@dataclass(slots=True)
class _Current:
    """The pictures that are going through the tower, or went last: recomputation needs them once more."""

    layout: TileLayout | None = None


_current = _Current()


def note_tiles(tower: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Notes which tiles are padding; a hook before a tower's forward pass."""
    mask = keywords["aspect_ratio_mask"] if "aspect_ratio_mask" in keywords else arguments[2]
    # tokens are padded to a multiple of 8
    tokens = -(-tower.num_patches // 8) * 8
    _current.layout = TileLayout.of(mask.flatten(0, -2).tolist(), tokens, tower.num_patches, tower.device)


class _Permute(torch.autograd.Function):  # type: ignore[misc]  # torch's class is untyped here
    """Rows in another order; the gradient goes back by the inverse, where torch would add up in place."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        [back] = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


class _Pick(torch.autograd.Function):  # type: ignore[misc]
    """Some rows, each once."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(picked)
        ctx.count = rows.shape[0]
        return rows.index_select(0, picked)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        [picked] = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return whole.index_copy(0, picked, gradient), None


def make_tile_attention(attend: Attend) -> Callable[..., tuple[torch.Tensor, None]]:
    """Makes an attention function as transformers registers them.

    Args:
        attend: `(query, key, value, bounds, longest, *, scale, causal, key_bounds)`, attention within sequences.
    """

    def tile_attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attends within each picture, as the tower's mask has it, which is not looked at.

        Args:
            module: The attention layer.
            query: `(N, H, S, D)`, S the tokens of all tiles of a picture.
            key: The same.
            value: The same.
            attention_mask: Stands in `TileLayout` already.
            scaling: Of the scores; 1 / √D when None.
            dropout: Must be 0.

        Returns:
            `(N, S, H, D)`, and None for the weights, which are never formed.

        Raises:
            ValueError: Dropout, or no tower around it.
        """
        layout = _current.layout
        if dropout or layout is None:
            raise ValueError("attention between tiles takes no dropout, and a tower around it")
        pictures, heads, tokens, channels = query.shape
        q, k, v = (each.transpose(1, 2).reshape(-1, heads, channels) for each in (query, key, value))
        real = layout.real.shape[0]
        q_real, q_rest = _Permute.apply(q, layout.order, layout.back).split([real, q.shape[0] - real])
        k_real, v_real = _Pick.apply(k, layout.real), _Pick.apply(v, layout.real)
        scale = channels**-0.5 if scaling is None else scaling
        how: dict[str, Any] = {"scale": scale, "causal": False}
        seen = attend(q_real, k, v, layout.real_bounds, tokens, key_bounds=layout.all_bounds, **how)
        rest = attend(q_rest, k_real, v_real, layout.rest_bounds, tokens, key_bounds=layout.real_bounds, **how)
        out = _Permute.apply(torch.cat([seen, rest]), layout.back, layout.order)
        return out.view(pictures, tokens, heads, channels), None

    return tile_attention
