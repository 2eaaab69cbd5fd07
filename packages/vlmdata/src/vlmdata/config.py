"""The options of a build, as frozen dataclasses that check themselves; their attribute docstrings are the help texts.

Nothing heavy is imported here: `vlmdata --help` reads this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlmdata.errors import ConfigError
from vlmdata.image_config import ImageConfig

__all__ = [
    "ColumnConfig",
    "DedupConfig",
    "ImageConfig",
    "InputConfig",
    "OutputConfig",
    "SplitConfig",
    "parse_byte_size",
]

_BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def parse_byte_size(text: str) -> int:
    """Return the bytes that `500MB`, `1.5 GiB` or `4096` stand for.

    Raises:
        ValueError: it is not a positive size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _BYTE_UNITS or not (size := int(float(match[1]) * _BYTE_UNITS[match[2]])):
        raise ValueError(f"not a size: {text!r}")
    return size


@dataclass(frozen=True, kw_only=True, slots=True)
class InputConfig:
    """Which rows are read, and where their images may lie."""

    format: Literal[
        "auto",
        "columns",
        "messages",
        "openai",
        "axolotl",
        "trl",
        "llava",
        "sharegpt",
        "llamafactory",
        "swift",
        "alpaca",
        "finevision",
        "captions",
    ] = "auto"
    """What the rows look like; auto tells it from the first rows of each input."""
    image_root: str | None = None
    """Folder, or URL such as s3://bucket/images, that image paths are relative to, and must stay under [default: the
    folder of the input file]."""
    allow_outside_root: bool = False
    """Let image paths lead out of the image root (absolute paths, ../, links)."""
    download: bool = True
    """Fetch images behind URLs; without it, rows that name one are rejected."""
    allow_private_urls: bool = False
    """Let image URLs lead to private, loopback and link-local addresses."""
    url_timeout_s: float = 20.0
    """Seconds after which a download that gives no answer, or does not end, is given up."""
    url_retries: int = 3
    """How many times a failed download is tried again, with growing pauses."""
    source_split: str | None = None
    """Split of a Hugging Face set to read, with an optional slice, as in train[:100] or test[10%:]."""
    source_config: str | None = None
    """Configuration (subset) of a set on the Hugging Face hub."""
    encoding: str = "utf-8"
    """Text encoding of CSV and TSV files without a byte-order mark."""
    max_line_bytes: int = 64 << 20
    """Longest line, array element or CSV field that is read; longer ones are rejected."""
    where: str | None = None
    """Read only rows for which this holds, over column names, as in: label != "Skip" and float(score) > 0.5"""

    def __post_init__(self) -> None:
        """Check the limits and the encoding; `where` is checked when the columns are known."""
        problems = []
        if not self.url_timeout_s > 0:
            problems.append(f"url_timeout_s must be above 0, not {self.url_timeout_s!r}")
        if self.url_retries < 0:
            problems.append(f"url_retries must not be negative, not {self.url_retries!r}")
        if self.max_line_bytes < 1024:
            problems.append(f"max_line_bytes must be at least 1024, not {self.max_line_bytes!r}")
        try:
            "".encode(self.encoding)
        except LookupError:
            problems.append(f"encoding {self.encoding!r} is not known")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnConfig:
    """Which columns, or templates over columns, make a row."""

    image: tuple[str, ...] = ()
    """Column with the image, or a template such as images/{name}.jpg; given again, the next image of the row."""
    instruction: str | None = None
    """Column with the user's text, a template such as "What is {thing}?", or a constant text with a space in it."""
    response: str | None = None
    """Column with the answer (several in a list: see --answers), or a template such as {label}."""
    system: str | None = None
    """Column with the system text, a template, or a constant text with a space in it."""
    id: str | None = None
    """Column with the id of a row [default: id, where there is one, else FILE:ROW]."""
    keep: tuple[str, ...] = ()
    """Column to carry into the meta column; can be given again."""
    template_tokens: Literal["reject", "escape"] = "reject"
    """What to do with text that holds a chat template's own tokens, such as <|im_end|>: reject the row, or break the
    token up with a space."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig:
    """Which rows count as duplicates of each other, and which belong together."""

    dedup: Literal["none", "exact", "near"] = "near"
    """Drop no duplicates, rows with equal pixels (of JPEG files that are stored as they came: equal code), or also rows
    with nearly the same picture."""
    dedup_scope: Literal["pair", "image"] = "pair"
    """Rows are duplicates if images and text agree (pair), or if the images do, whatever the text (image)."""
    near_distance: int = 31
    """Bits of 256 in which the perceptual hashes of two near-duplicates may differ."""
    against: tuple[str, ...] = ()
    """Evaluation set (images, a set of any format, a built folder, a list of vlmdata hash, or a hub id as
    owner/name@test) whose images must not be trained on: rows that show one are dropped; can be given again."""
    merge_turns: bool = False
    """Join rows about the same images (equal pixels, same system text) into one conversation of several turns, in the
    order of the input. Each joined row is counted as merged; what --keep carries is that of the first."""
    max_merged: int = 32
    """Rows that --merge-turns joins into one conversation at most."""

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.max_merged < 2:
            raise ConfigError(f"max_merged must be at least 2, not {self.max_merged!r}")
        if not 0 <= self.near_distance <= 64:
            raise ConfigError(f"near_distance must be between 0 and 64 of 256 bits, not {self.near_distance!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """How rows are parted into splits."""

    split: str | None = None
    """Parts to set aside from train, as in val=0.1,test=0.1; connected rows stay on one side."""
    seed: int = 0
    """Number that decides which rows are set aside."""
    group_by: str | None = None
    """Column (patient, document, video) whose equal values stay in one split."""

    def __post_init__(self) -> None:
        """Check names and fractions."""
        try:
            fractions = self.fractions
        except ValueError as error:
            raise ConfigError(f"split must look like val=0.1,test=0.1: {error}") from None
        problems = [
            f"split {name!r}: its part must lie between 0 and 1, not {part!r}"
            for name, part in fractions.items()
            if not 0 < part < 1
        ]
        if not problems and sum(fractions.values()) >= 1:
            problems.append(f"split {self.split!r} leaves nothing for train")
        if problems:
            raise ConfigError(problems)

    @property
    def fractions(self) -> dict[str, float]:
        """`split` as names and parts, without train."""
        parts: dict[str, float] = {}
        for item in (self.split or "").split(",") if self.split else []:
            name, equals, part = item.strip().partition("=")
            if not equals or not re.fullmatch(r"\w+", name):
                raise ValueError(f"{item!r} is not NAME=PART")
            if name in parts or name == "train":
                raise ValueError(f"{name!r} " + ("is what remains" if name == "train" else "is given twice"))
            parts[name] = float(part)
        return parts


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """How the folder is written. Only `shard_size` changes what is in it."""

    workers: int | None = None
    """Processes that read and prepare images; 0 works in the calling process [default: one for each core]. On a Ray
    cluster, partitions under way [default: two for each processor]."""
    max_reject_rate: float = 0.5
    """Share of rejected rows above which the build fails; what was asked for does not count: rows left out by --where,
    duplicates, rows dropped by --against."""
    shard_size: str = "500MB"
    """Size at which a new shard is begun."""
    overwrite: bool = False
    """Replace a folder that was built with other options."""
    keep_stage: bool = True
    """Keep the prepared rows in OUT/.stage, so that a build after a change redoes only what changed; takes the space of
    all resized images, and on a Ray cluster of all images, once more. Not where --out is a URL."""
    scratch: Path | None = None
    """Folder for the unfinished work of a build whose --out is a URL [default: builds, in the cache folder]."""
    engine: Literal["local", "ray"] = "local"
    """What does the work: processes of this machine, or tasks of a Ray cluster whose nodes share a file system with
    --out, or where --out is a URL."""
    ray_address: str | None = None
    """Address of the Ray cluster, with --engine ray [default: RAY_ADDRESS, else a cluster that runs here, else this
    machine]."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        problems = []
        if self.workers is not None and not 0 <= self.workers <= 1024:
            problems.append(f"workers must be between 0 and 1024, not {self.workers!r}")
        if self.workers == 0 and self.engine == "ray":
            problems.append("workers must be at least 1 with --engine ray, where it limits the partitions under way")
        if self.ray_address is not None and self.engine != "ray":
            problems.append("ray_address is for --engine ray")
        if not 0 <= self.max_reject_rate <= 1:
            problems.append(f"max_reject_rate must be between 0 and 1, not {self.max_reject_rate!r}")
        try:
            parse_byte_size(self.shard_size)
        except ValueError:
            problems.append(f"shard_size must be a size such as 500MB, not {self.shard_size!r}")
        if problems:
            raise ConfigError(problems)

    @property
    def shard_bytes(self) -> int:
        """`shard_size` in bytes."""
        return parse_byte_size(self.shard_size)
