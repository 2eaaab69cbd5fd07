from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.errors import DataError
from vlmdata.sample import Problem
from vlmdata.sources.csv_rows import read_csv, tell_dialect

LIMIT = 1 << 20


def read(path: Path, encoding: str = "utf-8", limit: int = LIMIT) -> list:
    found = list(read_csv(path, encoding, limit))
    assert [index for index, _ in found] == list(range(len(found)))
    return [row for _, row in found]


def reasons(rows: list) -> list:
    return [row.reason if isinstance(row, Problem) else row for row in rows]


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)] * 2), max_size=6))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_as_the_csv_module_wrote_them(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("image", "text"), *rows])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(text.getvalue().encode())
    assert read(path) == [{"image": image, "text": caption} for image, caption in rows]


@pytest.mark.parametrize(
    ("name", "content", "dialect"),
    [
        ("a.csv", b"image,text\r\nx,y\r\n", (",", "utf-8")),
        ("a.csv", "image,text\nx,y\n".encode("utf-8-sig"), (",", "utf-8-sig")),
        ("a.csv", "image,text\nx,y\n".encode("utf-16"), (",", "utf-16")),
        ("a.csv", b"image;text\nx;y\n", (";", "utf-8")),
        ("a.tsv", b"image\ttext\nx\ty", ("\t", "utf-8")),
        ("a.tsv", b"image\ttext, long\nx\ty", ("\t", "utf-8")),
    ],
)
def test_dialects_of_spreadsheets(tmp_path: Path, name: str, content: bytes, dialect: tuple) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert tell_dialect(path, "utf-8") == dialect
    assert [list(row.values()) for row in read(path)] == [["x", "y"]]


def test_defects_cost_their_own_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b"image,text\na.jpg,fine\nb.jpg,a cat, a dog\nc.jpg\n\nd.jpg,caf\xe9\ne.jpg,"
        + b"x" * 5000
        + b'\nf.jpg,"two\nlines"\n'
    )
    found = read(path, limit=2000)
    assert reasons(found) == [
        {"image": "a.jpg", "text": "fine"},
        "ragged_row",
        "ragged_row",
        "bad_encoding",
        "line_too_long",
        {"image": "f.jpg", "text": "two\nlines"},
    ]
    assert "3 values for 2 columns (a comma inside a text needs quotes" in found[1].detail
    assert "--encoding" in found[3].detail
    assert read(path, encoding="latin-1")[3] == {"image": "d.jpg", "text": "café"}


def test_headers_must_name_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(DataError, match="columns with the same name: 'a'"):
        read(path)
    path.write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        read(path)
