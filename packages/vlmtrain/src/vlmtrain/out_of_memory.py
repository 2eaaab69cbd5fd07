"""When the GPU's memory runs out in the middle of a run: the same rows in smaller pieces, not another run.

A forward pass over n rows becomes several over fewer, whose losses are shares of the same global batch, so that the
gradient is the same sum. What the failed backward pass had added is thrown away, and the micro-batches of the step are
computed again from its beginning; order, learning rate and number of steps stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from vlmdata.errors import ResourceError
from vlmtrain.speed.packing import is_packed, row_bounds

__all__ = ["pictures_per_row", "split_batch", "with_smaller_pieces"]

_PER_PICTURE = ("pixel_values", "image_sizes", "image_grid_thw")
_DERIVED = "image_"
"""What the loader works out from the grids ahead of the vision tower: of fewer rows it is another."""
_ADVICE = "try --load-in 4bit, --gradient-checkpointing on, or pictures of a smaller --max-side"


def with_smaller_pieces(
    base: type,
    image_ids: frozenset[int],
    longest: Callable[[], dict[str, Any]] | None = None,
    add_vision_inputs: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> type:
    """A trainer that goes on with smaller forward passes when memory runs out.

    Args:
        base: A class of transformers' Trainer whose loss is a share of the whole global batch; whatever it does to one
            forward pass, it does to each piece.
        image_ids: Token ids that stand for images or open and close them.
        longest: Makes the micro-batch of the longest rows, which is run once before the first step, so that memory
            runs out there and not after hours; its gradients are thrown away. None: it is not tried.
        add_vision_inputs: Adds to a piece what the loader adds to a batch; None where it adds nothing.
    """
    import torch

    complete = add_vision_inputs or dict

    class BackingOffTrainer(base):  # type: ignore[misc]  # its class is known when it runs
        """Halves the rows of a forward pass until it fits."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.pieces = 1
            self._longest = longest
            self._window: list[dict[str, Any]] = []

        def training_step(
            self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            """One micro-batch; after a failure, all of the step's so far."""
            if self._longest is not None:
                self._try_longest(self._longest(), model, num_items_in_batch)
                self._longest = None
            self._window.append(inputs)
            return self._run_window(inputs, model, num_items_in_batch, *args, **kwargs)

        def _run_window(
            self, inputs: dict[str, Any], model: Any, num_items_in_batch: Any, *args: Any, **kwargs: Any
        ) -> Any:
            loss = self._run([inputs], model, num_items_in_batch, *args, **kwargs)
            while loss is None:
                self._halve(num_items_in_batch)
                # Part of the failed pass may have reached the gradients, and cannot be told from what was there.
                model.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
                loss = self._run(self._window, model, num_items_in_batch, *args, **kwargs)
            if self.accelerator.sync_gradients:
                self._window = []
            return loss

        def _try_longest(self, batch: dict[str, Any], model: Any, num_items_in_batch: Any) -> None:
            self._window = [batch]
            # Dropout draws numbers; those of the first step stay what they are without this trial.
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                self._run_window(batch, model, num_items_in_batch)
            model.zero_grad(set_to_none=True)
            self._window = []
            print(f"longest batch tried: {_describe_rows(batch)}{_peak_words()}", flush=True)

        def _run(self, batches: list[dict[str, Any]], model: Any, *args: Any, **kwargs: Any) -> Any:
            """The loss of the last of the micro-batches, or None where memory ran out."""
            loss = None
            try:
                for batch in batches:
                    pieces = _cut(batch, self.pieces, image_ids, complete)
                    loss = sum(
                        super(BackingOffTrainer, self).training_step(model, each, *args, **kwargs) for each in pieces
                    )
            except torch.OutOfMemoryError:
                # Nothing is done here: the exception holds on to the tensors of the failed pass.
                return None
            return loss

        def _halve(self, num_items_in_batch: Any) -> None:
            rows = max(map(_count_rows, self._window))
            splits = num_items_in_batch is not None
            self.pieces = _more_pieces(rows, self.pieces, self.accelerator.num_processes, splits=splits)

    return BackingOffTrainer


def _more_pieces(rows: int, pieces: int, processes: int, *, splits: bool) -> int:
    """Twice as many pieces, said aloud.

    Raises:
        ResourceError: The pieces are single rows, their losses are not shares of a whole, or other processes would
            wait for this one.
    """
    at_once = -(-rows // pieces)
    if processes > 1:
        raise ResourceError(
            f"the GPU's memory ran out with {at_once} rows at once, and with several GPUs all would have to go on in "
            f"step: halve --batch-size and double --grad-accum; or {_ADVICE}"
        )
    if at_once == 1:
        raise ResourceError(f"the GPU's memory ran out on a forward pass of a single row: {_ADVICE}")
    if not splits:
        raise ResourceError(
            f"the GPU's memory ran out with {at_once} rows at once, whose loss is no share of the step's, so that "
            f"fewer at once would learn something else: halve --batch-size and double --grad-accum; or {_ADVICE}"
        )
    print(
        f"the GPU's memory ran out with {at_once} rows at once: going on with {-(-rows // (2 * pieces))} at once, the "
        "same rows in each optimizer step",
        flush=True,
    )
    return 2 * pieces


def _describe_rows(batch: dict[str, Any]) -> str:
    rows, tokens = _count_rows(batch), batch["input_ids"].shape[1]
    return f"{rows} rows, {tokens} tokens in all" if is_packed(batch) else f"{rows} rows of up to {tokens} tokens"


def _peak_words() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    return f", {peak / 2**30:.1f} of {total / 2**30:.1f} GiB at the peak, the optimizer's moments apart"


def _cut(
    batch: dict[str, Any], pieces: int, image_ids: Iterable[int], complete: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    return [batch] if pieces == 1 else [complete(piece) for piece in split_batch(batch, pieces, image_ids)]


def split_batch(batch: dict[str, Any], pieces: int, image_ids: Iterable[int]) -> list[dict[str, Any]]:
    """A collated batch as several of fewer rows, each with its own pictures.

    Args:
        batch: Tensors by name, rows first (`input_ids` `(B, S)`) or packed (`(1, T)`, see `vlmtrain.speed.packing`);
            pictures as the processors of the known families give them: by row, by picture, or (`image_grid_thw`) by
            patch.
        pieces: How many, at most one for each row.
        image_ids: Token ids that stand for images or open and close them.

    Returns:
        The pieces, without what the loader derives from the pictures' grids.

    Raises:
        ResourceError: It cannot be told which pictures belong to which row.
    """
    token_bounds = row_bounds(batch["position_ids"]).tolist() if is_packed(batch) else None
    rows = _count_rows(batch)
    bounds = sorted({round(rows * piece / pieces) for piece in range(pieces + 1)})
    by_row = "aspect_ratio_ids" in batch
    names = [] if by_row else [name for name in _PER_PICTURE if name in batch]
    starts = _picture_starts(batch, names, token_bounds, image_ids) if names else []
    split = []
    for begin, end in itertools.pairwise(bounds):
        piece = {}
        for name, value in batch.items():
            if name in names:
                if starts[begin] == starts[end]:
                    continue
                first, last = _patch_bounds(batch, name, starts[begin], starts[end])
                piece[name] = value[first:last]
            elif name.startswith(_DERIVED):
                continue
            elif not getattr(value, "ndim", 0):
                piece[name] = value
            elif token_bounds is not None:
                piece[name] = value[..., token_bounds[begin] : token_bounds[end]]
            elif name == "position_ids" and value.ndim == 3:
                piece[name] = value[:, begin:end]
            else:
                piece[name] = value[begin:end]
        split.append(piece)
    return split


def _count_rows(batch: dict[str, Any]) -> int:
    return len(row_bounds(batch["position_ids"])) - 1 if is_packed(batch) else len(batch["input_ids"])


def pictures_per_row(rows: list[list[int]], pictures: int, image_ids: Iterable[int]) -> list[int] | None:
    """How many pictures each row has, from its tokens.

    Args:
        rows: Token ids of each row.
        pictures: Pictures of the whole batch.
        image_ids: Token ids that stand for images or open and close them.

    Returns:
        One number a row, or None where no token tells, or two of them tell different things.
    """
    wanted = list(image_ids)
    # A token that opens or closes each picture, else the unbroken runs of the one that fills it.
    once = {tuple(row.count(token) for row in rows) for token in wanted}
    runs = {tuple(sum(value == token for value, _ in itertools.groupby(row)) for row in rows) for token in wanted}
    for counts in (once, runs):
        # As many as pictures may be chance: line breaks within pictures, none in one and two in another.
        fitting = [each for each in counts if sum(each) == pictures]
        if fitting:
            return list(fitting[0]) if len(fitting) == 1 else None
    return None


def _picture_starts(
    batch: dict[str, Any], names: list[str], token_bounds: list[int] | None, image_ids: Iterable[int]
) -> list[int]:
    """Index of each row's first picture, and the number of all pictures."""
    total = len(batch["image_grid_thw"] if "image_grid_thw" in names else batch[names[0]])
    rows = batch["input_ids"].tolist()
    if token_bounds is not None:
        rows = [rows[0][begin:end] for begin, end in itertools.pairwise(token_bounds)]
    counts = pictures_per_row(rows, total, image_ids)
    if counts is None:
        raise ResourceError(
            "the GPU's memory ran out, and which pictures belong to which row cannot be told from the batch: halve "
            f"--batch-size and double --grad-accum; or {_ADVICE}"
        )
    return [0, *itertools.accumulate(counts)]


def _patch_bounds(batch: dict[str, Any], name: str, first: int, last: int) -> tuple[int, int]:
    """The slice of a tensor that holds the pictures from `first` up to `last`."""
    if name != "pixel_values" or "image_grid_thw" not in batch:
        return first, last
    patches = batch["image_grid_thw"].prod(dim=-1)
    return int(patches[:first].sum()), int(patches[:last].sum())
