"""Sets on the Hugging Face hub, through `datasets`: the one module that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingDependencyError, ResourceError
from vlmdata.sources.arrow_rows import class_names, rows_of_batches
from vlmdata.sources.rows import IndexedRow, Source
from vlmdata.sources.split_choice import choose_split

__all__ = ["open_hub_set"]

_ROWS_AT_ONCE = 32


def open_hub_set(repository: str, source_split: str | None, source_config: str | None) -> Source:
    """Download (or take from the cache) a set of the hub and open one of its splits.

    Code of the repository is never run.

    Raises:
        MissingDependencyError: `datasets` is not installed.
        ConfigError: no such split or configuration.
        DataError: there is no such set, or it holds no readable data.
        ResourceError: the hub cannot be reached.
    """
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError(
            f"{repository}: no such file or folder; to read it from the Hugging Face hub: pip install 'vlmdata[hf]'"
        ) from None
    try:
        available = datasets.get_dataset_split_names(repository, source_config)
        split, begin, end = choose_split(source_split, available, repository)
        slice_text = f"[{begin or ''}:{end or ''}]" if begin or end else ""
        table = datasets.load_dataset(repository, source_config, split=f"{split}{slice_text}")
    except (ConnectionError, TimeoutError) as error:
        raise ResourceError(
            f"{repository}: no such file or folder, and the Hugging Face hub cannot be reached: {_one_line(error)}"
        ) from error
    except FileNotFoundError as error:
        raise DataError(f"{repository}: no such file, folder or set on the hub: {_one_line(error)}") from error
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise DataError(f"{repository}: {_one_line(error)}") from error
    return Source(
        name=f"{repository}/{split}{slice_text}",
        kind=f"Hugging Face hub, split {split + slice_text!r}",
        image_base=Path.cwd(),
        files=tuple(Path(file["filename"]) for file in table.cache_files),
        read=lambda: _read(table),
    )


def _read(table: Any) -> Iterator[IndexedRow]:
    # the arrow format hands out images as they are stored, not decoded
    tables = table.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    batches = (batch for piece in tables for batch in piece.to_batches())
    return rows_of_batches(batches, class_names(table.features.arrow_schema.metadata))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
