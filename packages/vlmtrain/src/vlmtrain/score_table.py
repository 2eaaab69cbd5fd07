"""The result of an evaluation as text: a line a condition, a column a metric, and the confusion of labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlmtrain.wording import shorten

__all__ = ["condition_rows", "describe_result", "format_cell", "is_blind"]

_CELL_CHARACTERS = 26
_LABEL_CHARACTERS = 12
_TEXT_LABELS = 12
"""A wider confusion table does not fit a terminal; the page and the JSON have it."""


def condition_rows(result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """The lines of the table.

    Args:
        result: What `evaluate` returned.

    Yields:
        The condition in words, `{metric: {value or difference, low, high}}`, and whether these are differences.
    """
    reference = result.get("precision", {}).get("reference")
    yield (f"model in {reference}" if reference else "model"), result["scores"], False
    for precision, other in result.get("precision", {}).get("others", {}).items():
        yield f"  in {precision}", other["scores"], False
        yield f"  {precision} - {reference}, paired", other["paired"], True
    if "swapped" in result:
        yield "pictures swapped", result["swapped"]["scores"], False
        yield "  own - swapped, paired", result["swapped"]["paired"], True
    if "compare" in result:
        yield "compared", result["compare"]["scores"], False
        yield "  model - compared, paired", result["compare"]["paired"], True
    if "majority" in result:
        yield f"always {shorten(repr(result['majority']['answer']), 20)}", result["majority"]["scores"], False


def format_cell(cell: Mapping[str, Any], *, is_difference: bool) -> str:
    """A value with its 95 % interval."""
    if is_difference:
        return f"{cell['difference']:+.3f} [{cell['low']:+.3f}, {cell['high']:+.3f}]"
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def is_blind(result: Mapping[str, Any]) -> bool | None:
    """Whether no metric changed with the pictures swapped, as far as these rows can tell; None where not asked."""
    if "swapped" not in result:
        return None
    return all(cell["low"] <= 0 <= cell["high"] for cell in result["swapped"]["paired"].values())


def describe_result(result: Mapping[str, Any]) -> str:
    """A table of the scores with 95 % intervals; full names stand above it."""
    lines = [f"{result['split']}: {result['rows']} rows of {result['data']}, weights in {result['load_in']}"]
    lines.append(f"model: {result['model']}")
    if "compare" in result:
        lines.append(f"compared: {result['compare']['model']}")
    rows = list(condition_rows(result))
    width = max(len(title) for title, _, _ in rows) + 2
    lines.append(" " * width + "".join(f"{name:>{_CELL_CHARACTERS}}" for name in result["scores"]))
    for title, cells, is_difference in rows:
        texts = (format_cell(cells[name], is_difference=is_difference) for name in result["scores"])
        lines.append(f"{title:<{width}}" + "".join(f"{text:>{_CELL_CHARACTERS}}" for text in texts))
    if is_blind(result):
        lines.append("warning: swapping the pictures changes no score: on these rows the model does not look at them")
    if "confusion" in result:
        lines.extend(_confusion_lines(result["confusion"]))
    return "\n".join(lines)


def _confusion_lines(confusion: Mapping[str, Any]) -> list[str]:
    labels, columns = confusion["labels"], confusion["columns"]
    if len(labels) > _TEXT_LABELS:
        return [f"confusion of {len(labels)} labels: see the page beside the result"]
    # an empty last column says nothing
    shown = len(columns) - (not any(row[-1] for row in confusion["counts"]))
    width = max(len(shorten(label, 24)) for label in labels) + 2
    widths = [max(len(shorten(column, _LABEL_CHARACTERS)), 5) + 2 for column in columns[:shown]]
    lines = ["confusion (a line a label, a column an answer):"]
    head = (f"{shorten(name, _LABEL_CHARACTERS):>{size}}" for name, size in zip(columns, widths, strict=False))
    lines.append("  " + " " * width + "".join(head))
    for label, counts in zip(labels, confusion["counts"], strict=True):
        cells = (f"{count or '·':>{size}}" for count, size in zip(counts, widths, strict=False))
        lines.append(f"  {shorten(label, 24):<{width}}" + "".join(cells))
    return lines
