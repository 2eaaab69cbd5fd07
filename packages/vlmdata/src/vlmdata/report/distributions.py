"""Histograms over the whole set, and the splits beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from vlmdata.families import FAMILIES
from vlmdata.figures import SplitFigures, count_bins, find_quantile, merge_figures
from vlmdata.pages.frame import table
from vlmdata.pages.html import Child, Html, cut, join, tag
from vlmdata.report.charts import draw_histogram

__all__ = ["render_distributions", "render_splits", "render_tokens"]

_SHOWN_ANSWERS = 12
_ANSWER_CHARS = 120


def render_distributions(whole: SplitFigures) -> Html:
    """Return histograms of stored sizes and of texts."""
    charts = [_chart("Characters of text in a row", whole.text_chars, "characters")]
    if whole.images:
        charts = [
            _chart("Longest side of the stored images", whole.sides(max), "px"),
            _chart("Shortest side of the stored images", whole.sides(min), "px"),
            *charts,
        ]
    if len(whole.images_per_row) > 1:
        charts.append(_chart("Images in a row", whole.images_per_row, "images"))
    if len(whole.answers_per_row) > 1:
        charts.append(_chart("Answers in a row", whole.answers_per_row, "assistant turns"))
    return tag("div", charts, class_="charts")


def render_tokens(whole: SplitFigures) -> Iterator[Html]:
    """Yield what the images of a row cost each family, as a table and as histograms."""
    if not whole.images:
        yield tag("p", "The rows have no images.")
        return
    yield tag(
        "p",
        "Tokens that the images of a row take, with the image processor of the family's models on the hub; text comes "
        "on top. Llama 3.2 reads images beside the text, where each takes one token. Families that take the same "
        "number for every row have no histogram.",
    )
    rows: list[list[Child]] = []
    charts: list[tuple[list[str], Counter[int]]] = []
    for name, counts in whole.image_tokens.items():
        tokens = Counter({value: count for value, count in counts.items() if value is not None and value > 0})
        total = sum(value * count for value, count in tokens.items())
        quantiles = [find_quantile(tokens, part) for part in (0.0, 0.5, 0.95, 1.0)]
        rows.append([name, *quantiles, total, counts[None], FAMILIES[name].resizing])
        if len(tokens) > 1:
            same = next((names for names, drawn in charts if drawn == tokens), None)
            if same is None:
                charts.append(([name], tokens))
            else:
                same.append(name)
    headings = ["family", "least", "median", "95 %", "most", "in all", "rows refused", "what its processor does"]
    yield table(headings, rows)
    drawn = [_chart(", ".join(names), tokens, "image tokens a row") for names, tokens in charts]
    yield tag("div", drawn, class_="charts")


def _chart(title: str, counter: Mapping[int, int], unit: str) -> Html:
    return tag("figure", tag("h3", title), draw_histogram(count_bins(counter), unit))


def render_splits(splits: Mapping[str, SplitFigures]) -> Iterator[Html]:
    """Yield rows, images, sizes and the most common answers of every split."""
    headings = ["split", "rows", "images", "MB", "longest side, px", "text, characters", "formats", "done"]
    yield table(headings, [_describe(name, figures) for name, figures in splits.items()])
    yield tag("p", "Sides and texts are medians.", class_="soft")
    whole = merge_figures(splits.values())
    common = [(answer, count) for answer, count in whole.answers.most_common(_SHOWN_ANSWERS) if count > 1]
    distinct = f"{len(whole.answers):,}" if whole.has_all_answers else f"more than {len(whole.answers):,}"
    yield tag("h3", "Most common answers")
    yield tag("p", f"{distinct} different answers (compared by their first 200 characters).", class_="soft")
    if not common:
        yield tag("p", "No answer occurs twice.")
        return
    rows: list[list[Child]] = [
        [tag("span", cut(answer, _ANSWER_CHARS), class_="text"), *(_share(each, answer) for each in splits.values())]
        for answer, _ in common
    ]
    yield table(["answer", *splits], rows)


def _describe(name: str, figures: SplitFigures) -> list[Child]:
    return [
        name,
        figures.rows,
        figures.images,
        tag("span", f"{figures.bytes / 1e6:,.1f}"),
        find_quantile(figures.sides(max), 0.5),
        find_quantile(figures.text_chars, 0.5),
        _list(figures.formats),
        _list(figures.actions),
    ]


def _list(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())


def _share(figures: SplitFigures, answer: str) -> Html:
    count = figures.answers[answer]
    part = 100 * count / figures.rows if figures.rows else 0.0
    bar = tag("span", class_="share", style=f"width:{part / 100 * 8:.2f}em")
    return join(f"{count:,} ({part:.1f} %)", bar)
