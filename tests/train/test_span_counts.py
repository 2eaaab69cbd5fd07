"""The fast count of answers against the reference, on random token ids that are full of markers."""

from __future__ import annotations

import random

import pytest

from vlmtrain.masks import MaskRules, mask_labels, supervised_spans, unterminated_spans
from vlmtrain.span_counts import count_spans

RULES = {
    "chatml": MaskRules(
        response_ids=(1, 2, 3),
        instruction_ids=(1, 4, 3),
        stop_ids=frozenset({5}),
        turn_ids=(1,),
        never_ids=frozenset({0, 6}),
        bos_id=None,
    ),
    "brackets": MaskRules(
        response_ids=(2,),
        instruction_ids=(1,),
        stop_ids=frozenset({5}),
        turn_ids=(),
        never_ids=frozenset({0}),
        bos_id=7,
    ),
    "no_stop": MaskRules(
        response_ids=(2, 2),
        instruction_ids=(1, 2),
        stop_ids=frozenset(),
        turn_ids=(),
        never_ids=frozenset({5}),
        bos_id=7,
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_counts_are_those_of_the_reference(name: str) -> None:
    rules, rng = RULES[name], random.Random(name)
    rows = [rng.choices(range(10), k=rng.randint(0, 30)) for _ in range(3000)]
    for last_turn_only in (False, True):
        counts = count_spans(rows, rules, [5, 8], last_turn_only=last_turn_only)
        labels = [mask_labels(row, rules, last_turn_only=last_turn_only) for row in rows]
        assert counts.supervised.tolist() == [sum(each >= 0 for each in row) for row in labels]
        assert counts.spans.tolist() == [len(supervised_spans(row, rules)) for row in rows]
        assert counts.unterminated.tolist() == [unterminated_spans(row, rules, [5, 8]) for row in rows]
    assert counts.spans.max() > 1


def test_no_rows_and_empty_rows_count_nothing() -> None:
    assert count_spans([], RULES["chatml"], [5]).spans.tolist() == []
    assert count_spans([[], []], RULES["chatml"], [5]).spans.tolist() == [0, 0]
