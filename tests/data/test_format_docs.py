"""The examples of docs/formats.md are what it says they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from vlmdata.config import ColumnConfig, InputConfig
from vlmdata.formats import convert_row, plan_reading
from vlmdata.sample import Sample
from vlmdata.sources import open_sources

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### (\w+)\n.*?^```(?:json|coco)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))


def test_every_format_is_in_the_table_and_has_an_example() -> None:
    names = set(get_args(get_type_hints(InputConfig)["format"])) - {"auto"}
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == names == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_detected_and_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "pets.jsonl"
    path.write_text(EXAMPLES[name])
    if name == "llamafactory":
        entry = re.search(r"With `(.*?)` in", TEXT, re.DOTALL)
        assert entry is not None
        (tmp_path / "dataset_info.json").write_text(json.dumps(json.loads(entry[1])))
    (source,) = open_sources([str(path)], InputConfig())
    rows = [row for _, row in source.read()]
    assert len(rows) == 2
    reading = plan_reading(rows, InputConfig(), ColumnConfig(), None, description=source.description)
    assert reading.format == name
    for row in rows:
        assert isinstance(convert_row(row, 0, "pets", reading), Sample)
