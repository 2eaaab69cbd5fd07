"""Images that turn out to be files of several pages: the row shows all of them, in the place of the one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from vlmdata.sample import Part, Problem, Sample

__all__ = ["spread_pages"]


def spread_pages(sample: Sample, counts: Sequence[int]) -> Problem | None:
    """Put as many image parts in the place of each image part of a row as its file has pages.

    Boxes of the `objects` column keep their image; on a file of several pages they are on none of them for sure.

    Args:
        sample: the row; its messages and boxes are changed.
        counts: pages of each image, in order.

    Returns:
        What is wrong: a box on a file of several pages.
    """
    first = [0, *accumulate(counts)]
    if sample.objects is not None:
        for index in sample.objects.image_index:
            if counts[index] > 1:
                return Problem("bad_boxes", f"a box does not say on which of the {counts[index]} pages it lies")
        sample.objects.image_index = [first[index] for index in sample.objects.image_index]
    waiting = iter(counts)
    for message in sample.messages:
        message.content = [
            each
            for part in message.content
            for each in ([part] if part.type != "image" else [Part("image") for _ in range(next(waiting))])
        ]
    return None
