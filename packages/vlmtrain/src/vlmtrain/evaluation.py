"""`vlmtrain eval`: answers to held-out rows, scored against their references, beside what needs no looking at all.

A score says little alone. Beside it stand what the most frequent training answer scores, what the model scores when
each row is shown another row's pictures, in other precisions, and what another model scores on the same rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.errors import ResourceError
from vlmdata.manifest import write_json_atomically
from vlmdata.shards import BuiltFolder, open_folder
from vlmtrain.environment import describe_environment
from vlmtrain.held_out import EvalRow, Questions, answer_limit, majority_answer, read_eval_rows, swap_images
from vlmtrain.inference import load_answering_model, release_memory
from vlmtrain.metrics import are_labels, compare, find_metrics, score, score_rows, tabulate_confusion
from vlmtrain.precision import choose_precision
from vlmtrain.rows import count_pictures
from vlmtrain.score_page import write_score_page
from vlmtrain.settings import EvalConfig
from vlmtrain.source import find_model

__all__ = ["evaluate"]


@dataclass(slots=True, kw_only=True)
class _Answers:
    """Predictions by the condition in which they were made."""

    load_in: str
    max_new_tokens: int
    model: list[str]
    swapped: list[str] | None = None
    compared: list[str] | None = None
    by_precision: dict[str, list[str]] = field(default_factory=dict)
    """Of the narrower precisions."""


def evaluate(name: str, config: EvalConfig) -> dict[str, Any]:
    """Answers a split and scores the answers.

    Args:
        name: MODEL_OR_RUN.
        config: What to evaluate on.

    Returns:
        What was written to eval-SPLIT.json: `scores`, `majority`, and where asked for `swapped`, `compare` and
        `precision`; `confusion` where the references are labels.

    Raises:
        ToolkitError: Model or data are not there or do not fit.
    """
    find_metrics(config.metrics)
    source = find_model(name)
    data = source.data_or(config.data)
    out = source.result_path(config.out, f"eval-{config.split}.json")
    for precision in config.precisions:
        # a table without one of its columns is not what was asked for
        choose_precision(precision, method="lora", config=source.config)
    if config.compare:
        find_model(config.compare)
    folder = open_folder(data)
    rows = read_eval_rows(folder.split(config.split), limit=config.rows, seed=config.seed)
    answers = _answer_all(name, folder, rows, config)
    result: dict[str, Any] = {"model": name, "data": str(data), "data_fingerprint": folder.manifest.fingerprint}
    result |= {"split": config.split, "rows": len(rows)}
    result |= {"load_in": answers.load_in, "max_new_tokens": answers.max_new_tokens}
    result |= _score_all(rows, answers, majority_answer(folder), config)
    result["environment"] = describe_environment()
    _write(out, result, rows, answers, folder, config)
    return result


def _answer_all(name: str, folder: BuiltFolder, rows: list[EvalRow], config: EvalConfig) -> _Answers:
    """Every condition's answers; one model is in memory at a time."""
    split = folder.split(config.split)
    own = Questions(split, rows)
    # the widest precision is what the others are compared with
    load_in = config.precisions[0] if config.precisions else config.load_in
    model = load_answering_model(name, backend=config.backend, load_in=load_in)
    limit = config.max_new_tokens or answer_limit(model, rows)
    answers = _Answers(
        load_in=model.loaded.load_in,
        max_new_tokens=limit,
        model=model.answer(own, max_new_tokens=limit, batch_size=config.batch_size),
    )
    if config.swap_images:
        donors = swap_images([count_pictures(row.prompt) for row in rows], [row.references[0] for row in rows])
        swapped = Questions(split, rows, donors)
        answers.swapped = model.answer(swapped, max_new_tokens=limit, batch_size=config.batch_size)
    del model
    release_memory()
    for precision in config.precisions[1:]:
        narrower = load_answering_model(name, backend=config.backend, load_in=precision)
        answers.by_precision[precision] = narrower.answer(own, max_new_tokens=limit, batch_size=config.batch_size)
        del narrower
        release_memory()
    if config.compare:
        other = load_answering_model(config.compare, backend=config.backend, load_in=config.load_in)
        answers.compared = other.answer(own, max_new_tokens=limit, batch_size=config.batch_size)
        del other
        release_memory()
    return answers


def _score_all(rows: list[EvalRow], answers: _Answers, majority: str | None, config: EvalConfig) -> dict[str, Any]:
    references = [row.references for row in rows]

    def scored(predictions: list[str]) -> dict[str, Any]:
        scores = score(predictions, references, config.metrics, seed=config.seed)
        return {name: asdict(value) for name, value in scores.items()}

    def paired(predictions: list[str], base: list[str]) -> dict[str, Any]:
        differences = compare(predictions, base, references, config.metrics, seed=config.seed)
        return {name: asdict(value) for name, value in differences.items()}

    result: dict[str, Any] = {"scores": scored(answers.model)}
    if majority is not None:
        result["majority"] = {"answer": majority, "scores": scored([majority] * len(rows))}
    if answers.swapped is not None:
        result["swapped"] = {"scores": scored(answers.swapped), "paired": paired(answers.model, answers.swapped)}
    if answers.compared is not None:
        result["compare"] = {
            "model": config.compare,
            "scores": scored(answers.compared),
            "paired": paired(answers.model, answers.compared),
        }
    if answers.by_precision:
        result["precision"] = {
            "reference": answers.load_in,
            "others": {
                precision: {"scores": scored(predictions), "paired": paired(predictions, answers.model)}
                for precision, predictions in answers.by_precision.items()
            },
        }
    if are_labels(references):
        result["confusion"] = asdict(tabulate_confusion(answers.model, references))
    return result


def _write(
    out: Path,
    result: dict[str, Any],
    rows: list[EvalRow],
    answers: _Answers,
    folder: BuiltFolder,
    config: EvalConfig,
) -> None:
    """The predictions, the page, and last the scores."""
    by_row = score_rows(answers.model, [row.references for row in rows], config.metrics)
    lines = []
    for index, row in enumerate(rows):
        line: dict[str, Any] = {"id": row.id, "references": row.references, "prediction": answers.model[index]}
        if answers.swapped is not None:
            line["swapped"] = answers.swapped[index]
        if answers.compared is not None:
            line["compared"] = answers.compared[index]
        line |= {precision: predictions[index] for precision, predictions in answers.by_precision.items()}
        lines.append(line | {"scores": by_row[index]})
    try:
        # results of an earlier evaluation beside new predictions would be taken for theirs
        out.unlink(missing_ok=True)
        with out.with_suffix(".jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_score_page(out.with_suffix(".html"), result, lines, Questions(folder.split(config.split), rows))
        write_json_atomically(out, result)
    except OSError as error:
        raise ResourceError(f"{out}: cannot be written: {error.strerror}") from error
