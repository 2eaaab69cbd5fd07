from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.errors import DataError
from vlmdata.sample import Problem
from vlmdata.sources import json_rows
from vlmdata.sources.json_rows import read_json

LIMIT = 1 << 20

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
rows = st.lists(st.dictionaries(st.text(), values, max_size=5), max_size=8)


def read(path: Path, limit: int = LIMIT) -> list:
    return [row for _, row in read_json(path, limit)]


def write(tmp_path: Path, text: str | bytes, name: str = "rows.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@given(rows, st.sampled_from([None, 0, 2]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_arrays_are_cut_as_the_standard_library_reads_them(
    expected: list, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(expected, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    pieces = list(json_rows._split_array(io.BytesIO(text), LIMIT))
    assert [json.loads(piece) for piece in pieces] == expected


@given(rows, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_arrays_are_cut_alike_wherever_a_read_ends(expected: list, read_bytes: int) -> None:
    class Drip(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(read_bytes)

    pieces = list(json_rows._split_array(Drip(json.dumps(expected).encode()), LIMIT))
    assert [json.loads(piece) for piece in pieces] == expected


def test_lines_and_arrays_give_the_same_rows(tmp_path: Path) -> None:
    expected = [{"a": 1}, {"b": "x\ny"}, {"c": [1, {"d": "]"}]}]
    assert read(write(tmp_path, json.dumps(expected))) == expected
    lines = "\n\n".join(map(json.dumps, expected)) + "\n"
    assert read(write(tmp_path, lines)) == expected
    assert read(write(tmp_path, "\ufeff" + lines)) == expected
    assert read(write(tmp_path, "\ufeff" + json.dumps(expected))) == expected
    assert read(write(tmp_path, gzip.compress(lines.encode()), "rows.jsonl.gz")) == expected


def test_a_broken_line_costs_one_row(tmp_path: Path) -> None:
    text = b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"a": NaN}\n' + b"[" * 500 + b"]" * 500 + b"\n" + b'{"a": 2}'
    found = read(write(tmp_path, text, "rows.jsonl"))
    assert [row.reason if isinstance(row, Problem) else row["a"] == row["a"] and row["a"] for row in found] == [
        1,
        "json_broken",
        "not_an_object",
        "bad_encoding",
        False,
        "json_too_deep",
        2,
    ]


def test_a_broken_element_costs_one_row(tmp_path: Path) -> None:
    found = read(write(tmp_path, b'[{"a": 1}, {"a": tru}, 7, {"a": NaN}, , {"a": "\xff"}, {"a": 2}]'))
    assert [row.reason if isinstance(row, Problem) else "row" for row in found] == [
        "row",
        "json_broken",
        "not_an_object",
        "row",
        "json_broken",
        "bad_encoding",
        "row",
    ]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a"', '[{"a": 1}, {"a": "half', '[{"a": 1},', '[{"a": 1}'])
def test_a_file_that_ends_too_early_loses_its_last_row(tmp_path: Path, text: str) -> None:
    found = read(write(tmp_path, text))
    assert isinstance(found[-1], Problem)
    assert "ends inside the array" in found[-1].detail
    assert found[:-1] in ([{"a": 1}], [])


@pytest.mark.parametrize("text", ["[]", " [ ] ", '[{"a": 1}] trailing'])
def test_the_end_of_an_array(tmp_path: Path, text: str) -> None:
    found = read(write(tmp_path, text))
    assert [row for row in found if not isinstance(row, Problem)] == json.loads(text.replace("trailing", ""))
    assert any(isinstance(row, Problem) for row in found) == ("trailing" in text)


@pytest.mark.parametrize("form", ["[{}, {}, {}]", "{}\n{}\n{}\n"])
def test_rows_that_are_too_long_are_not_held(tmp_path: Path, form: str) -> None:
    long = '{"a": "' + 'x\\\\\\"' * 8_000_000 + '"}'
    path = write(tmp_path, form.format('{"a": 1}', long, '{"a": 2}'))
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [row.reason if isinstance(row, Problem) else row for row in found] == [{"a": 1}, "line_too_long", {"a": 2}]
    assert peak < 12 << 20


def test_memory_does_not_grow_with_the_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with path.open("w") as file:
        file.write("[")
        file.write(",".join(json.dumps({"a": i, "b": "x" * 1000}) for i in range(30_000)))
        file.write("]")
    tracemalloc.start()
    count = sum(1 for _ in read_json(path, LIMIT))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 8 << 20


def test_one_object_is_no_set_of_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds one JSON object"):
        read(write(tmp_path, '{\n "a": 1\n}'))
    with pytest.raises(DataError, match="empty"):
        read(write(tmp_path, " \n"))
