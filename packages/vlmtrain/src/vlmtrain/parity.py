"""Whether two models are the same model: their logits on real rows, teacher-forced, where answers stand.

Both are asked for the next token at each supervised position of the same rows. Merging rounds every weight once more,
so that 16-bit logits differ a little; an export that lost its adapters differs by as much as training changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmdata.errors import DataError
from vlmtrain.collator import VisionCollator
from vlmtrain.inference import AnsweringModel

__all__ = ["TOLERANCE", "Parity", "answer_logits", "base_logits", "compare_logits", "require_parity"]

# Relative error of logits after one more rounding of all weights to bfloat16 (8 bits), accumulated over the layers.
TOLERANCE = {"merged_16bit": 0.05, "adapter": 1e-3, "merged_4bit": 0.4}
"""By format: an adapter is copied, not rounded, and only kernels that add up in another order change its logits; 4-bit
rounding moves every weight by a tenth, so that its logits only show that it is not another model altogether."""
_QUANTISATION_NOISE = 6.0
"""Times the root mean square of the difference: what leads by more does not change places by quantisation."""
_QUANTISED_AGREEMENT = 0.95
_POSITIONS_A_ROW = 64
# Below this many standard deviations of the logits, the two likeliest tokens may change places by rounding alone.
_CLEAR_MARGIN = 0.1
# Training that changed the logits by less than this cannot be told from rounding by them; the weights are compared too.
_BLIND_BELOW = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far one model's logits are from another's."""

    rows: int
    positions: int
    """Supervised positions compared."""
    relative_error: float
    """Norm of the difference over the norm of the reference, each position's mean taken off."""
    training_change: float | None
    """The same between the reference with and without its adapter; None where there is none."""
    clear_positions: int
    """Positions at which the reference's likeliest token leads by more than rounding."""
    agreeing_tokens: int
    """Of these, where both models' likeliest tokens are the same."""
    tolerance: float
    """The relative error that counts as rounding."""
    quantised: bool = False
    """Whether the export's weights were quantised: its noise is then measured, and may exceed what training changed."""

    @property
    def holds(self) -> bool:
        """Whether the difference is rounding, and too small for a lost adapter."""
        if self.quantised:
            agree = self.agreeing_tokens >= _QUANTISED_AGREEMENT * self.clear_positions
            return self.relative_error <= self.tolerance and agree
        change = self.tolerance if self.training_change is None else max(self.training_change / 2, _BLIND_BELOW)
        return self.relative_error <= min(self.tolerance, change) and self.agreeing_tokens == self.clear_positions

    def to_json(self) -> dict[str, Any]:
        """As a dictionary, with the verdict."""
        return asdict(self) | {"holds": self.holds}


def answer_logits(model: AnsweringModel, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Logits for the tokens of the answers, one row at a time.

    Args:
        model: A loaded model.
        rows: `{messages, images}`.

    Returns:
        For each row a `(P, V)` float32 tensor on the CPU, P supervised positions (64 at most), V the vocabulary,
        each position's mean taken off, because softmax does not see it.
    """
    import torch

    model.chat.processor.tokenizer.padding_side = "right"
    collate = VisionCollator(model.chat, dtype=model.loaded.dtype)
    device = model.loaded.model.device
    logits = []
    for row in rows:
        batch = {name: value.to(device) for name, value in collate([row]).items()}
        labels = batch.pop("labels")
        # the logits at a position are about the token after it
        positions = (labels[0, 1:] >= 0).nonzero()[:_POSITIONS_A_ROW, 0]
        with torch.inference_mode():
            output = model.loaded.model(**batch).logits[0].index_select(0, positions).float()
        logits.append((output - output.mean(dim=-1, keepdim=True)).cpu())
    return logits


def base_logits(model: AnsweringModel, rows: Sequence[dict[str, Any]]) -> list[Any] | None:
    """The same without the model's adapter, or None where all weights were trained."""
    if model.loaded.source.adapter is None:
        return None
    with model.loaded.model.disable_adapter():
        return answer_logits(model, rows)


def compare_logits(
    reference: Sequence[Any],
    other: Sequence[Any],
    *,
    tolerance: float,
    base: Sequence[Any] | None = None,
    quantised: bool = False,
) -> Parity:
    """Compares what `answer_logits` gave for two models on the same rows.

    Args:
        reference: Of the trained model.
        other: Of the export.
        tolerance: Relative error that counts as rounding.
        base: Of the trained model without its adapter.
        quantised: Whether the export's weights were quantised.

    Raises:
        DataError: The vocabularies differ.
    """
    import torch

    expected, actual = torch.cat(list(reference)), torch.cat(list(other))
    if expected.shape != actual.shape:
        raise DataError(f"the models' logits have other shapes: {tuple(expected.shape)} and {tuple(actual.shape)}")
    change = None if base is None else _relative_error(torch.cat(list(base)), expected)
    top = expected.topk(2, dim=-1)
    margin = _CLEAR_MARGIN * expected.std(dim=-1)
    if quantised:
        margin = margin.clamp(min=_QUANTISATION_NOISE * float((actual - expected).square().mean().sqrt()))
    clear = (top.values[:, 0] - top.values[:, 1]) > margin
    agreeing = (actual.argmax(dim=-1) == top.indices[:, 0]) & clear
    return Parity(
        rows=len(reference),
        positions=len(expected),
        relative_error=_relative_error(actual, expected),
        training_change=change,
        clear_positions=int(clear.sum()),
        agreeing_tokens=int(agreeing.sum()),
        tolerance=tolerance,
        quantised=quantised,
    )


def _relative_error(actual: Any, expected: Any) -> float:
    import torch

    return float(torch.linalg.norm(actual - expected) / torch.linalg.norm(expected))


def require_parity(parity: Parity, what: str) -> None:
    """Refuses an export that is another model.

    Raises:
        DataError: The difference is more than rounding.
    """
    if not parity.holds:
        raise DataError(
            f"{what} is not the trained model: its logits differ by {parity.relative_error:.2%} (rounding explains "
            f"{parity.tolerance:.2%}, training changed them by {parity.training_change or 0:.2%}), "
            f"{parity.agreeing_tokens} of {parity.clear_positions} clear tokens agree"
        )
