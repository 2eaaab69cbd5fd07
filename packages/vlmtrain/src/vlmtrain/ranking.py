"""`vlmtrain eval --rank`: rows by the loss of their own answers under the trained model.

A model that has learned a set finds its wrong labels unlikely, also those it was trained on, as long as it has not
learned them by heart; so a wrong answer stands in front (cf. Northcutt et al., 2021, and the loss ranking of
Arpit et al., 2017). The mean over an answer's tokens ranks; the worst token shows where in a long answer to look.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlmdata.errors import DataError, ResourceError
from vlmdata.shards import Split, open_folder
from vlmtrain.collator import VisionCollator
from vlmtrain.inference import AnsweringModel, load_answering_model
from vlmtrain.rows import open_rows, sample_indices, turn_text
from vlmtrain.settings import EvalConfig
from vlmtrain.source import find_model
from vlmtrain.wording import shorten

__all__ = ["RankedRow", "describe_ranking", "rank_rows", "row_losses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """One row and how unlikely the model finds its answers."""

    rank: int
    """1 for the highest loss."""
    id: str
    source: str
    """Where the row came from."""
    loss: float
    """Mean negative log-likelihood over the supervised tokens, in nats."""
    tokens: int
    """Supervised tokens."""
    worst_token: str
    """The least likely of them."""
    worst_token_loss: float
    """Its negative log-likelihood, in nats."""
    answer: str
    """The last answer as it stands in the set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLoss:
    """The loss of one row's answers."""

    loss: float
    tokens: int
    worst_token: str
    worst_token_loss: float


def rank_rows(name: str, config: EvalConfig) -> list[RankedRow]:
    """Ranks the rows of a split, and writes the ranking to rank-SPLIT.jsonl.

    Args:
        name: MODEL_OR_RUN.
        config: The split, rows, batch size and file.

    Returns:
        All rows, the highest loss first.

    Raises:
        ToolkitError: Model or data are not there or do not fit.
    """
    source = find_model(name)
    out = source.result_path(config.out, f"rank-{config.split}.json").with_suffix(".jsonl")
    split = open_folder(source.data_or(config.data)).split(config.split)
    positions = sample_indices(split.num_rows, config.rows or split.num_rows, config.seed)
    model = load_answering_model(name, backend=config.backend, load_in=config.load_in)
    losses = row_losses(model, open_rows(split).select(positions), batch_size=config.batch_size)
    texts = _texts_of(split, positions)
    order = sorted(range(len(losses)), key=lambda index: (-losses[index].loss, index))
    ranked = [RankedRow(rank=rank, **asdict(losses[index]), **texts[index]) for rank, index in enumerate(order, 1)]
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in ranked)
        os.replace(temporary, out)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(f"ranked: {out}", flush=True)
    return ranked


def row_losses(model: AnsweringModel, rows: Any, *, batch_size: int) -> list[RowLoss]:
    """The loss of each row's answers.

    Args:
        model: A loaded model.
        rows: `(N,)` rows `{messages, images}`, decoded when they are asked for.
        batch_size: Rows in one forward pass; does not change the losses beyond rounding.

    Raises:
        DataError: No token of a row carries loss.
        ResourceError: The GPU's memory ran out.
    """
    import torch
    from tqdm import tqdm

    tokenizer = model.chat.processor.tokenizer
    tokenizer.padding_side = "right"
    collate = VisionCollator(model.chat, dtype=model.loaded.dtype)
    losses: list[RowLoss] = []
    with tqdm(total=len(rows), desc="ranking", unit="row", delay=2, disable=None) as progress:
        for start in range(0, len(rows), batch_size):
            group = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
            try:
                losses.extend(_batch_losses(model, collate(group), start))
            except torch.cuda.OutOfMemoryError as error:
                raise ResourceError(
                    f"the GPU's memory ran out on {len(group)} rows at once; lower --batch-size"
                ) from error
            progress.update(len(group))
    return losses


def _batch_losses(model: AnsweringModel, batch: dict[str, Any], start: int) -> list[RowLoss]:
    import torch

    labels = batch.pop("labels")[:, 1:]
    device = model.loaded.model.device
    with torch.inference_mode():
        logits = model.loaded.model(**{name: value.to(device) for name, value in batch.items()}).logits
    losses = []
    for index, row in enumerate(labels):
        places = (row >= 0).nonzero()[:, 0]
        if not len(places):
            raise DataError(f"of the rows looked at, number {start + index + 1} has no token that carries loss")
        # only where answers stand: the logits of whole pages in 32 bit would not fit
        scores = logits[index].index_select(0, places.to(device)).float()
        values = torch.nn.functional.cross_entropy(scores, row[places].to(device), reduction="none").cpu()
        worst = int(values.argmax())
        token = model.chat.processor.tokenizer.decode([int(row[places[worst]])])
        losses.append(
            RowLoss(
                loss=float(values.mean()),
                tokens=len(places),
                worst_token=token,
                worst_token_loss=float(values[worst]),
            )
        )
    return losses


def _texts_of(split: Split, positions: Sequence[int]) -> list[dict[str, Any]]:
    wanted = set(positions)
    texts = []
    for position, row in enumerate(split.iterate(["id", "source", "messages"])):
        if position in wanted:
            texts.append({"id": row["id"], "source": row["source"], "answer": turn_text(row["messages"][-1])})
    return texts


def describe_ranking(ranked: Sequence[RankedRow], top: int) -> str:
    """The first rows of a ranking for the eye."""
    lines = [f"the {min(top, len(ranked))} of {len(ranked)} rows whose own answers the model finds least likely:"]
    lines.append(f"{'rank':>5}{'loss':>9}{'tokens':>8}  {'worst token':<20}{'answer':<34}row")
    for row in ranked[:top]:
        worst = f"{shorten(repr(row.worst_token), 12)} {row.worst_token_loss:.2f}"
        lines.append(
            f"{row.rank:>5}{row.loss:>9.3f}{row.tokens:>8}  {worst:<20}{shorten(repr(row.answer), 32):<34}"
            f"{row.id}" + (f" ({row.source})" if row.source != row.id else "")
        )
    return "\n".join(lines)
