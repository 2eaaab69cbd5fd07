"""`vlmtrain eval`: answers to held-out rows, scored against their references, beside what needs no looking at all.

A score says little alone. Beside it stand what the most frequent training answer scores, what the model scores when
each row is shown another row's pictures, and what another model scores on the same rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, ResourceError
from vlmdata.manifest import write_json_atomically
from vlmdata.shards import BuiltFolder, Split, open_folder
from vlmtrain.environment import describe_environment
from vlmtrain.inference import AnsweringModel, Request, load_answering_model, release_memory
from vlmtrain.metrics import compare, find_metrics, score, score_rows
from vlmtrain.rows import open_rows, sample_indices
from vlmtrain.settings import EvalConfig
from vlmtrain.source import find_model

__all__ = ["EvalRow", "describe_result", "evaluate", "read_eval_rows", "swap_images"]

_GENERATION_MARGIN_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRow:
    """One held-out row: what is asked, and what may be answered."""

    id: str
    prompt: Sequence[dict[str, Any]]
    """The messages before the last answer."""
    references: list[str]
    """Accepted answers."""
    position: int
    """Row of the split."""


@dataclass(slots=True, kw_only=True)
class _Answers:
    """Predictions by the condition in which they were made."""

    model: list[str]
    swapped: list[str] | None = None
    compared: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def evaluate(name: str, config: EvalConfig) -> dict[str, Any]:
    """Answers a split and scores the answers.

    Args:
        name: MODEL_OR_RUN.
        config: What to evaluate on.

    Returns:
        What was written to eval-SPLIT.json: `scores`, `majority`, and where asked for `swapped` and `compare`.

    Raises:
        ToolkitError: Model or data are not there or do not fit.
    """
    find_metrics(config.metrics)
    source = find_model(name)
    data = source.data_or(config.data)
    out = config.out or (source.run or source.adapter or Path(source.name)) / f"eval-{config.split}.json"
    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder for the result; name a file with --out")
    if config.compare:
        find_model(config.compare)
    folder = open_folder(data)
    rows = read_eval_rows(folder.split(config.split), limit=config.rows, seed=config.seed)
    model = load_answering_model(name, backend=config.backend, load_in=config.load_in)
    load_in = model.loaded.load_in
    answers = _answer(model, folder, rows, config)
    del model
    release_memory()
    if config.compare:
        other = load_answering_model(config.compare, backend=config.backend, load_in=config.load_in)
        answers.compared = other.answer(
            _Requests(folder.split(config.split), rows),
            max_new_tokens=answers.extra["max_new_tokens"],
            batch_size=config.batch_size,
        )
    result: dict[str, Any] = {"model": name, "data": str(data), "data_fingerprint": folder.manifest.fingerprint}
    result |= {"split": config.split, "rows": len(rows), "load_in": load_in, **answers.extra}
    result |= _score_all(rows, answers, _majority_answer(folder), config)
    result["environment"] = describe_environment()
    _write(out, result, rows, answers, config)
    return result


def read_eval_rows(split: Split, *, limit: int | None, seed: int) -> list[EvalRow]:
    """The rows of a split as questions with references; pictures are not touched.

    Args:
        split: A split of a built folder.
        limit: Most rows, drawn by the seed; None for all.
        seed: Of the draw.
    """
    chosen = set(sample_indices(split.num_rows, limit or split.num_rows, seed))
    rows = []
    for position, row in enumerate(split.iterate(["id", "messages", "references"])):
        if position in chosen:
            last = row["messages"][-1]
            answer = "".join(part["text"] or "" for part in last["content"])
            rows.append(
                EvalRow(
                    id=row["id"],
                    prompt=row["messages"][:-1],
                    references=list(row["references"]) or [answer],
                    position=position,
                )
            )
    return rows


def swap_images(image_counts: Sequence[int], labels: Sequence[str]) -> list[int]:
    """For each row, the row whose pictures it is shown instead of its own.

    Rows change places only with rows of as many pictures. Within such a group, sorted by answer, each row takes the
    pictures from half the group away, so that most rows get those of another answer; a group of one keeps its own.

    Args:
        image_counts: `(N,)` pictures of each row.
        labels: `(N,)` answer of each row.

    Returns:
        `(N,)` row indices, a permutation.
    """
    groups: dict[int, list[int]] = {}
    for row, count in enumerate(image_counts):
        groups.setdefault(count, []).append(row)
    donors = list(range(len(image_counts)))
    for members in groups.values():
        ordered = sorted(members, key=lambda row: (labels[row], row))
        for position, row in enumerate(ordered):
            donors[row] = ordered[(position + len(ordered) // 2) % len(ordered)]
    return donors


def _answer(model: AnsweringModel, folder: BuiltFolder, rows: list[EvalRow], config: EvalConfig) -> _Answers:
    split = folder.split(config.split)
    limit = config.max_new_tokens or _longest_reference(model, rows) + _GENERATION_MARGIN_TOKENS
    plain = model.answer(_Requests(split, rows), max_new_tokens=limit, batch_size=config.batch_size)
    answers = _Answers(model=plain, extra={"max_new_tokens": limit})
    if config.swap_images:
        counts = [sum(part["type"] == "image" for message in row.prompt for part in message["content"]) for row in rows]
        donors = swap_images(counts, [row.references[0] for row in rows])
        swapped = _Requests(split, rows, donors)
        answers.swapped = model.answer(swapped, max_new_tokens=limit, batch_size=config.batch_size)
    return answers


class _Requests(Sequence[Request]):
    """Requests made one at a time, so that no more pictures are decoded at once than a batch holds."""

    def __init__(self, split: Split, rows: list[EvalRow], donors: list[int] | None = None) -> None:
        self._decoded = open_rows(split)
        self._rows = rows
        self._donors = donors or list(range(len(rows)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        images = self._decoded[self._rows[self._donors[index]].position]["images"]
        return Request(messages=self._rows[index].prompt, images=images)


def _longest_reference(model: AnsweringModel, rows: list[EvalRow]) -> int:
    tokenizer = model.chat.processor.tokenizer
    texts = [text for row in rows for text in row.references]
    return max(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


def _majority_answer(folder: BuiltFolder) -> str | None:
    """The most frequent last answer of the training rows; of equally frequent ones, the first by alphabet."""
    if "train" not in folder.splits:
        return None
    counts: Counter[str] = Counter()
    for row in folder.split("train").iterate(["messages"]):
        counts["".join(part["text"] or "" for part in row["messages"][-1]["content"])] += 1
    return min(counts, key=lambda text: (-counts[text], text), default=None)


def _score_all(rows: list[EvalRow], answers: _Answers, majority: str | None, config: EvalConfig) -> dict[str, Any]:
    references = [row.references for row in rows]

    def scored(predictions: list[str]) -> dict[str, Any]:
        scores = score(predictions, references, config.metrics, seed=config.seed)
        return {name: asdict(value) for name, value in scores.items()}

    result: dict[str, Any] = {"scores": scored(answers.model)}
    if majority is not None:
        result["majority"] = {"answer": majority, "scores": scored([majority] * len(rows))}
    if answers.swapped is not None:
        result["swapped"] = {"scores": scored(answers.swapped)}
    if answers.compared is not None:
        paired = compare(answers.model, answers.compared, references, config.metrics, seed=config.seed)
        result["compare"] = {
            "model": config.compare,
            "scores": scored(answers.compared),
            "paired": {name: asdict(value) for name, value in paired.items()},
        }
    return result


def _write(out: Path, result: dict[str, Any], rows: list[EvalRow], answers: _Answers, config: EvalConfig) -> None:
    by_row = score_rows(answers.model, [row.references for row in rows], config.metrics)
    try:
        with out.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
            for index, row in enumerate(rows):
                line: dict[str, Any] = {"id": row.id, "references": row.references, "prediction": answers.model[index]}
                if answers.swapped is not None:
                    line["swapped"] = answers.swapped[index]
                if answers.compared is not None:
                    line["compared"] = answers.compared[index]
                file.write(json.dumps(line | {"scores": by_row[index]}, ensure_ascii=False) + "\n")
        write_json_atomically(out, result)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error.strerror}") from error


def describe_result(result: dict[str, Any]) -> str:
    """A table of the scores: a line a condition, a column a metric, with 95 % intervals for the model itself."""
    lines = [f"{result['split']}: {result['rows']} rows of {result['data']}, weights in {result['load_in']}"]
    names = list(result["scores"])
    lines.append(f"{'':<34}" + "".join(f"{name:>26}" for name in names))

    def add(title: str, scores: dict[str, Any]) -> None:
        cells = (f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in scores.values())
        lines.append(f"{title:<34}" + "".join(f"{cell:>26}" for cell in cells))

    add(str(result["model"])[-33:], result["scores"])
    if "swapped" in result:
        add("the same, pictures swapped", result["swapped"]["scores"])
    if "compare" in result:
        add(str(result["compare"]["model"])[-33:], result["compare"]["scores"])
    if "majority" in result:
        add(f"always {result['majority']['answer'][:20]!r}", result["majority"]["scores"])
    return "\n".join(lines)
