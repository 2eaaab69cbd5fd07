"""Checksums of shards: compared once, remembered, and asked for again when a file changed."""

from __future__ import annotations

import os

import pytest

from made_rows import make_row
from vlmdata.errors import DataError
from vlmdata.shards import open_folder
from vlmtrain import shard_checks
from vlmtrain.shard_checks import check_shards


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_shards_are_hashed_once_and_again_when_they_change(build) -> None:
    folder = build([make_row(0)], val=[make_row(1)])
    assert check_shards(open_folder(folder)).startswith("shards: 2 of 2 hashed")
    assert check_shards(open_folder(folder)).startswith("shards: 0 of 2 hashed, 2 known from before")
    shard = next((folder / "train").glob("*.arrow"))
    os.utime(shard)
    assert check_shards(open_folder(folder)).startswith("shards: 1 of 2 hashed")
    shard_checks.memory_file().write_text("no JSON")
    assert check_shards(open_folder(folder)).startswith("shards: 2 of 2 hashed")


def test_a_changed_byte_is_found_though_the_size_is_the_same(build) -> None:
    folder = build([make_row(0)])
    check_shards(open_folder(folder))
    shard = next((folder / "train").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 1 shards are not those that were built \(train/data-00000"):
            check_shards(open_folder(folder))


def test_a_memory_that_cannot_be_written_is_said(build, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    words = check_shards(open_folder(build([make_row(0)])))
    assert "cannot be written" in words
    assert words.endswith("they will be hashed again")
