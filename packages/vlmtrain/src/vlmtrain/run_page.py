"""run.html: one self-contained page on a run, for people to look at."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.pages import Child, Html, count_of, cut, page_pieces, section, table, tag
from vlmdata.pages.pictures import data_uri, show_stored
from vlmdata.shards import Split
from vlmtrain.curves import draw_curves
from vlmtrain.json_files import read_lines
from vlmtrain.run_folder import RunFolder

__all__ = ["write_run_page"]

_SHOWN_ANSWERS = 12
_PICTURE_PX = 240
_MOST_CHARS = 1200
_SECTIONS = {
    "curves": "Learning curves",
    "answers": "Answers to val rows",
    "evaluations": "Evaluations",
    "parameters": "Parameters",
    "timing": "Time",
    "data": "Data",
    "settings": "Settings",
    "versions": "Versions and machine",
}


def write_run_page(run: RunFolder, report: Mapping[str, Any], val: Split | None) -> None:
    """Writes run.html and curves.png into a run's folder.

    Args:
        run: Whose logs to read.
        report: The contents of run.json.
        val: The split that answers.jsonl is about, for its pictures; None where there is none.

    Raises:
        OSError: A file cannot be written.
    """
    logs = _read_lines(run.metrics)
    curves = draw_curves(logs, best_step=report["best_step"])
    run.curves.write_bytes(curves)
    bodies: dict[str, list[Child]] = {
        "curves": [tag("img", alt="learning curves", src=data_uri(curves, "PNG"), style="max-width:100%")],
        "answers": list(_show_answers(_read_lines(run.answers), report, val)) if val is not None else [],
        "evaluations": _show_evaluations(logs, report),
        "parameters": [_show_parameters(report["parameters"])],
        "timing": [_show_timing(logs, report)],
        "data": [_show_data(report)],
        "settings": [table(("setting", "value"), [(name, _plain(value)) for name, value in report["config"].items()])],
        "versions": [_show_versions(report["environment"])],
    }
    shown = {name: body for name, body in bodies.items() if body}
    links = tag("nav", [tag("a", _SECTIONS[name], href=f"#{name}") for name in shown])
    parts = [tag("h1", f"Run {run.path.name}"), _summary(report), links]
    parts += [section(name, _SECTIONS[name], *body) for name, body in shown.items()]
    run.page.write_text("".join(page_pieces(f"Run {run.path.name}", parts)), encoding="utf-8")


def _summary(report: Mapping[str, Any]) -> Html:
    steps = count_of(report["steps"], "step")
    if report["steps"] < report["planned_steps"]:
        steps += f" of {report['planned_steps']:,} planned, ended early"
    facts = [
        f"{report['base']['name']} ({report['family'] or 'unknown family'}), "
        f"{'adapters' if report['weights'] == 'adapter' else 'all weights'}, weights in {report['load_in']}, "
        f"backend {report['backend']}" + (f", {report['processes']} GPUs" if report["processes"] > 1 else ""),
        f"{count_of(report['rows']['train'], 'training row')}, {steps}, "
        f"{_duration(report['seconds'])}; loss at the end {_number(report['last_loss'])}",
    ]
    if report["best_step"]:
        facts.append(
            f"kept: step {report['best_step']:,}, the best {report['best_metric']} of the val split "
            f"({_number(report['best_value'])})"
        )
    return tag("p", [[fact, tag("br")] for fact in facts])


def _show_answers(lines: Sequence[Mapping[str, Any]], report: Mapping[str, Any], val: Split) -> Iterator[Html]:
    """The rows of the sample with their pictures, what was expected, and what came at the first and the kept step."""
    by_step: dict[int, dict[int, str]] = {}
    for line in lines:
        by_step.setdefault(line["step"], {})[line["row"]] = line["answer"]
    if not by_step:
        return
    kept = report["best_step"] if report["best_step"] in by_step else max(by_step)
    steps = [step for step in dict.fromkeys((min(by_step), kept)) if step in by_step]
    rows = sorted(by_step[kept])[:_SHOWN_ANSWERS]
    yield tag(
        "p",
        f"{len(rows)} of the {count_of(len(by_step[kept]), 'row')} that were answered; "
        "the answer of the kept step stands last.",
        class_="soft",
    )
    references = {line["row"]: line["references"] for line in lines}
    articles = []
    for position in rows:
        row = val.read_row(position)
        turns = [_show_turn(message) for message in row["messages"][:-1]]
        pictures = [
            show_stored(image, info, side_px=_PICTURE_PX)
            for image, info in zip(row["images"], row["image_info"], strict=True)
        ]
        answers = [_show_answer(step, by_step[step][position], references[position]) for step in steps]
        expected = _bubble("system", "expected", " | ".join(references[position]))
        articles.append(tag("article", tag("h3", row["id"]), pictures, turns, expected, answers))
    yield tag("div", articles, class_="rows")


def _show_turn(message: Mapping[str, Any]) -> Html:
    text = "\n".join(part["text"] for part in message["content"] if part["text"])
    return _bubble(message["role"], message["role"], text)


def _show_answer(step: int, answer: str, references: Sequence[str]) -> Html:
    mark = "✓" if answer in references else "✗"
    return _bubble("assistant", f"step {step:,} {mark}", answer or "(nothing)")


def _bubble(kind: str, title: str, text: str) -> Html:
    return tag(
        "div", tag("div", title, class_="role"), tag("p", cut(text, _MOST_CHARS), class_="text"), class_=f"turn {kind}"
    )


def _show_evaluations(logs: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[Child]:
    evaluations = [log for log in logs if "eval_loss" in log]
    if not evaluations:
        return [tag("p", "There was no val split: nothing was evaluated, and the last checkpoint is kept.")]
    clock = ("runtime", "per_second")
    names = [name for name in evaluations[-1] if name.startswith("eval_") and not name.endswith(clock)]
    rows = [
        (log["step"], *(_number(log.get(name)) for name in names), "kept" if log["step"] == report["best_step"] else "")
        for log in evaluations
    ]
    return [table(("step", *(name.removeprefix("eval_") for name in names), ""), rows)]


def _show_parameters(parameters: Mapping[str, Mapping[str, int]]) -> Html:
    total = {key: sum(part[key] for part in parameters.values()) for key in ("trainable", "all")}
    rows = [
        (name, part["trainable"], part["all"], f"{part['trainable'] / max(part['all'], 1):.2%}")
        for name, part in (*parameters.items(), ("together", total))
    ]
    return table(("part", "trained", "of", "share"), rows)


def _show_timing(logs: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> Html:
    rows = [(name, _duration(seconds)) for name, seconds in report["timing"].items()]
    rows.append(("together", _duration(report["seconds"])))
    pairs = [(a, b) for a, b in itertools.pairwise(logs) if "loss" in a and "loss" in b and b["seconds"] > a["seconds"]]
    if pairs:
        step = statistics.median((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs)
        rows.append(("one step (median)", f"{step:.2f} s"))
    return table(("", "time"), rows)


def _show_data(report: Mapping[str, Any]) -> Html:
    return table(
        ("", ""),
        [
            ("folder", report["data"]),
            ("fingerprint", report["data_fingerprint"]),
            ("manifest.json, SHA-256", report["data_manifest_sha256"]),
            ("training rows", f"{report['rows']['train']:,}"),
            ("val rows", f"{report['rows']['val']:,}"),
            ("tokens of one epoch", f"{report['tokens']['train']:,}"),
            ("longest row, in tokens", f"{report['max_length']:,}"),
        ],
    )


def _show_versions(environment: Mapping[str, Any]) -> Html:
    rows = [(name, _plain(value)) for name, value in environment.items() if name != "packages"]
    rows += [(name, version or "not installed") for name, version in environment["packages"].items()]
    return table(("", ""), rows)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_lines(path)] if path.is_file() else []
