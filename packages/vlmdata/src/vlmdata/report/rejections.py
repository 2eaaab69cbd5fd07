"""What became of the rows that were read: the flow from read to kept, and examples for each reason."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vlmdata.config import ImageConfig, InputConfig
from vlmdata.formats import Reading, convert_row
from vlmdata.images import ImageProblem, prepare_image
from vlmdata.manifest import Counts
from vlmdata.pages.frame import table
from vlmdata.pages.html import Child, Html, count_of, cut, join, tag
from vlmdata.pages.pictures import data_uri
from vlmdata.report.charts import FlowEnd, draw_flow
from vlmdata.sample import Problem, Sample
from vlmdata.sources import Source
from vlmdata.sources.image_bytes import ImageLoader, is_url

__all__ = ["ReasonSample", "find_pictures", "render_flow", "render_reasons", "sample_reasons"]

_EXAMPLES = 5
_DETAIL_CHARS = 300
# A single further reason takes no more room under its own name than as "1 other reason".
_FLOW_REASONS = 12
_THUMBNAIL_PX = 120
# Files that were refused for what they are although they open, and are worth a look. Whatever ended a worker, or is too
# large to decode, is not opened again; nor are rare formats, whose decoders are less to be trusted with broken files.
_OPENABLE = frozenset(("image_aspect", "image_strip", "image_too_small", "image_truncated", "multi_page"))
_OPENABLE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")

Place = tuple[str, int]


@dataclass(slots=True)
class ReasonSample:
    """How often a reason was given, and some lines of rejected.jsonl with it, in their order."""

    count: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)


def sample_reasons(lines: Iterable[dict[str, Any]], seed: int) -> dict[tuple[str, str], ReasonSample]:
    """Draw examples for each (level, reason) from the lines of rejected.jsonl, holding no more than these.

    Every line has the same chance to be drawn (Vitter 1985, "Random Sampling with a Reservoir", algorithm R).
    """
    samples: dict[tuple[str, str], ReasonSample] = {}
    draw: dict[tuple[str, str], random.Random] = {}
    for line in lines:
        key = line.get("level", "row"), line["reason"]
        sample = samples.setdefault(key, ReasonSample())
        sample.count += 1
        if len(sample.lines) < _EXAMPLES:
            sample.lines.append(line)
        else:
            place = draw.setdefault(key, random.Random(f"{seed} {key}")).randrange(sample.count)
            if place < _EXAMPLES:
                sample.lines[place] = line
    for sample in samples.values():
        sample.lines.sort(key=lambda line: (line["source"], line["row"]))
    return dict(sorted(samples.items(), key=lambda item: (item[0][0] != "row", -item[1].count, item[0])))


def render_flow(counts: Counts, splits: Mapping[str, int]) -> Html:
    """Return how the rows that were read part into splits and reasons."""
    ends = [FlowEnd(f"kept, {name}", rows, "kept") for name, rows in splits.items()]
    reasons = sorted(counts.rejected.items(), key=lambda item: (-item[1], item[0]))
    # what became turns of another row is not lost
    shown = _FLOW_REASONS if len(reasons) > _FLOW_REASONS + 1 else len(reasons)
    ends += [FlowEnd(name, count, "kept" if name == "merged" else "lost") for name, count in reasons[:shown]]
    if rest := reasons[shown:]:
        ends.append(FlowEnd(f"{len(rest)} other reasons", sum(count for _, count in rest), "lost"))
    lost = counts.read - counts.kept
    line = f"read {counts.read:,} = kept {counts.kept:,} + rejected {lost:,}"
    return join(tag("p", line), draw_flow(counts.read, ends))


def render_reasons(samples: Mapping[tuple[str, str], ReasonSample], pictures: Mapping[Place, Html]) -> Iterator[Html]:
    """Yield a table of examples for each reason.

    Args:
        samples: from `sample_reasons`.
        pictures: from `find_pictures`.
    """
    for (level, reason), sample in samples.items():
        names = ("row", "rows") if level == "row" else ("image lost from a kept row", "images lost from kept rows")
        shown = f", {len(sample.lines)} of them:" if sample.count > len(sample.lines) else ""
        yield tag("h3", f"{reason}: {count_of(sample.count, *names)}{shown}")
        columns: dict[str, list[Child]] = {
            "source": [line["source"] for line in sample.lines],
            "row": [tag("span", str(line["row"])) for line in sample.lines],
            "id": [_own_id(line) for line in sample.lines],
            "detail": [cut(line["detail"], _DETAIL_CHARS) for line in sample.lines],
            "image": [pictures.get((line["source"], line["row"])) for line in sample.lines],
        }
        filled = {heading: cells for heading, cells in columns.items() if any(cells)}
        yield table(filled, zip(*filled.values(), strict=True))


def _own_id(line: Mapping[str, Any]) -> str | None:
    """The id of a row, where it says more than its place."""
    return None if line["id"] in (None, f"{line['source']}:{line['row']}") else cut(line["id"], 100)


def find_pictures(
    samples: Mapping[tuple[str, str], ReasonSample],
    inputs: Sequence[tuple[Source, Reading]],
    input_config: InputConfig,
    images: ImageConfig,
) -> dict[Place, Html]:
    """Read the examples once more whose image was refused although it opens, and return small copies.

    Nothing is fetched over the network.
    """
    wanted = {
        (line["source"], line["row"])
        for (_, reason), sample in samples.items()
        if reason in _OPENABLE
        for line in sample.lines
    }
    pictures: dict[Place, Html] = {}
    for source, reading in inputs:
        rows = {row for name, row in wanted if name == source.name}
        if not rows:
            continue
        loader = ImageLoader(input_config, source.image_base, images.max_image_bytes)
        for index, raw in source.read():
            if index in rows and not isinstance(raw, Problem):
                sample = convert_row(raw, index, source.name, reading)
                picture = _open_refused(sample, loader, images) if isinstance(sample, Sample) else None
                if picture is not None:
                    pictures[source.name, index] = picture
            if index >= max(rows):
                break
    return pictures


def _open_refused(sample: Sample, loader: ImageLoader, config: ImageConfig) -> Html | None:
    """The first image of a row that the config refuses, by rules that refuse nothing."""
    lenient = replace(
        config,
        size=None,
        multiple_of=1,
        for_=None,
        min_side=1,
        max_side=_THUMBNAIL_PX,
        small="keep",
        strips="shrink",
        max_aspect_ratio=float("inf"),
        smallest_side=1,
        pages="first",
        salvage_truncated=True,
    )
    for reference in sample.images:
        if reference.data is None and reference.location and is_url(reference.location):
            continue
        loaded = loader.load(reference)
        if isinstance(loaded, Problem) or not loaded.data.startswith(_OPENABLE_STARTS):
            continue
        if not isinstance(prepare_image(loaded.data, config), ImageProblem):
            continue
        shown = prepare_image(loaded.data, lenient)
        if not isinstance(shown, ImageProblem):
            return tag("img", alt=loaded.name or "image", src=data_uri(shown.data, shown.format))
    return None
