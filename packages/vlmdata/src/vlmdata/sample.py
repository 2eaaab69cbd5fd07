"""The records that travel through a build: one `Sample` per input row, or a `Rejection` that says why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from vlmdata.schema import ImageInfoRow, MessageRow, ObjectsRow, Row

__all__ = ["ImageRef", "Message", "Objects", "Part", "Problem", "RawRow", "Rejection", "Role", "Sample", "StoredImage"]

Role = Literal["system", "user", "assistant"]

# An input row as it was read: column names and values, of whatever types the file knows.
RawRow: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row, or an image, cannot be used: a short stable word, and one line for a person."""

    reason: str
    detail: str


@dataclass(slots=True)
class Part:
    """A piece of a message: text, or the place where the next image is shown (then `text` is None)."""

    type: Literal["text", "image"]
    text: str | None = None


@dataclass(slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: list[Part]


@dataclass(slots=True)
class ImageRef:
    """An image as the input names it, not read yet.

    `data` holds the encoded file when the input carried it in line; otherwise `location` is a path, a URL or a data
    URI. With both, `location` is only a name.
    """

    location: str | None = None
    data: bytes | None = None


@dataclass(slots=True)
class Objects:
    """Boxes with labels; `image_index[i]` is the image that `bbox[i]` lies on, `format` names the box convention."""

    bbox: list[list[float]]
    label: list[str]
    image_index: list[int]
    format: str


@dataclass(slots=True)
class Rejection:
    """Why an input row, or with `level="image"` one image of a kept row, is not in the built folder.

    Attributes:
        source: the input file, relative to the inputs' root.
        row: 0-based index of the row in that file.
        stage: the part of the build that decided (`sources`, `formats`, `images`, `stage`, `dedup`, `merge`).
        reason: a short stable word, counted in the manifest.
        detail: what exactly was wrong, for a person.
        id: the row's id, where one was known.
        level: `row`, or `image` for an image lost from a kept row.
    """

    source: str
    row: int
    stage: str
    reason: str
    detail: str
    id: str | None = None
    level: Literal["row", "image"] = "row"

    def to_json(self) -> dict[str, Any]:
        """Return the line of rejected.jsonl; `level` is only written where it is not `row`."""
        line: dict[str, Any] = {
            "source": self.source,
            "row": self.row,
            "stage": self.stage,
            "reason": self.reason,
            "detail": self.detail,
            "id": self.id,
        }
        if self.level != "row":
            line["level"] = self.level
        return line


@dataclass(slots=True)
class StoredImage:
    """An image as it will stand in a shard: encoded bytes, a name, and what is known of it."""

    data: bytes
    path: str | None
    info: ImageInfoRow


@dataclass(slots=True)
class Sample:
    """One conversation with its images, on its way from an input row to a shard row."""

    id: str
    source: str
    row: int
    messages: list[Message]
    images: list[ImageRef] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    objects: Objects | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def message_rows(self) -> list[MessageRow]:
        """Return the messages in the shape of the `messages` column."""
        return [
            {"role": m.role, "content": [{"type": p.type, "text": p.text} for p in m.content]} for m in self.messages
        ]

    def to_row(self, stored: list[StoredImage], meta: str) -> Row:
        """Return the shard row, given the stored images and the `meta` column's JSON."""
        objects: ObjectsRow | None = None
        if self.objects is not None:
            objects = {
                "bbox": self.objects.bbox,
                "label": self.objects.label,
                "image_index": self.objects.image_index,
                "format": self.objects.format,
            }
        return {
            "id": self.id,
            "messages": self.message_rows(),
            "images": [{"bytes": image.data, "path": image.path} for image in stored],
            "references": self.references,
            "objects": objects,
            "image_info": [image.info for image in stored],
            "meta": meta,
            "source": f"{self.source}:{self.row}",
        }
