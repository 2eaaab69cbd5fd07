"""The option sections put together: all that a build needs to know, and which part of it decides what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vlmdata.config import ColumnConfig, DedupConfig, ImageConfig, InputConfig, OutputConfig, SplitConfig
from vlmdata.errors import ConfigError
from vlmdata.locations import open_location
from vlmdata.options import build_section, flatten
from vlmdata.text_config import TextConfig

__all__ = ["NOT_FOR_HASHES", "SECTIONS", "BuildConfig", "PlaceConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceConfig:
    """Where rows come from and where the built folder goes, as options and config files name it."""

    inputs: tuple[str, ...] = ()
    """Files, folders, URLs of them (s3://, gs://, hf://) or Hugging Face hub ids to read."""
    out: str | None = None
    """Folder to build, or its URL, such as s3://bucket/set."""


SECTIONS = (InputConfig, ColumnConfig, TextConfig, ImageConfig, DedupConfig, SplitConfig, OutputConfig)

# Options that say nothing about which images there are and what they become.
NOT_FOR_HASHES = frozenset(
    field.name
    for section in (ColumnConfig, TextConfig, DedupConfig, SplitConfig, OutputConfig)
    for field in fields(section)
    if field.name not in ("image", "workers")
) | {"format", "where", "source_split", "pages", "salvage_truncated", "jpeg_quality"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """Everything that a build needs to know, in sections whose fields share one flat namespace."""

    inputs: tuple[str, ...]
    out: Path
    input: InputConfig = field(default_factory=InputConfig)
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    texts: TextConfig = field(default_factory=TextConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        """Make sure there is something to read."""
        if not self.inputs:
            raise ConfigError("no input given")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> BuildConfig:
        """Make the config from flat values (`max_side=800`), as options and YAML files give them.

        Raises:
            ConfigError: with the problems of all sections at once.
        """
        problems: list[str] = []
        names = ("input", "columns", "texts", "images", "dedup", "split", "output")
        parts = {name: build_section(section, values, problems) for name, section in zip(names, SECTIONS, strict=True)}
        inputs = values.get("inputs") or ()
        if not inputs:
            problems.append("no input given")
        if values.get("out") is None:
            problems.append("no output folder given (--out)")
        if problems:
            raise ConfigError(problems)
        return cls(inputs=tuple(inputs), out=open_location(values["out"]), **parts)  # type: ignore[arg-type]  # none is None here

    def content_values(self) -> dict[str, Any]:
        """Return the flat values that decide what is in the folder: not where it lies, nor how it is computed."""
        values = flatten(self.input, self.columns, self.texts, self.images, self.dedup, self.split)
        return {"inputs": list(self.inputs), **values, "shard_size": self.output.shard_size}

    def stage_values(self) -> dict[str, Any]:
        """Return the flat values that decide what a single row becomes, before rows are compared."""
        return flatten(self.input, self.columns, self.texts, self.images) | {"group_by": self.split.group_by}
