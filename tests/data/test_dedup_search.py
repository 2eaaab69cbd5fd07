"""The search within a Hamming distance against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.dedup import code_parts, search
from vlmdata.dedup.search import Neighbours, neighbours_within
from vlmdata.dedup.search_plan import choose_plan

FAIR_BITS = np.ones(256)


def brute_force(codes: np.ndarray, distance: int) -> dict[tuple[int, int], int]:
    bits = np.unpackbits(codes, axis=1).astype(np.int32)
    apart = bits @ (1 - bits).T + (1 - bits) @ bits.T
    return {
        (i, j): int(apart[i, j]) for i in range(len(codes)) for j in range(i + 1, len(codes)) if apart[i, j] <= distance
    }


def as_dict(found: Neighbours) -> dict[tuple[int, int], int]:
    return {(i, j): d for (i, j), d in zip(found.pairs.tolist(), found.distance.tolist(), strict=True)}


def plant(rng: np.random.Generator, count: int, planted: int, distance: int) -> np.ndarray:
    """Random codes, some of them neighbours of others, at every distance up to one beyond the wanted one."""
    bits = rng.integers(0, 2, (count, 256), dtype=np.uint8)
    places = rng.permutation(count)
    for source, copy in zip(places[:planted], places[planted : 2 * planted], strict=True):
        bits[copy] = bits[source]
        bits[copy, rng.choice(256, rng.integers(0, distance + 2), replace=False)] ^= 1
    return np.packbits(bits, axis=1)


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 7, 8, 15, 16, 20, 31, 40, 63])
def test_every_plan_finds_what_brute_force_finds(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = plant(np.random.default_rng(distance), 400, 150, distance)
    wanted = brute_force(codes, distance)
    assert len(wanted) >= 50
    plans = set()
    # A pretended number of codes makes the planner choose for that many.
    for pretended in (2, 400, 10**4, 10**5, 10**6, 10**7, 10**9):
        plan = choose_plan(pretended, distance, FAIR_BITS)
        plans.add((plan.radii, plan.chunks_equal))
        monkeypatch.setattr(search, "choose_plan", lambda *_, plan=plan: plan)
        assert as_dict(neighbours_within(codes, distance)) == wanted
        across = {pair: d for pair, d in wanted.items() if pair[0] < 150 <= pair[1]}
        assert as_dict(neighbours_within(codes, distance, between=150)) == across
        assert across
    assert len(plans) >= 2 or distance > 60


@pytest.mark.parametrize(("distance", "pretended"), [(7, 10**6), (15, 10**6), (15, 10**7), (31, 10**6)])
def test_many_small_blocks_find_the_same(distance: int, pretended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = plant(np.random.default_rng(1), 700, 200, distance)
    codes[600:] = codes[0]  # equal codes, which no block may part
    plan = choose_plan(pretended, distance, FAIR_BITS)
    monkeypatch.setattr(search, "choose_plan", lambda *_: plan)
    monkeypatch.setattr(search, "_BATCH_PAIRS", 50)
    monkeypatch.setattr(code_parts, "_BLOCK_CODES", 64)
    monkeypatch.setattr(code_parts, "_GATHERED_CODES", 48)
    assert as_dict(neighbours_within(codes, distance)) == brute_force(codes, distance)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_clustered_codes(data: st.DataObject) -> None:
    """Codes that agree in most bits, in few bits, or altogether: all that random codes are not."""
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    share = data.draw(st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5]))
    bits = (rng.random((data.draw(st.integers(0, 60)), 256)) < share).astype(np.uint8) ^ rng.integers(
        0, 2, 256, dtype=np.uint8
    )
    codes = np.packbits(bits, axis=1).reshape(-1, 32)
    distance = data.draw(st.sampled_from([0, 4, 15, 31, 48]))
    plan = choose_plan(data.draw(st.sampled_from([10, 10**5, 10**7])), distance, FAIR_BITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "choose_plan", lambda *_: plan)
        assert as_dict(neighbours_within(codes, distance)) == brute_force(codes, distance)


def test_a_picture_and_its_negative_are_256_apart() -> None:
    code = np.random.default_rng(0).integers(0, 256, (1, 32), dtype=np.uint8)
    found = neighbours_within(np.concatenate([code, ~code, code]), 31)
    assert as_dict(found) == {(0, 2): 0}


def test_result_does_not_depend_on_threads() -> None:
    codes = plant(np.random.default_rng(5), 6000, 900, 31)
    one, many = neighbours_within(codes, 31, threads=1), neighbours_within(codes, 31, threads=4)
    assert (one.pairs == many.pairs).all()
    assert (np.diff(one.pairs[:, 0]) >= 0).all()
    assert len(one.pairs) >= 800


def test_no_codes() -> None:
    found = neighbours_within(np.empty((0, 32), np.uint8), 31)
    assert (found.pairs.shape, found.distance.shape) == ((0, 2), (0,))


@pytest.mark.parametrize("codes", [np.zeros((3, 16), np.uint8), np.zeros((3, 32), np.int64), np.zeros(32, np.uint8)])
def test_other_shapes_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        neighbours_within(codes, 3)
