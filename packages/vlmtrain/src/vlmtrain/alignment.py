"""`vlmtrain check --align N`: does a model find the answers likelier with their own pictures than with others'?

Where images and texts of a set went out of step, by a sort or an off-by-one, every row still looks right by itself. A
pretrained model notices: its loss on the answers does not rise when the pictures change places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import DataError
from vlmtrain.held_out import swap_images
from vlmtrain.inference import AnsweringModel
from vlmtrain.metrics.bootstrap import bootstrap_interval, bootstrap_values
from vlmtrain.preflight import CheckedSplit
from vlmtrain.ranking import row_losses
from vlmtrain.rows import Rows, count_pictures, sample_indices, turn_text

__all__ = ["Alignment", "measure_alignment"]

_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Losses of the same answers with two choices of pictures."""

    rows: int
    """Rows with pictures that were looked at."""
    own: float
    """Mean loss of a row's answers with its own pictures, in nats a token."""
    swapped: float
    """The same with the pictures of another row."""
    low: float
    """Lower end of the 95 % interval of the difference, by bootstrap over the rows."""
    high: float
    """Upper end."""
    better: float
    """Share of the rows whose loss is lower with their own pictures."""

    def describe(self) -> str:
        """What was found, and what it means."""
        numbers = (
            f"alignment: {self.rows} rows have a loss of {self.own:.3f} with their own pictures and {self.swapped:.3f} "
            f"with those of other rows (difference {self.swapped - self.own:+.3f}, 95 % interval {self.low:+.3f} to "
            f"{self.high:+.3f}; lower with their own in {self.better:.0%})"
        )
        if self.low > 0:
            return f"{numbers}: texts and pictures belong together"
        if self.high < 0:
            return (
                f"{numbers}\nwarning: the answers fit other rows' pictures better: images and texts may be out of step"
            )
        return (
            f"{numbers}\nwarning: this model sees no difference: images and texts may be out of step, or the answers "
            "follow from the text alone, or the model does not know such pictures yet"
        )


def measure_alignment(checked: CheckedSplit, model: AnsweringModel, rows: int, *, batch_size: int) -> Alignment:
    """Computes the losses of some rows twice.

    Args:
        checked: The split.
        model: A pretrained model.
        rows: Most rows to look at, drawn once.
        batch_size: Rows in one forward pass.

    Raises:
        DataError: Fewer than two of the drawn rows have pictures, and as many as each other.
    """
    with_pictures = np.flatnonzero(checked.lengths.image_tokens > 0)
    drawn = [int(with_pictures[place]) for place in sample_indices(len(with_pictures), rows, _SEED)]
    turns = [checked.rows.select_columns(["messages"])[row]["messages"] for row in drawn]
    donors = swap_images([count_pictures(row) for row in turns], [turn_text(row[-1]) for row in turns])
    moved = [(drawn[place], drawn[donor]) for place, donor in enumerate(donors) if donor != place]
    if len(moved) < 2:
        raise DataError(f"{checked.name}: --align needs at least two rows with as many pictures as each other")
    own = _losses(model, _Shown(checked.rows, [(row, row) for row, _ in moved]), batch_size)
    swapped = _losses(model, _Shown(checked.rows, moved), batch_size)
    difference = swapped - own
    values = bootstrap_values(difference[:, None], lambda sums: sums[..., 0] / len(difference), seed=_SEED)
    low, high = bootstrap_interval(values)
    return Alignment(
        rows=len(moved),
        own=float(own.mean()),
        swapped=float(swapped.mean()),
        low=low,
        high=high,
        better=float((difference > 0).mean()),
    )


class _Shown:
    """Rows with the pictures of others, decoded when one is asked for."""

    def __init__(self, rows: Rows, pairs: list[tuple[int, int]]) -> None:
        self._rows = rows
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row, donor = self._pairs[place]
        return {"messages": self._rows[row]["messages"], "images": self._rows[donor]["images"]}


def _losses(model: AnsweringModel, rows: _Shown, batch_size: int) -> npt.NDArray[np.float64]:
    return np.array([each.loss for each in row_losses(model, rows, batch_size=batch_size)])
