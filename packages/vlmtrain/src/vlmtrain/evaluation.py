"""`vlmtrain eval`: answers to held-out rows, scored against their references, beside what needs no looking at all.

A score says little alone. Beside it stand what the most frequent training answer scores, what the model scores when
each row is shown another row's pictures, and what another model scores on the same rows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, ResourceError
from vlmdata.manifest import write_json_atomically
from vlmdata.shards import BuiltFolder, open_folder
from vlmtrain.environment import describe_environment
from vlmtrain.held_out import EvalRow, Questions, answer_limit, majority_answer, read_eval_rows, swap_images
from vlmtrain.inference import AnsweringModel, load_answering_model, release_memory
from vlmtrain.metrics import compare, find_metrics, score, score_rows
from vlmtrain.settings import EvalConfig
from vlmtrain.source import find_model

__all__ = ["describe_result", "evaluate"]


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
            Questions(folder.split(config.split), rows),
            max_new_tokens=answers.extra["max_new_tokens"],
            batch_size=config.batch_size,
        )
    result: dict[str, Any] = {"model": name, "data": str(data), "data_fingerprint": folder.manifest.fingerprint}
    result |= {"split": config.split, "rows": len(rows), "load_in": load_in, **answers.extra}
    result |= _score_all(rows, answers, majority_answer(folder), config)
    result["environment"] = describe_environment()
    _write(out, result, rows, answers, config)
    return result


def _answer(model: AnsweringModel, folder: BuiltFolder, rows: list[EvalRow], config: EvalConfig) -> _Answers:
    split = folder.split(config.split)
    limit = config.max_new_tokens or answer_limit(model, rows)
    plain = model.answer(Questions(split, rows), max_new_tokens=limit, batch_size=config.batch_size)
    answers = _Answers(model=plain, extra={"max_new_tokens": limit})
    if config.swap_images:
        counts = [sum(part["type"] == "image" for message in row.prompt for part in message["content"]) for row in rows]
        donors = swap_images(counts, [row.references[0] for row in rows])
        swapped = Questions(split, rows, donors)
        answers.swapped = model.answer(swapped, max_new_tokens=limit, batch_size=config.batch_size)
    return answers


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
