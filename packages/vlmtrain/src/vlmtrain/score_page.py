"""The result of an evaluation as one HTML page: scores, confusion, and the rows that went worst with their pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmtrain.inference import Request
from vlmtrain.metrics import METRICS
from vlmtrain.score_table import condition_rows, format_cell, is_blind

__all__ = ["write_score_page"]

_WORST_ROWS = 40
_THUMBNAIL_PX = 180

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:76em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.4em}td,th{padding:.25em .7em;text-align:right;font-weight:normal}
th{color:#555;border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}
.difference{color:#555}.warning{background:#fff3d6;padding:.5em .8em}.scroll{overflow-x:auto}
.rows td{text-align:left;vertical-align:top;border-bottom:1px solid #ddd;max-width:28em;overflow-wrap:anywhere}
.rows img{max-width:180px;max-height:180px;margin-right:.3em}pre{white-space:pre-wrap;margin:0;font:inherit}
"""


def write_score_page(
    path: Path, result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], questions: Sequence[Request]
) -> None:
    """Writes the page.

    Args:
        path: The file.
        result: What `evaluate` returns.
        lines: `(N,)` predictions with their scores, as they stand in the .jsonl file.
        questions: `(N,)` what was asked.

    Raises:
        OSError: It cannot be written.
    """
    facts = f"{result['rows']} rows of {result['data']}, weights in {result['load_in']}"
    parts = [
        f"<h1>{_text(result['split'])}: {_text(result['model'])}</h1><p>{_text(facts)}</p>",
        _score_table(result),
    ]
    if is_blind(result):
        parts.append(
            '<p class="warning">Swapping the pictures changes no score: on these rows the model does not look at them.'
        )
    if "confusion" in result:
        parts.append(_confusion_table(result["confusion"]))
    parts.append(_worst_rows(next(iter(result["scores"])), lines, questions))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'  # noqa: E501  # one line of HTML
    title = f"<title>{_text(result['split'])}: {_text(result['model'])}</title>"
    path.write_text(f"{head}{title}<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>", "utf-8")


def _text(value: object) -> str:
    return html.escape(str(value))


def _score_table(result: Mapping[str, Any]) -> str:
    names = list(result["scores"])
    head = "".join(f"<th>{_text(METRICS[name].title)}" for name in names)
    body = []
    for title, cells, is_difference in condition_rows(result):
        shown = "".join(f"<td>{_text(format_cell(cells[name], is_difference=is_difference))}" for name in names)
        body.append(f'<tr class="{"difference" if is_difference else "score"}"><td>{_text(title)}{shown}')
    compared = f"<p>compared: {_text(result['compare']['model'])}" if "compare" in result else ""
    return f"<h2>Scores, with 95 % intervals</h2>{compared}<table><tr><th>{head}{''.join(body)}</table>"


def _confusion_table(confusion: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{_text(column)}" for column in confusion["columns"])
    body = []
    for row, (label, counts) in enumerate(zip(confusion["labels"], confusion["counts"], strict=True)):
        total = max(sum(counts), 1)
        cells = []
        for column, count in enumerate(counts):
            hue = "60,150,90" if column == row else "200,70,60"
            shade = f' style="background:rgba({hue},{count / total:.2f})"' if count else ""
            cells.append(f"<td{shade}>{count or ''}")
        body.append(f"<tr><td>{_text(label)}{''.join(cells)}")
    title = "<h2>Confusion: a line a label, a column an answer</h2>"
    return f'{title}<div class="scroll"><table><tr><th>{head}{"".join(body)}</table></div>'


def _worst_rows(metric: str, lines: Sequence[Mapping[str, Any]], questions: Sequence[Request]) -> str:
    sign = 1 if METRICS[metric].higher_is_better else -1
    perfect = 1.0 if METRICS[metric].higher_is_better else 0.0
    wrong = [index for index, line in enumerate(lines) if line["scores"][metric] != perfect]
    wrong.sort(key=lambda index: (sign * lines[index]["scores"][metric], index))
    if not wrong:
        return f"<h2>Rows</h2><p>Every row is right by {_text(METRICS[metric].title)}.</p>"
    count = f"{len(wrong)} of {len(lines)} rows are not perfect by {METRICS[metric].title}"
    shown = f"; the worst {_WORST_ROWS} are shown" if len(wrong) > _WORST_ROWS else ""
    body = [_row(lines[index], questions[index], metric) for index in wrong[:_WORST_ROWS]]
    head = f"<tr><th>pictures<th>question<th>accepted<th>answered<th>{_text(metric)}"
    return f'<h2>Rows</h2><p>{_text(count + shown)}</p><table class="rows">{head}{"".join(body)}</table>'


def _row(line: Mapping[str, Any], question: Request, metric: str) -> str:
    pictures = "".join(f'<img src="{_data_uri(picture)}" alt="">' for picture in question.images)
    asked = "".join(part["text"] or "" for part in question.messages[-1]["content"] if part["type"] == "text")
    cells = (asked, " | ".join(line["references"]), line["prediction"])
    texts = "".join(f"<td><pre>{_text(text)}</pre>" for text in cells)
    return f'<tr title="{_text(line["id"])}"><td>{pictures}{texts}<td>{line["scores"][metric]:.3f}'


def _data_uri(picture: Any) -> str:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
