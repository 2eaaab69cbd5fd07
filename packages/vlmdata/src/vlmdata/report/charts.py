"""Charts as inline SVG: a histogram, and the flow from the rows that were read to what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmdata.figures import Bin
from vlmdata.pages.html import Html, tag

__all__ = ["FlowEnd", "draw_flow", "draw_histogram"]

_CHART_PX = (440, 178)
_PLOT_BOTTOM_PX = 140
_PLOT_TOP_PX = 18
_SHOWN_TICKS = 6

_FLOW_WIDTH_PX = 820
_FLOW_HEIGHT_PX = 220
_SLOT_PX = 24
_NODE_PX = 14
_RIGHT_PX = 420


def draw_histogram(bins: Sequence[Bin], unit: str) -> Html:
    """Return bars over a line of values.

    Args:
        bins: from `vlmdata.figures.count_bins`; drawn equally wide.
        unit: what the values are, written below.
    """
    width, height = _CHART_PX
    if not bins:
        return tag("p", "nothing to show", class_="soft")
    most = max(count for _, _, count in bins)
    step = min(width / len(bins), 60.0)
    marks: list[Html] = []
    every = -(-len(bins) // _SHOWN_TICKS)
    for i, (low, high, count) in enumerate(bins):
        tall = (_PLOT_BOTTOM_PX - _PLOT_TOP_PX) * count / most
        if count:
            tall = max(tall, 1.0)
        values = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        hint = tag("title", f"{values} {unit}: {count:,}")
        marks.append(
            tag(
                "rect",
                hint,
                class_="bar",
                x=_px(i * step + 1),
                y=_px(_PLOT_BOTTOM_PX - tall),
                width=_px(max(step - 2, 1)),
                height=_px(tall),
            )
        )
        if i % every == 0:
            at_end = i * step > width - 40
            edge = min((i + 1) * step, width) if at_end else i * step + 1
            anchor = "end" if at_end else None
            marks.append(
                tag("text", f"{low:,}", class_="soft", x=_px(edge), y=_PLOT_BOTTOM_PX + 14, text_anchor=anchor)
            )
        if count == most and not any("peak" in mark for mark in marks):
            place = min(max(i * step + step / 2, 20), width - 20)
            label = _px(_PLOT_BOTTOM_PX - tall - 5)
            marks.append(tag("text", f"{count:,}", class_="peak", x=_px(place), y=label, text_anchor="middle"))
    line = tag("line", class_="axis", x1=0, x2=width, y1=_PLOT_BOTTOM_PX, y2=_PLOT_BOTTOM_PX)
    name = tag("text", unit, class_="soft", x=width, y=height - 5, text_anchor="end")
    return tag("svg", line, marks, name, viewBox=f"0 0 {width} {height}", role="img", width=width)


@dataclass(frozen=True, slots=True)
class FlowEnd:
    """Where a part of the rows ends up."""

    label: str
    count: int
    kind: str
    """`kept` or `lost`."""


def draw_flow(total: int, ends: Sequence[FlowEnd]) -> Html:
    """Return a band from all rows to each end, as wide as its share; none is too thin to be seen."""
    scale = _FLOW_HEIGHT_PX / max(total, 1)
    marks: list[Html] = []
    left, right = 20.0, 20.0
    for end in ends:
        tall = max(end.count * scale, 1.5) if end.count else 0.0
        slot = max(tall, _SLOT_PX - 6)
        top = right + (slot - tall) / 2
        share = f"{100 * end.count / total:.1f} %" if total else ""
        marks.append(_draw_band(left, end.count * scale, top, tall, end.kind))
        marks.append(tag("rect", class_=end.kind, x=_RIGHT_PX, y=_px(top), width=_NODE_PX, height=_px(tall)))
        label = f"{end.label}  {end.count:,}  ({share})"
        marks.append(tag("text", label, x=_RIGHT_PX + _NODE_PX + 8, y=_px(top + tall / 2 + 4)))
        left += end.count * scale
        right += slot + 6
    source = tag("rect", class_="read", x=90, y=20, width=_NODE_PX, height=_px(_FLOW_HEIGHT_PX))
    height = round(max(right, _FLOW_HEIGHT_PX + 20) + 6)
    middle = 20 + _FLOW_HEIGHT_PX / 2
    name = tag("text", f"read {total:,}", x=82, y=_px(middle + 4), text_anchor="end")
    return tag("svg", marks, source, name, viewBox=f"0 0 {_FLOW_WIDTH_PX} {height}", role="img", width=_FLOW_WIDTH_PX)


def _draw_band(left_top: float, left_tall: float, right_top: float, right_tall: float, kind: str) -> Html:
    begin, end = 90 + _NODE_PX, _RIGHT_PX
    bend = (begin + end) / 2
    upper = f"M{begin} {_px(left_top)} C{bend} {_px(left_top)} {bend} {_px(right_top)} {end} {_px(right_top)}"
    low_left, low_right = _px(left_top + max(left_tall, 0.5)), _px(right_top + right_tall)
    lower = f"L{end} {low_right} C{bend} {low_right} {bend} {low_left} {begin} {low_left} Z"
    return tag("path", class_=f"band {kind}", d=f"{upper} {lower}")


def _px(value: float) -> str:
    return f"{value:.1f}"
