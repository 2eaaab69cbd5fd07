"""Rows that show a picture of an evaluation set, beside a small copy of that picture."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from vlmdata.config import DedupConfig
from vlmdata.dedup import Contamination, EvaluationImages
from vlmdata.figures import count_bins
from vlmdata.images.fingerprint import COLOR_SIDE, GREY_SIDE
from vlmdata.pages.html import Html, count_of, tag
from vlmdata.pages.pictures import data_uri
from vlmdata.report.charts import draw_histogram
from vlmdata.report.staged_rows import StagedRows, show_row

__all__ = ["render_contamination"]

_SHOWN_PAIRS = 8
_COPY_PX = 176


def render_contamination(
    contamination: Contamination, evaluation: Sequence[EvaluationImages], config: DedupConfig, rows: StagedRows
) -> Iterator[Html]:
    """Yield how many rows were dropped, their distances, and the most distant of them beside what they are like.

    Args:
        contamination: what was dropped.
        evaluation: the pictures of the evaluation sets.
        config: names the sets.
        rows: for the images.
    """
    if not evaluation:
        yield tag("p", "Rows were not held against an evaluation set (--against).")
        return
    pictures = count_of(sum(map(len, evaluation)), "picture")
    against = f"{pictures} of {', '.join(config.against)}"
    if not len(contamination):
        yield tag("p", f"No row shows one of the {against}.")
        return
    near = int(contamination.is_near.sum())
    yield tag(
        "p",
        f"{count_of(len(contamination), 'row shows', 'rows show')} one of the {against}: {len(contamination) - near:,} "
        f"with equal pixels, {near:,} nearly the same.",
    )
    if near:
        distances = Counter(contamination.distance[contamination.is_near].tolist())
        yield tag("h3", "Distance of the nearly equal ones")
        yield draw_histogram(count_bins(distances), f"differing bits of 256, at most {config.near_distance}")
    yield tag("h3", "The most distant ones, each with a small copy of the evaluation picture")
    order = np.lexsort((contamination.row, -contamination.distance.astype(np.int64), ~contamination.is_near))
    described = list(contamination.describe(evaluation))
    pairs = []
    for i in order[:_SHOWN_PAIRS].tolist():
        place, position, name, is_near, distance = described[i]
        remark = f"dropped, distance {distance}" if is_near else "dropped, equal pixels"
        row = rows.read(place)
        info = row["image_info"][position]
        size = _fit(info["original_width"], info["original_height"])
        copy = _show_copy(evaluation[int(contamination.part[i])], int(contamination.image[i]), name, size)
        pairs.append(tag("article", tag("div", show_row(row, remark, position=position), copy, class_="strip")))
    yield tag("div", pairs, class_="groups")


def _fit(width: int, height: int) -> tuple[int, int]:
    """The shape of the training image, about that of the evaluation picture, whose copy is square."""
    scale = _COPY_PX / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _show_copy(images: EvaluationImages, image: int, name: str, size: tuple[int, int]) -> Html:
    caption = tag("figcaption", tag("b", "evaluation"), name)
    if images.thumbnail is None:
        return tag("figure", tag("p", "known by its hashes alone", class_="soft"), caption)
    levels = np.asarray(images.thumbnail[image])
    grey, color = levels[: GREY_SIDE**2], levels[GREY_SIDE**2 :].reshape(2, COLOR_SIDE, COLOR_SIDE)
    bands = [Image.fromarray(grey.reshape(GREY_SIDE, GREY_SIDE))]
    bands += [Image.fromarray(band).resize((GREY_SIDE, GREY_SIDE), Image.Resampling.BICUBIC) for band in color]
    buffer = io.BytesIO()
    Image.merge("YCbCr", bands).convert("RGB").save(buffer, "PNG")
    shown = tag("img", alt=name, src=data_uri(buffer.getvalue(), "PNG"), width=size[0], height=size[1])
    return tag("figure", shown, caption)
