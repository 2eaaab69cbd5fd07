"""Groups of duplicates side by side: the row that is kept, those dropped for it, and how far apart they are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np

from vlmdata.config import DedupConfig
from vlmdata.dedup import Duplicates
from vlmdata.figures import count_bins
from vlmdata.pages.html import Html, count_of, tag
from vlmdata.report.charts import draw_histogram
from vlmdata.report.staged_rows import StagedRows, show_row

__all__ = ["render_duplicates"]

_NEAR_GROUPS = 8
_EXACT_GROUPS = 4
_SHOWN_MEMBERS = 4


def render_duplicates(duplicates: Duplicates, config: DedupConfig, rows: StagedRows, seed: int) -> Iterator[Html]:
    """Yield how many duplicates there are, their distances, the widest groups and some exact ones.

    Args:
        duplicates: what was dropped.
        config: what counted as a duplicate.
        rows: for the images.
        seed: of the choice among exact groups.
    """
    if config.dedup == "none":
        yield tag("p", "Duplicates were not looked for (--dedup none).")
        return
    if not len(duplicates):
        yield tag("p", "No row is a duplicate of another.")
        return
    what = "the same image" if config.dedup_scope == "image" else "the same image and the same text"
    near = int(duplicates.is_near.sum())
    groups = len(np.unique(duplicates.kept))
    yield tag(
        "p",
        f"Rows with {what} as another row: {len(duplicates) - near:,} with equal pixels"
        + (f", {near:,} nearly the same" if config.dedup == "near" else "")
        + f"; dropped for {count_of(groups, 'kept row')}.",
    )
    if near:
        distances = Counter(duplicates.distance[duplicates.is_near].tolist())
        yield tag("h3", "Distance of the near-duplicates to the row that is kept")
        yield draw_histogram(count_bins(distances), f"differing bits of 256, at most {config.near_distance}")
    widest, exact = _choose_groups(duplicates, seed)
    for title, chosen in (("The widest groups", widest), ("Groups with equal pixels", exact)):
        if chosen:
            yield tag("h3", title)
            yield tag("div", [_render_group(duplicates, kept, rows) for kept in chosen], class_="groups")


def _choose_groups(duplicates: Duplicates, seed: int) -> tuple[list[int], list[int]]:
    """Kept rows: those with the most distant near-duplicates, and a random few of the others."""
    kept, group = np.unique(duplicates.kept, return_inverse=True)
    farthest = np.full(len(kept), -1, np.int64)
    np.maximum.at(farthest, group, np.where(duplicates.is_near, duplicates.distance.astype(np.int64), -1))
    order = np.lexsort((kept, -farthest))
    widest = [int(kept[i]) for i in order if farthest[i] >= 0][:_NEAR_GROUPS]
    exact = kept[farthest < 0].tolist()
    return widest, sorted(random.Random(seed).sample(exact, min(_EXACT_GROUPS, len(exact))))


def _render_group(duplicates: Duplicates, kept: int, rows: StagedRows) -> Html:
    members = np.flatnonzero(duplicates.kept == kept)
    members = members[np.argsort(-duplicates.distance[members].astype(np.int64), kind="stable")]
    figures = [show_row(rows.read(kept), "kept", kind="chosen")]
    for i in members[:_SHOWN_MEMBERS].tolist():
        is_near = bool(duplicates.is_near[i])
        distance = f"distance {int(duplicates.distance[i])}" if is_near else "equal pixels"
        figures.append(show_row(rows.read(int(duplicates.row[i])), f"dropped, {distance}"))
    more = len(members) - _SHOWN_MEMBERS
    rest = tag("p", f"and {more:,} more", class_="soft") if more > 0 else None
    return tag("article", tag("div", figures, class_="strip"), rest)
