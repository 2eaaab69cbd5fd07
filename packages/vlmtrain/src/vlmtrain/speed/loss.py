"""The loss computed at the positions that carry some, and nowhere else.

The output head turns each position into a score for every word of a large vocabulary, nearly always for prompt and
image tokens whose scores nobody asks for; in the Qwen2.5-VL-3B shape it has a tenth of the language model's weights.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmtrain.masks import IGNORE_INDEX

__all__ = ["Supervised", "keep_supervised", "sum_of_losses"]

Supervised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Positions, which of them count, and what is predicted there; see `keep_supervised`."""

# Positions whose scores are in memory at once: 1,024 of a vocabulary of 152 k take 0.6 GB in float32.
_CHUNK = 1024


def keep_supervised(labels: torch.Tensor) -> Supervised:
    """Finds the positions whose scores the loss asks for.

    Args:
        labels: `(B, S)` token ids, `IGNORE_INDEX` where there is no loss; not shifted. Best on the host still: how many
            positions there are would have to be read back from a GPU, which the host then waits for.

    Returns:
        `(K,)` positions at which any row predicts a supervised token; `(T,)` which of the `B × K` positions of all rows
        do, row by row; and `(T,)` what is to be predicted there.
    """
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().flatten()
    targets = targets[:, positions].flatten()
    kept = (targets != IGNORE_INDEX).nonzero().flatten()
    return positions, kept, targets[kept]


def sum_of_losses(hidden: torch.Tensor, head: Any, kept: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the supervised positions, in float32.

    Above some thousand positions the scores are formed piece by piece, and formed again in the backward pass.

    Args:
        hidden: `(B, K, H)` last hidden states of the model.
        head: The output head, H to the vocabulary.
        kept: `(T,)` which of the `B × K` positions count, as `keep_supervised` gives them.
        targets: `(T,)` token ids to be predicted there.
    """
    hidden = hidden.flatten(0, 1)[kept]
    if len(targets) <= _CHUNK:
        return _sum_of_piece(hidden, head, targets)
    pieces = zip(hidden.split(_CHUNK), targets.split(_CHUNK), strict=True)
    return torch.stack(
        [
            torch.utils.checkpoint.checkpoint(_sum_of_piece, piece, head, wanted, use_reentrant=False)
            for piece, wanted in pieces
        ]
    ).sum()


def _sum_of_piece(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(head(hidden).float(), targets, reduction="sum")
