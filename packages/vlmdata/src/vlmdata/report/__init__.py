"""report.html: one self-contained page on a build, for people to look at.

The page shows samples, so that its size and the memory it takes stay bounded however large the set is, and depends on
nothing but the inputs and the options: the same build writes the same page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmdata.build_config import BuildConfig
from vlmdata.dedup import ImageLinks, link_images
from vlmdata.figures import SplitFigures, merge_figures
from vlmdata.formats import Reading
from vlmdata.pages.frame import page_pieces, section
from vlmdata.pages.html import Html, join, tag
from vlmdata.pipeline import Settled
from vlmdata.report.conflicts import find_conflicts, render_conflicts
from vlmdata.report.contamination import render_contamination
from vlmdata.report.conversations import render_sample
from vlmdata.report.distributions import render_distributions, render_splits, render_tokens
from vlmdata.report.duplicates import render_duplicates
from vlmdata.report.rejections import find_pictures, render_flow, render_reasons, sample_reasons
from vlmdata.report.staged_rows import StagedRows
from vlmdata.shards import BuiltFolder
from vlmdata.sources import Source
from vlmdata.stats import read_rejections

__all__ = ["REPORT_NAME", "ReportInputs", "write_report"]

REPORT_NAME = "report.html"
_SAMPLE_ROWS = 12
_SECTIONS = {
    "flow": "From read to kept",
    "splits": "Splits",
    "sizes": "Sizes and texts",
    "tokens": "Image tokens",
    "sample": "A random sample",
    "duplicates": "Duplicates",
    "contamination": "Pictures of evaluation sets",
    "conflicts": "Label conflicts",
    "reasons": "Why rows were left out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """What a report is made from.

    Attributes:
        folder: the shards and rejected.jsonl, at the place where they are put together.
        splits: the figures of each split.
        settled: which rows were prepared and what became of them.
        stage: the folder of the staged partitions.
        inputs: what was read.
        config: of the build.
    """

    folder: BuiltFolder
    splits: Mapping[str, SplitFigures]
    settled: Settled
    stage: Path
    inputs: Sequence[tuple[Source, Reading]]
    config: BuildConfig


def write_report(path: Path, report: ReportInputs) -> None:
    """Write the page."""
    with path.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(page_pieces("Report of a vlmdata build", _render(report)))


def _render(report: ReportInputs) -> Iterator[Html]:
    settled, config = report.settled, report.config
    seed = config.split.seed
    rows = StagedRows(report.stage, settled.staged)
    whole = merge_figures(report.splits.values())
    samples = sample_reasons(read_rejections(report.folder.path), seed)
    pictures = find_pictures(samples, report.inputs, config.input, config.images)
    conflicts = find_conflicts(report.stage, settled.staged, _links(settled), settled.is_used)
    kept = {name: figures.rows for name, figures in report.splits.items()}
    yield _render_head(report)
    yield _section("flow", [render_flow(settled.counts, kept)])
    yield _section("splits", render_splits(report.splits))
    yield _section("sizes", [render_distributions(whole)])
    yield _section("tokens", render_tokens(whole))
    yield _section("sample", render_sample(report.folder, rows=_SAMPLE_ROWS, seed=seed))
    yield _section("duplicates", render_duplicates(settled.duplicates, config.dedup, rows, seed))
    held_against = render_contamination(settled.contamination, settled.evaluation, config.dedup, rows)
    yield _section("contamination", held_against)
    yield _section("conflicts", render_conflicts(conflicts, rows))
    yield _section("reasons", render_reasons(samples, pictures) if samples else [tag("p", "Every row was kept.")])


def _links(settled: Settled) -> ImageLinks:
    return settled.links if settled.links is not None else link_images(settled.staged.signatures, None)


def _section(name: str, pieces: Iterator[Html] | Sequence[Html]) -> Html:
    return section(name, _SECTIONS[name], pieces)


def _render_head(report: ReportInputs) -> Html:
    names = ", ".join(source.name for source, _ in report.inputs)
    readings = [
        tag("p", f"{source.name}: {source.kind}; {reading.describe()}", class_="soft")
        for source, reading in report.inputs[:20]
    ]
    links = [tag("a", title, href=f"#{name}") for name, title in _SECTIONS.items()]
    title = tag("h1", names if len(names) <= 80 else f"{len(report.inputs)} inputs")
    return join(title, readings, tag("nav", links))
