from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from vlmdata.build_config import SECTIONS, BuildConfig, PlaceConfig
from vlmdata.config import InputConfig, OutputConfig, SplitConfig, parse_byte_size
from vlmdata.errors import ConfigError
from vlmdata.formats import FORMATS
from vlmdata.options import field_help, read_yaml


def test_every_option_has_a_help_text_and_a_name_of_its_own() -> None:
    names = [field.name for section in (PlaceConfig, *SECTIONS) for field in fields(section)]
    assert len(names) == len(set(names))
    for section in (PlaceConfig, *SECTIONS):
        assert set(field_help(section)) == {field.name for field in fields(section)}


def test_the_formats_offered_are_those_there_are() -> None:
    assert set(get_args(get_type_hints(InputConfig)["format"])) == {"auto", *(module.NAME for module in FORMATS)}


def test_flat_values_find_their_sections() -> None:
    config = BuildConfig.from_values(
        {"inputs": ["a.csv"], "out": "o", "max_side": 500, "split": "val=0.1", "keep": ("x", "y"), "dedup": "exact"}
    )
    assert config.images.max_side == 500
    assert config.split.fractions == {"val": 0.1}
    assert config.columns.keep == ("x", "y")
    assert config.dedup.dedup == "exact"
    assert config.out == Path("o")


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        BuildConfig.from_values({"min_side": 0, "split": "val=2", "workers": -1, "encoding": "klingon"})
    assert len(caught.value.problems) == 6
    assert "no input given" in caught.value.problems
    assert "no output folder given (--out)" in caught.value.problems


@pytest.mark.parametrize(
    "text",
    ["val", "val=x", "val=0", "val=1", "val=0.5,test=0.5", "train=0.5", "val=0.1,val=0.1", "a b=0.1", "=0.1", ","],
)
def test_splits_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="split"):
        SplitConfig(split=text)


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 500_000_000), ("1.5 GiB", 1610612736), ("4096", 4096), ("2kb", 2000), (" 1 b", 1)]
)
def test_byte_sizes(text: str, size: int) -> None:
    assert parse_byte_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "5 parsecs", "1e3", "0.1"])
def test_no_byte_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_byte_size(text)
    with pytest.raises(ConfigError, match="shard_size"):
        OutputConfig(shard_size=text)


def test_a_config_file_says_the_same_as_options(tmp_path: Path) -> None:
    path = tmp_path / "build.yaml"
    path.write_text("inputs: [a.csv]\nout: o\nmax-side: 500\nimage: [one, two]\nkeep: only\nsplit: val=0.1\n")
    values = read_yaml(path, (PlaceConfig, *SECTIONS))
    assert BuildConfig.from_values(values) == BuildConfig.from_values(
        {
            "inputs": ["a.csv"],
            "out": "o",
            "max_side": 500,
            "image": ("one", "two"),
            "keep": ("only",),
            "split": "val=0.1",
        }
    )


def test_what_decides_the_content() -> None:
    def content(**values: object) -> dict:
        return BuildConfig.from_values({"inputs": ["a.csv"], "out": "o", **values}).content_values()

    base = content()
    for same in ({"workers": 3}, {"overwrite": True}, {"max_reject_rate": 0.9}, {"out": "elsewhere"}):
        assert content(**same) == base
    for other in ({"seed": 1}, {"split": "val=0.1"}, {"shard_size": "1MB"}, {"max_side": 500}, {"inputs": ["b.csv"]}):
        assert content(**other) != base
