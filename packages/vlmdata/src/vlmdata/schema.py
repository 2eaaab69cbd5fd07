"""The columns of a built folder: the Arrow schema, its Hugging Face form, and the shape of a row in Python.

Everything that reads or writes shards agrees here. A change that an older reader would misread raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import json
from typing import Any, TypedDict

import pyarrow as pa

__all__ = [
    "ARROW_SCHEMA",
    "COLUMNS",
    "IMAGE_ACTIONS",
    "ROLES",
    "SCHEMA_VERSION",
    "ImageInfoRow",
    "ImageRow",
    "MessageRow",
    "ObjectsRow",
    "PartRow",
    "Row",
    "features_dict",
]

SCHEMA_VERSION = 1

ROLES = ("system", "user", "assistant")

# What was done to an image, from least to most: bytes untouched; metadata cut away losslessly; pixels converted and
# encoded anew at the same size; resampled.
IMAGE_ACTIONS = ("stored", "stripped", "reencoded", "resized")


class PartRow(TypedDict):
    """One part of a message. The n-th part of type `image`, over the whole row, shows `images[n]`."""

    type: str
    text: str | None


class MessageRow(TypedDict):
    """One turn. `role` is one of `ROLES`."""

    role: str
    content: list[PartRow]


class ImageRow(TypedDict):
    """One stored image: an encoded JPEG, PNG or WebP, upright, 8-bit RGB or grey."""

    bytes: bytes
    path: str | None


class ObjectsRow(TypedDict):
    """Boxes of a row, in the coordinates of the stored image that `image_index` points at."""

    bbox: list[list[float]]
    label: list[str]
    image_index: list[int]
    format: str


class ImageInfoRow(TypedDict):
    """What is known of one stored image without decoding it.

    Sizes are in pixels, after EXIF orientation. `window` is the value range of a deep image that became black to white,
    `frame` the one taken of an animation or of a file of several pages (else None), `salvaged` marks a file that ended
    too early, `note` is what decoding said. `pixel_hash` is equal only where the stored pixels are: XXH3-128 of
    the code of a JPEG that is stored as it came, of the decoded pixels of any other picture (docs/formats.md, Equal
    pictures); `phash` is a 256-bit perceptual hash. Both are hexadecimal.
    """

    original_width: int
    original_height: int
    width: int
    height: int
    format: str
    action: str
    window: str | None
    frame: int | None
    salvaged: bool
    note: str | None
    pixel_hash: str
    phash: str


class Row(TypedDict):
    """One row of a built folder, as Python objects."""

    id: str
    messages: list[MessageRow]
    images: list[ImageRow]
    references: list[str]
    objects: ObjectsRow | None
    image_info: list[ImageInfoRow]
    meta: str
    source: str


def _struct(fields: dict[str, pa.DataType]) -> pa.StructType:
    return pa.struct(list(fields.items()))


_PART = _struct({"type": pa.string(), "text": pa.string()})
_MESSAGE = _struct({"role": pa.string(), "content": pa.list_(_PART)})
_IMAGE = _struct({"bytes": pa.binary(), "path": pa.string()})
_OBJECTS = _struct(
    {
        "bbox": pa.list_(pa.list_(pa.float64())),
        "label": pa.list_(pa.string()),
        "image_index": pa.list_(pa.int32()),
        "format": pa.string(),
    }
)
_IMAGE_INFO = _struct(
    {
        "original_width": pa.int32(),
        "original_height": pa.int32(),
        "width": pa.int32(),
        "height": pa.int32(),
        "format": pa.string(),
        "action": pa.string(),
        "window": pa.string(),
        "frame": pa.int32(),
        "salvaged": pa.bool_(),
        "note": pa.string(),
        "pixel_hash": pa.string(),
        "phash": pa.string(),
    }
)
_FIELDS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "messages": pa.list_(_MESSAGE),
    "images": pa.list_(_IMAGE),
    "references": pa.list_(pa.string()),
    "objects": _OBJECTS,
    "image_info": pa.list_(_IMAGE_INFO),
    "meta": pa.string(),
    "source": pa.string(),
}

COLUMNS = tuple(_FIELDS)


def _feature_of(type_: pa.DataType) -> dict[str, Any]:
    """Write an Arrow type the way `datasets.Features.to_dict` does."""
    if type_ == _IMAGE:
        return {"mode": "RGB", "_type": "Image"}
    if pa.types.is_list(type_):
        return {"feature": _feature_of(type_.value_type), "_type": "List"}
    if pa.types.is_struct(type_):
        return {type_.field(i).name: _feature_of(type_.field(i).type) for i in range(type_.num_fields)}
    return {"dtype": "float64" if type_ == pa.float64() else str(type_), "_type": "Value"}


def features_dict() -> dict[str, Any]:
    """Return the columns as `datasets.Features.to_dict()` would write them, without needing `datasets`."""
    return {name: _feature_of(type_) for name, type_ in _FIELDS.items()}


ARROW_SCHEMA = pa.schema(
    list(_FIELDS.items()),
    metadata={"huggingface": json.dumps({"info": {"features": features_dict()}})},
)
