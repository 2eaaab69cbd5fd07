"""Hash lists: what is needed to recognise the pictures of a set, in a Parquet file that holds none of them.

Columns: `name`, `pixel_hash` (16 bytes), `phash` (32 bytes), `is_flat`, and with `--thumbnails` `thumbnail` (a copy of
64x64 px in grey and 8x8 in colour). The file's metadata tells under which image options and versions the pixels were
hashed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dedup import EvaluationImages
from vlmdata.disk import whole_file
from vlmdata.errors import DataError

__all__ = ["is_hash_list", "read_hash_list", "write_hash_list"]

_METADATA_KEY = b"vlmdata.hash_list"
# 2: JPEG files that are stored as they are have the hash of their code (`PreparedImage.pixel_hash`).
_VERSION = 2
_MAGIC = b"PAR1"
_WIDTHS = {"pixel_hash": 16, "phash": 32}


def is_hash_list(path: Path) -> bool:
    """Tell whether a file is a hash list, and not a set in Parquet."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False
        file.seek(0)
        try:
            return _METADATA_KEY in (pq.read_schema(file).metadata or {})
        except pa.ArrowInvalid:
            return False


def write_hash_list(
    path: Path,
    parts: Sequence[EvaluationImages],
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    *,
    thumbnails: bool,
) -> int:
    """Write a hash list and return how many pictures are in it; the file appears when it is whole.

    Args:
        path: of the file.
        parts: pictures.
        options: of `ImageConfig`, that decide what a picture's pixels are.
        versions: of what decodes and hashes.
        thumbnails: whether to write the small copies too, which all parts then must have.
    """
    made = {"version": _VERSION, "image_options": dict(options), "versions": dict(versions)}
    about = {_METADATA_KEY: json.dumps(made).encode()}
    tables = [_to_table(part, thumbnails=thumbnails).replace_schema_metadata(cast(Any, about)) for part in parts]
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return sum(table.num_rows for table in tables)


def _to_table(images: EvaluationImages, *, thumbnails: bool) -> pa.Table:
    columns: dict[str, Any] = {"name": images.name}
    columns |= {name: _fixed(getattr(images, name)) for name in _WIDTHS}
    columns["is_flat"] = pa.array(images.is_flat)
    if thumbnails:
        assert images.thumbnail is not None
        columns["thumbnail"] = _fixed(images.thumbnail)
    return pa.table(columns)


def read_hash_list(path: Path) -> tuple[EvaluationImages, dict[str, Any], dict[str, str]]:
    """Return the pictures of a hash list, and the image options and versions that their pixels were hashed under.

    Raises:
        DataError: the file is broken, or of another version.
    """
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        about = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        if about["version"] != _VERSION:
            raise DataError(f"{path}: a hash list of version {about['version']!r}, this program reads {_VERSION}")
        hashes = {name: _unpack(table, name, width) for name, width in _WIDTHS.items()}
        images = EvaluationImages(
            name=table.column("name"),
            is_flat=table.column("is_flat").to_numpy().astype(np.bool_),
            thumbnail=_unpack(table, "thumbnail", None) if "thumbnail" in table.column_names else None,
            **hashes,
        )
    except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable hash list: {error}") from error
    return images, dict(about["image_options"]), dict(about["versions"])


def _fixed(rows: npt.NDArray[np.uint8]) -> Any:
    """(N, W) bytes as a column of values of W bytes."""
    flat = pa.py_buffer(cast(Any, np.ascontiguousarray(rows)))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, flat])


def _unpack(table: pa.Table, name: str, width: int | None) -> npt.NDArray[np.uint8]:
    column = table.column(name)
    wide = cast(Any, column.type).byte_width
    if column.null_count or (width is not None and wide != width):
        raise ValueError(f"column {name!r} is not {width} bytes a row")
    parts = [
        np.frombuffer(cast(Any, chunk.buffers()[1]), np.uint8)[chunk.offset * wide : (chunk.offset + len(chunk)) * wide]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.empty(0, np.uint8), *parts]).reshape(-1, wide)
