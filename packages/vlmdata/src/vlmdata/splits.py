"""Which split a row belongs to: whole components of connected rows, in an order that the seed shuffles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vlmdata.dedup import ImageLinks, Signatures

__all__ = ["assign_splits", "connect_rows"]

_Int64s = npt.NDArray[np.int64]
_UInt64s = npt.NDArray[np.uint64]


def assign_splits(
    signatures: Signatures,
    links: ImageLinks,
    group: _UInt64s,
    is_kept: npt.NDArray[np.bool_],
    fractions: Mapping[str, float],
    seed: int,
) -> _Int64s:
    """Set whole components aside for each split, and leave the rest to train.

    Components come in an order made from the seed and the content of their images (or texts) alone, so that rows that
    are added to a set hardly move the others. Each one goes to the first split that still has room for all of its kept
    rows; none is ever cut. The last one of a small set stays in train, which is never left without rows.

    Args:
        signatures: R rows, also those that are dropped as duplicates: they connect what they are like.
        links: equal and nearly equal images.
        group: (R,) equal numbers belong together, 0 belongs to no group.
        is_kept: (R,) rows that will be written.
        fractions: the share of the kept rows that each split but train should get.
        seed: another one gives another order.

    Returns:
        (R,) 0 for train, 1 for the first of `fractions`, and so on.
    """
    component = connect_rows(signatures, links, group)
    count = int(component.max()) + 1 if len(component) else 0
    rows_in = np.bincount(component[is_kept], minlength=count)
    order = np.argsort(_mix(_component_keys(signatures, component, count), seed), kind="stable")
    kept = int(is_kept.sum())
    room = [max(1, round(part * kept)) for part in fractions.values()]
    split_of = np.zeros(count, np.int64)
    in_train = kept
    for each in order.tolist():
        rows = int(rows_in[each])
        place = next((i for i, left in enumerate(room) if rows <= left), None)
        if rows and place is not None and rows < in_train:
            split_of[each] = place + 1
            room[place] -= rows
            in_train -= rows
            if not any(room):
                break
    return split_of[component]


def connect_rows(signatures: Signatures, links: ImageLinks, group: _UInt64s) -> _Int64s:
    """Return for each row the number of its component, counted from 0.

    Rows are connected by an image with equal pixels, by nearly equal images, by an equal group, and, where they have no
    image, by an equal text.
    """
    rows, images = len(signatures.text_hash), len(signatures.pixel_hash)
    counts = np.diff(signatures.row_offsets)
    owner = np.repeat(np.arange(rows), counts)
    # nodes: the rows, then the images
    edges = [np.stack([owner, rows + signatures.row_images], axis=1), links.edges() + rows]
    grouped = np.flatnonzero(group)
    edges.append(_chain_equal(group[grouped], grouped))
    wordy = np.flatnonzero(counts == 0)
    edges.append(_chain_equal(_as_keys(signatures.text_hash[wordy]), wordy))
    label = _connected_components(rows + images, np.concatenate(edges))
    return np.unique(label[:rows], return_inverse=True)[1].astype(np.int64).reshape(rows)


def _chain_equal(keys: _UInt64s, nodes: _Int64s) -> _Int64s:
    """Return edges that connect the nodes with equal keys, each to the next."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    ordered = nodes[order]
    return np.stack([ordered[:-1][same], ordered[1:][same]], axis=1)


def _connected_components(count: int, edges: _Int64s) -> _Int64s:
    """Return the smallest node of each node's component: roots are hooked to smaller ones until nothing moves."""
    label = np.arange(count)
    while True:
        first, second = label[edges[:, 0]], label[edges[:, 1]]
        apart = first != second
        if not apart.any():
            return label
        edges = edges[apart]
        np.minimum.at(label, np.maximum(first, second)[apart], np.minimum(first, second)[apart])
        while not np.array_equal(shorter := label[label], label):
            label = shorter


def _as_keys(hashes: npt.NDArray[np.uint8]) -> _UInt64s:
    """Return the first 8 bytes of each hash as a number."""
    return np.ascontiguousarray(hashes[:, :8]).view(np.uint64).reshape(len(hashes))


def _component_keys(signatures: Signatures, component: _Int64s, count: int) -> _UInt64s:
    """Return a number for each component that depends on its content: the smallest hash of its images and texts."""
    keys = np.full(count, np.iinfo(np.uint64).max, np.uint64)
    counts = np.diff(signatures.row_offsets)
    np.minimum.at(keys, np.repeat(component, counts), _as_keys(signatures.pixel_hash)[signatures.row_images])
    wordy = counts == 0
    np.minimum.at(keys, component[wordy], _as_keys(signatures.text_hash[wordy]))
    return keys


def _mix(keys: _UInt64s, seed: int) -> _UInt64s:
    """Shuffle 64-bit numbers by a seed: SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):
        mixed = keys + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
