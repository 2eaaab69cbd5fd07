from __future__ import annotations

from vlmtrain.wording import list_some, shorten


def test_some_of_many_are_listed() -> None:
    assert [list_some(range(count)) for count in (0, 1, 3, 4)] == ["", "0", "0, 1, 2", "0, 1, 2, …"]
    assert list_some(iter("abc"), most=1) == "a, …"


def test_texts_are_shortened_to_a_length() -> None:
    assert [shorten("abcd", length) for length in (5, 4, 3, 1)] == ["abcd", "abcd", "ab…", "…"]
