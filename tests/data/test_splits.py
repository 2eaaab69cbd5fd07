from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.dedup import ImageLinks, Signatures, link_images
from vlmdata.splits import assign_splits, connect_rows


def make_signatures(pictures: list[list[int]], texts: list[int]) -> Signatures:
    """Rows that show pictures by number; each showing is an image of its own, equal numbers have equal pixels."""
    shown = [picture for row in pictures for picture in row]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (max([*shown, 0]) + 1, 32), np.uint8)
    count = len(shown)
    return Signatures(
        row_offsets=np.cumsum([0, *map(len, pictures)]).astype(np.int64),
        row_images=np.arange(count, dtype=np.int64),
        text_hash=np.array([[text] * 16 for text in texts], np.uint8).reshape(len(texts), 16),
        text_length=np.ones(len(texts), np.int64),
        is_protected=np.zeros(len(texts), np.bool_),
        pixel_hash=codes[shown, :16].reshape(count, 16) if count else np.empty((0, 16), np.uint8),
        phash=codes[shown].reshape(count, 32) if count else np.empty((0, 32), np.uint8),
        thumbnail=np.zeros((count, 4), np.uint8),
        is_flat=np.zeros(count, np.bool_),
        is_salvaged=np.zeros(count, np.bool_),
        original_pixels=np.ones(count, np.int64),
    )


def components_by_hand(pictures: list[list[int]], texts: list[int], groups: list[int]) -> list[frozenset[int]]:
    """Grow sets of rows until none can be joined with another."""
    sets = [
        (
            {i},
            {("p", p) for p in row}
            | ({("g", groups[i])} if groups[i] else set())
            | (set() if row else {("t", texts[i])}),
        )
        for i, row in enumerate(pictures)
    ]
    joined = True
    while joined:
        joined = False
        for a in range(len(sets)):
            for b in range(a + 1, len(sets)):
                if sets[a][1] & sets[b][1]:
                    sets[a] = (sets[a][0] | sets[b][0], sets[a][1] | sets[b][1])
                    del sets[b]
                    joined = True
                    break
            if joined:
                break
    return [frozenset(rows) for rows, _ in sets]


row_lists = st.lists(
    st.tuples(st.lists(st.integers(0, 12), max_size=3), st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=14
)


@given(row_lists)
@settings(max_examples=150, deadline=None)
def test_components_are_those_found_by_hand(rows: list[tuple[list[int], int, int]]) -> None:
    pictures, texts, groups = (list(each) for each in zip(*rows, strict=True))
    signatures = make_signatures(pictures, texts)
    found = connect_rows(signatures, link_images(signatures, None), np.array(groups, np.uint64))
    by_component: dict[int, set[int]] = {}
    for row, component in enumerate(found.tolist()):
        by_component.setdefault(component, set()).add(row)
    assert {frozenset(each) for each in by_component.values()} == set(components_by_hand(pictures, texts, groups))


def test_nearly_equal_images_connect() -> None:
    signatures = make_signatures([[0], [1], [2]], [1, 2, 3])
    links = ImageLinks(np.arange(3), np.array([[0, 2]]), np.array([5], np.uint16))
    assert connect_rows(signatures, links, np.zeros(3, np.uint64)).tolist() == [0, 1, 0]


def split(
    pictures: list[list[int]], *, val: float = 0.1, seed: int = 0, kept: np.ndarray | None = None, **fractions: float
) -> np.ndarray:
    signatures = make_signatures(pictures, [i % 256 for i in range(len(pictures))])
    is_kept = np.ones(len(pictures), np.bool_) if kept is None else kept
    return assign_splits(
        signatures,
        link_images(signatures, None),
        np.zeros(len(pictures), np.uint64),
        is_kept,
        {"val": val, **fractions},
        seed,
    )


def test_shares_are_met_and_seeds_differ() -> None:
    pictures = [[i] for i in range(1000)]
    found = split(pictures, val=0.1, test=0.25)
    assert np.bincount(found).tolist() == [650, 100, 250]
    assert (split(pictures, val=0.1, test=0.25) == found).all()
    assert (split(pictures, val=0.1, test=0.25, seed=1) != found).mean() > 0.2


def test_connected_rows_stay_together() -> None:
    pictures = [[i // 10] for i in range(300)]
    found = split(pictures, val=0.3)
    assert all(len(set(found[i : i + 10].tolist())) == 1 for i in range(0, 300, 10))
    assert (found == 1).sum() == 90


def test_a_component_too_large_for_a_split_stays_in_train() -> None:
    pictures = [[0]] * 60 + [[i] for i in range(1, 41)]
    found = split(pictures, val=0.2)
    assert set(found[:60].tolist()) == {0}
    assert (found == 1).sum() == 20


def test_dropped_rows_connect_but_do_not_count() -> None:
    pictures = [[i - 1, i + 1] if i % 4 == 1 else [i] for i in range(200)]
    kept = np.array([i % 2 == 0 for i in range(200)])
    found = split(pictures, val=0.2, kept=kept)
    assert (found[kept] == 1).sum() == 20
    assert all(found[i] == found[i - 1] == found[i + 1] for i in range(1, 199, 4))


def test_rows_that_are_added_hardly_move_the_others() -> None:
    before = split([[i] for i in range(1000)])
    after = split([[i] for i in range(1050)])
    assert (before != after[:1000]).sum() <= 10


def test_small_sets_still_get_a_row_of_each() -> None:
    assert sorted(split([[i] for i in range(4)], val=0.1, test=0.1).tolist()) == [0, 0, 1, 2]


@pytest.mark.parametrize("rows", [0, 1])
def test_next_to_nothing(rows: int) -> None:
    assert len(split([[0]] * rows)) == rows


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_train_keeps_the_last_row_of_a_tiny_set(rows: int) -> None:
    found = split([[i] for i in range(rows)], val=0.1, test=0.1)
    assert (found == 0).sum() == 1
    assert sorted(found[found > 0].tolist()) == [1, 2][: rows - 1]
