"""The second signal: whether two pictures with nearly the same perceptual hash are nearly the same.

Small copies of the two are compared by what one cannot explain of the other. Each is predicted from the other by least
squares on its levels (a change of brightness or contrast), its neighbours' means (blur, sharpening, another size) and
its slopes (a shift of less than a pixel). What is left of a copied picture is a faint noise; what is left of another
page with the same layout stands out where its words or figures differ.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

__all__ = ["color_differences", "unexplained_contrast", "verify_pairs"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_GREY_SIDE, _COLOR_SIDE = 64, 8
_GREY_BYTES, _COLOR_BYTES = _GREY_SIDE**2, _COLOR_SIDE**2
# Edges are where watermarks and page numbers are, and scans and crops differ: a tenth on each side is left out.
_MARGIN = 6
_WINDOW = 3
# The contrast of a picture is that of its strongest windows but for a hundredth, at least this many grey levels.
_CONTRAST_RANK = round(0.99 * (_GREY_SIDE - 2 * _MARGIN - _WINDOW + 1) ** 2)
_LEAST_CONTRAST = 4.0
_PAIRS_AT_ONCE = 64

# Chosen with benchmarks/near_duplicates.py: what the hashes leave open, the copies must settle. Up to the first
# distance the first share of contrast may stay unexplained, from the second distance on the second share, between
# them a share on the line between the two.
_SURE_DISTANCE, _SURE_SHARE = 12.0, 0.34
_WIDE_DISTANCE, _WIDE_SHARE = 24.0, 0.2
_MAX_COLOR_DIFFERENCE = 24.0
_GREY_CHROMA = 6.0


def verify_pairs(
    thumbnail: Bytes,
    pairs: npt.NDArray[np.int64],
    distance: npt.NDArray[np.uint16],
    *,
    others: Bytes | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Which of the candidate pairs show the same picture.

    Args:
        thumbnail: (M, 4224) uint8: 64x64 luma, 8x8 Cb and 8x8 Cr of each image.
        pairs: (K, 2) int64 indices of images.
        distance: (K,) differing bits of their hashes.
        others: (N, 4224) uint8, which the second of each pair is one of; None where both are of `thumbnail`.
        threads: How many groups of pairs are worked on at once; by default one for each processor.

    Returns:
        (K,) bool.
    """
    verdicts = np.zeros(len(pairs), np.bool_)
    seconds = thumbnail if others is None else others
    allowed = np.interp(distance, [_SURE_DISTANCE, _WIDE_DISTANCE], [_SURE_SHARE, _WIDE_SHARE])

    def verify(start: int) -> None:
        some = slice(start, start + _PAIRS_AT_ONCE)
        first, second = thumbnail[pairs[some, 0]], seconds[pairs[some, 1]]
        alike = color_differences(first, second) <= _MAX_COLOR_DIFFERENCE
        verdicts[some] = alike & (unexplained_contrast(first, second) <= allowed[some])

    starts = range(0, len(pairs), _PAIRS_AT_ONCE)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        progress = tqdm(pool.map(verify, starts), "verifying near-duplicates", len(starts), disable=None, delay=2)
        for _ in progress:
            pass
    return verdicts


def unexplained_contrast(first: Bytes, second: Bytes) -> Floats:
    """How much of one picture the other cannot explain.

    Args:
        first: (K, 4224) uint8 thumbnails.
        second: (K, 4224) uint8 thumbnails.

    Returns:
        (K,) float32, the contrast that is left in the worst window of 3x3 cells over the contrast of the picture; the
        smaller of both directions, since a sharp picture explains a blurred one better than the other way round.
    """
    a = first[:, :_GREY_BYTES].reshape(-1, _GREY_SIDE, _GREY_SIDE).astype(np.float32)
    b = second[:, :_GREY_BYTES].reshape(-1, _GREY_SIDE, _GREY_SIDE).astype(np.float32)
    return np.minimum(_unexplained(a, b), _unexplained(b, a))


def _unexplained(source: Floats, target: Floats) -> Floats:
    terms = _prediction_terms(source)
    inner = target[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    wanted = inner.reshape(len(inner), 1, -1)
    # A trace of ridge keeps pictures solvable whose terms depend on each other.
    normal = (terms @ terms.transpose(0, 2, 1)).astype(np.float64) + 1e-2 * np.eye(terms.shape[1])
    aim = (terms @ wanted.transpose(0, 2, 1)).astype(np.float64)
    weights = np.linalg.solve(normal, aim).astype(np.float32)
    residual = (wanted - weights.transpose(0, 2, 1) @ terms).reshape(inner.shape)
    left_over = _window_contrast(residual).max(axis=1)
    contrast = np.partition(_window_contrast(inner), _CONTRAST_RANK, axis=1)[:, _CONTRAST_RANK]
    return np.asarray(left_over / np.maximum(contrast, _LEAST_CONTRAST))


def _prediction_terms(levels: Floats) -> Floats:
    """(K, 7, cells) terms of the prediction, for the cells within the margin."""
    around = levels[:, _MARGIN - 1 : 1 - _MARGIN, _MARGIN - 1 : 1 - _MARGIN] / 128 - 1
    centre = around[:, 1:-1, 1:-1]
    left, right, above, below = around[:, 1:-1, :-2], around[:, 1:-1, 2:], around[:, :-2, 1:-1], around[:, 2:, 1:-1]
    corners = around[:, :-2, :-2] + around[:, :-2, 2:] + around[:, 2:, :-2] + around[:, 2:, 2:]
    terms = np.empty((len(levels), 7, *centre.shape[1:]), np.float32)
    terms[:, 0] = 1
    terms[:, 1] = centre
    terms[:, 2] = centre**2
    terms[:, 3] = left + right + above + below - 4 * centre
    terms[:, 4] = corners - 4 * centre
    terms[:, 5] = 2 * (right - left)
    terms[:, 6] = 2 * (below - above)
    return terms.reshape(len(levels), 7, -1)


def _window_contrast(cells: Floats) -> Floats:
    """(K, windows) root mean square of every window of 3x3 cells, rows and columns of the page freed of their means.

    Bands and rules across the page come and go when bright paper clips to white; they are not what a page says.
    """
    cells = cells - cells.mean(axis=2, keepdims=True)
    cells -= cells.mean(axis=1, keepdims=True)
    cells *= cells
    columns = cells[:, :-2] + cells[:, 1:-1] + cells[:, 2:]
    windows = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    return np.asarray(np.sqrt(windows.reshape(len(cells), -1) / _WINDOW**2))


def color_differences(first: Bytes, second: Bytes) -> Floats:
    """The largest difference of chroma between cells of two pictures, in levels; 0 where one of them is grey.

    Args:
        first: (K, 4224) uint8 thumbnails.
        second: (K, 4224) uint8 thumbnails.
    """
    a = first[:, _GREY_BYTES:].astype(np.float32).reshape(-1, 2, _COLOR_BYTES) - 128
    b = second[:, _GREY_BYTES:].astype(np.float32).reshape(-1, 2, _COLOR_BYTES) - 128
    apart = np.sqrt(((a - b) ** 2).sum(axis=1)).max(axis=1)
    is_grey = np.minimum(np.abs(a).max(axis=(1, 2)), np.abs(b).max(axis=(1, 2))) <= _GREY_CHROMA
    return np.where(is_grey, np.float32(0), apart)
