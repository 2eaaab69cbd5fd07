"""The result of an evaluation as one HTML page: scores, confusion, and the rows that went worst with their pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmdata.pages import Html, page_pieces, section, table, tag
from vlmdata.pages.pictures import data_uri
from vlmtrain.inference import Request
from vlmtrain.metrics import METRICS
from vlmtrain.rows import turn_text
from vlmtrain.score_table import condition_rows, format_cell, is_blind

__all__ = ["write_score_page"]

_WORST_ROWS = 40
_THUMBNAIL_PX = 180
_STYLE = """
.warning { border-left: 4px solid var(--lost); background: var(--panel); padding: .5rem .8rem }
.confusion :is(td, th) { text-align: right; padding: .3rem .6rem }
.confusion td:first-child { text-align: left; padding-left: 0 }
#rows ~ .wide td { max-width: 28rem; overflow-wrap: anywhere; white-space: pre-wrap }
#rows ~ .wide img { margin-right: .3rem; image-rendering: auto }
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
    title = f"{result['split']}: {result['model']}"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(page_pieces(title, _body(title, result, lines, questions)))


def _body(
    title: str, result: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], questions: Sequence[Request]
) -> Iterator[Html]:
    yield tag("style", Html(_STYLE))
    yield tag("h1", title)
    yield tag("p", f"{result['rows']} rows of {result['data']}, weights in {result['load_in']}")
    yield section("scores", "Scores, with 95 % intervals", *_show_scores(result))
    if is_blind(result):
        words = "Swapping the pictures changes no score: on these rows the model does not look at them."
        yield tag("p", words, class_="warning")
    if "confusion" in result:
        yield section(
            "confusion", "Confusion: a line a label, a column an answer", _show_confusion(result["confusion"])
        )
    yield section("rows", "Rows", *_show_worst(next(iter(result["scores"])), lines, questions))


def _show_scores(result: Mapping[str, Any]) -> Iterator[Html]:
    if "compare" in result:
        yield tag("p", f"compared: {result['compare']['model']}")
    names = list(result["scores"])
    rows = []
    for title, cells, is_difference in condition_rows(result):
        texts = (title, *(format_cell(cells[name], is_difference=is_difference) for name in names))
        rows.append([tag("span", text, class_="soft") for text in texts] if is_difference else texts)
    yield table(("", *(METRICS[name].title for name in names)), rows)


def _show_confusion(confusion: Mapping[str, Any]) -> Html:
    head = tag("tr", tag("th"), [tag("th", column) for column in confusion["columns"]])
    body = []
    for row, (label, counts) in enumerate(zip(confusion["labels"], confusion["counts"], strict=True)):
        total = max(sum(counts), 1)
        cells = [_shade(count, count / total, right=column == row) for column, count in enumerate(counts)]
        body.append(tag("tr", tag("td", label), cells))
    return tag("div", tag("table", head, body, class_="confusion"), class_="wide")


def _shade(count: int, share: float, *, right: bool) -> Html:
    """A cell the stronger in colour, the larger its share of the label's rows."""
    hue = "60,150,90" if right else "200,70,60"
    return tag("td", f"{count:,}", style=f"background:rgba({hue},{share:.2f})") if count else tag("td")


def _show_worst(metric: str, lines: Sequence[Mapping[str, Any]], questions: Sequence[Request]) -> Iterator[Html]:
    sign = 1 if METRICS[metric].higher_is_better else -1
    perfect = 1.0 if METRICS[metric].higher_is_better else 0.0
    wrong = [index for index, line in enumerate(lines) if line["scores"][metric] != perfect]
    wrong.sort(key=lambda index: (sign * lines[index]["scores"][metric], index))
    if not wrong:
        yield tag("p", f"Every row is right by {METRICS[metric].title}.")
        return
    shown = f"; the worst {_WORST_ROWS} are shown" if len(wrong) > _WORST_ROWS else ""
    yield tag("p", f"{len(wrong)} of {len(lines)} rows are not perfect by {METRICS[metric].title}{shown}")
    rows = (_show_row(lines[index], questions[index], metric) for index in wrong[:_WORST_ROWS])
    yield table(("pictures", "question", "accepted", "answered", metric, "row"), rows)


def _show_row(line: Mapping[str, Any], question: Request, metric: str) -> tuple[Html | str, ...]:
    pictures = tag("span", [tag("img", src=_thumbnail(picture), alt="") for picture in question.images])
    asked = turn_text(question.messages[-1])
    return (
        pictures,
        asked,
        " | ".join(line["references"]),
        line["prediction"],
        f"{line['scores'][metric]:.3f}",
        tag("span", line["id"], class_="soft"),
    )


def _thumbnail(picture: Any) -> str:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return data_uri(buffer.getvalue(), "JPEG")
