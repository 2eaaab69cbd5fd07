"""The files that make a folder of splits a Hugging Face set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmdata.manifest import SplitEntry
from vlmdata.schema import features_dict

__all__ = ["write_set_files", "write_split_files"]


def write_split_files(directory: Path, name: str, entry: SplitEntry) -> None:
    """Write what `datasets.load_from_disk` looks for in a split's folder; the fingerprint is that of the content."""
    content = "".join(shard.sha256 for shard in entry.shards)
    state: dict[str, Any] = {
        "_data_files": [{"filename": Path(shard.file).name} for shard in entry.shards],
        "_fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": name,
    }
    info = {"citation": "", "description": "", "features": features_dict(), "homepage": "", "license": ""}
    _write_json(directory / "state.json", state)
    _write_json(directory / "dataset_info.json", info)


def write_set_files(folder: Path, splits: Mapping[str, SplitEntry]) -> None:
    """Write dataset_dict.json for `load_from_disk`, and the card README.md for `load_dataset` and the hub."""
    _write_json(folder / "dataset_dict.json", {"splits": list(splits)})
    # load_dataset refuses a split without rows, so the card does not name one
    full = [name for name, entry in splits.items() if entry.rows]
    files = "\n".join(f"  - split: {name}\n    path: {name}/data-*.arrow" for name in full)
    table = "\n".join(f"| {name} | {entry.rows} | {len(entry.shards)} |" for name, entry in splits.items())
    (folder / "README.md").write_text(
        f"""---
configs:
- config_name: default
  data_files:
{files}
---
# Image and text rows for vision-language fine-tuning

Built by vlmdata; `manifest.json` says from what and how, `rejected.jsonl` which rows were left out and why.

| split | rows | shards |
|---|---|---|
{table}

Open it with `datasets.load_from_disk`, `datasets.load_dataset`, or `vlmdata.open_folder`.
""",
        encoding="utf-8",
    )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
