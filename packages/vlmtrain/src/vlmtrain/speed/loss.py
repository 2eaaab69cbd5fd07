"""The loss computed at the positions that carry some, and nowhere else.

The output head turns each position into a score for every word of a large vocabulary, nearly always for prompt and
image tokens whose scores nobody asks for; in the Qwen2.5-VL-3B shape it has a tenth of the language model's weights.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmtrain.masks import IGNORE_INDEX

__all__ = ["keep_supervised", "sum_of_losses"]

# Positions whose scores are in memory at once: 1,024 of a vocabulary of 152 k take 0.6 GB in float32.
_CHUNK = 1024


def keep_supervised(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Finds the positions whose scores the loss asks for.

    Args:
        labels: `(B, S)` token ids, `IGNORE_INDEX` where there is no loss; not shifted.

    Returns:
        `(K,)` positions at which any row predicts a supervised token, and `(B, K)` what is to be predicted there.
    """
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    positions = (targets != IGNORE_INDEX).any(dim=0).nonzero().flatten()
    return positions, targets[:, positions]


def sum_of_losses(hidden: torch.Tensor, head: Any, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the supervised positions, in float32.

    Above some thousand positions the scores are formed piece by piece, and formed again in the backward pass.

    Args:
        hidden: `(B, K, H)` last hidden states of the model.
        head: The output head, H to the vocabulary.
        targets: `(B, K)` token ids, `IGNORE_INDEX` where there is no loss.
    """
    supervised = targets.flatten() != IGNORE_INDEX
    hidden, targets = hidden.flatten(0, 1)[supervised], targets.flatten()[supervised]
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
