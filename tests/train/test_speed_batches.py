"""The arrangement of rows: every row once, alike on every machine, shuffled, and with little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtrain.speed.batches import BatchPlan, RowBatches

LENGTHS = np.random.default_rng(0).integers(100, 1300, 5000)

plans = st.builds(
    BatchPlan,
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300).map(np.array),
    rows=st.integers(1, 9),
    passes=st.integers(1, 5),
    processes=st.integers(1, 4),
    seed=st.integers(0, 99),
    by_length=st.booleans(),
    packed=st.booleans(),
    tokens=st.none() | st.integers(100, 2000),
)


@settings(max_examples=200, deadline=None)
@given(plans, st.integers(0, 3))
def test_every_row_is_seen_once_and_devices_have_equal_passes(plan: BatchPlan, epoch: int) -> None:
    passes = plan.arrange(epoch)
    shares = [list(RowBatches(plan, process)) for process in range(plan.processes)]
    for process in range(plan.processes):
        batches = RowBatches(plan, process)
        batches.set_epoch(epoch)
        assert list(batches) == passes[process :: plan.processes]
        assert len(batches) == len(passes) // plan.processes
    assert {len(share) for share in shares} == {len(shares[0])}
    # what is repeated so that the devices have equal passes stands at the end
    first_time = [rows for index, rows in enumerate(passes) if rows not in passes[:index]]
    assert passes[: len(first_time)] == first_time
    assert len(passes) - len(first_time) < plan.processes
    assert sorted(row for rows in first_time for row in rows) == list(range(len(plan.lengths)))
    assert passes == plan.arrange(epoch)
    if plan.tokens is None:
        assert max(len(rows) for rows in passes) <= plan.rows
        assert plan.steps == -(-len(shares[0]) // plan.passes)
    else:
        assert all(len(rows) == 1 or plan.cost(rows) <= plan.tokens for rows in passes)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    plan = BatchPlan(lengths=LENGTHS, rows=8, passes=1, by_length=True)
    other = BatchPlan(lengths=LENGTHS, rows=8, passes=1, by_length=True, seed=1)
    assert plan.arrange(0) != plan.arrange(1)
    assert plan.arrange(0) != other.arrange(0)


def test_rows_of_like_length_share_a_pass_and_stay_shuffled() -> None:
    plan = BatchPlan(lengths=LENGTHS, rows=8, passes=1, by_length=True)
    plain = BatchPlan(lengths=LENGTHS, rows=8, passes=1)
    assert plain.padding() > 0.3
    assert plan.padding() < 0.05
    assert BatchPlan(lengths=LENGTHS, rows=8, passes=1, packed=True).padding() == 0
    # no drift: neither from short to long nor from early to late rows
    firsts = [rows[0] for rows in plan.arrange(0)]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.1
    assert abs(np.corrcoef(np.arange(len(firsts)), LENGTHS[firsts])[0, 1]) < 0.1


def test_devices_work_on_like_lengths_at_the_same_time() -> None:
    plan = BatchPlan(lengths=LENGTHS, rows=4, passes=2, processes=4, by_length=True)
    passes = plan.arrange(0)
    costs = np.array([plan.cost(rows) for rows in passes[: len(passes) // 4 * 4]]).reshape(-1, 4)
    assert np.median(costs.max(axis=1) / costs.min(axis=1)) < 1.1


def test_token_budgets_are_filled() -> None:
    plan = BatchPlan(lengths=LENGTHS, rows=8, passes=1, packed=True, tokens=8000)
    costs = [plan.cost(rows) for rows in plan.arrange(0)]
    assert max(costs) <= 8000
    assert np.mean(costs[:-1]) > 7000


@pytest.mark.parametrize("packed", [True, False])
def test_the_heaviest_pass_is_found_beforehand(packed: bool) -> None:
    plan = BatchPlan(lengths=LENGTHS, rows=8, passes=1, by_length=not packed, packed=packed)
    heaviest = plan.heaviest(2)
    assert plan.cost(heaviest) == max(plan.cost(rows) for epoch in (0, 1) for rows in plan.arrange(epoch))
