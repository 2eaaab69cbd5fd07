"""Images of samples, in order; those that come over the network are fetched some rows ahead, by several threads."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from vlmdata.sample import ImageRef, Problem, Sample
from vlmdata.sources.image_bytes import ImageLoader, LoadedImage

__all__ = ["load_images"]

_THREADS = 16
_ROWS_AHEAD = 32
# Rows about one picture tend to stand together, so a download is kept for the next rows.
_REMEMBERED_DOWNLOADS = 64

_Outcome: TypeAlias = LoadedImage | Problem


def load_images(
    samples: Iterable[tuple[int, Sample]], loader: ImageLoader
) -> Iterator[tuple[int, Sample, list[_Outcome]]]:
    """Yield each sample with the bytes of its images, or with the reason for each that cannot be had."""
    downloads: OrderedDict[str, Future[_Outcome]] = OrderedDict()
    waiting: deque[tuple[int, Sample, list[Future[_Outcome] | ImageRef]]] = deque()

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="download") as threads:

        def start(reference: ImageRef) -> Future[_Outcome] | ImageRef:
            url = reference.location
            if url is None or not loader.has_to_wait(reference):
                return reference
            if url not in downloads:
                downloads[url] = threads.submit(loader.load, reference)
                if len(downloads) > _REMEMBERED_DOWNLOADS:
                    downloads.popitem(last=False)
            return downloads[url]

        def finish(item: Future[_Outcome] | ImageRef) -> _Outcome:
            return item.result() if isinstance(item, Future) else loader.load(item)

        for at, sample in samples:
            waiting.append((at, sample, [start(reference) for reference in sample.images]))
            # rows without downloads have nothing to wait for
            while waiting and (len(waiting) > _ROWS_AHEAD or not _has_download(waiting[0][2])):
                first_at, first, items = waiting.popleft()
                yield first_at, first, [finish(item) for item in items]
        for last_at, last, items in waiting:
            yield last_at, last, [finish(item) for item in items]


def _has_download(items: list[Future[_Outcome] | ImageRef]) -> bool:
    return any(isinstance(item, Future) for item in items)
