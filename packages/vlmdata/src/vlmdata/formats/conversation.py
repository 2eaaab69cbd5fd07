"""What the conversation formats share: roles, `<image>` placeholders, and images as rows name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import parse_template
from vlmdata.sample import ImageRef, Message, Part, Problem, RawRow, Role

__all__ = [
    "IMAGE_PLACEHOLDER",
    "Draft",
    "as_image_refs",
    "find_images",
    "place_images",
    "plan_conversation",
    "read_role",
    "split_placeholders",
]

IMAGE_PLACEHOLDER = "<image>"

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}


@dataclass(slots=True)
class Draft:
    """A row as a format understands it: what is said, the images in the order they are shown, all accepted answers."""

    messages: list[Message]
    images: list[ImageRef] = field(default_factory=list)
    references: list[str] = field(default_factory=list)


def read_role(value: Any) -> Role | Problem:
    """Return the role that a name such as `human` or `gpt` stands for."""
    if isinstance(value, str) and value.lower() in _ROLES:
        return _ROLES[value.lower()]
    return Problem("unsupported_role", f"role {value!r:.60}; known: {', '.join(_ROLES)}")


def split_placeholders(text: str) -> list[Part]:
    """Cut a text at its `<image>` placeholders; line breaks beside a placeholder only set it off, and go."""
    parts: list[Part] = []
    pieces = text.split(IMAGE_PLACEHOLDER)
    for i, piece in enumerate(pieces):
        if i:
            parts.append(Part("image"))
            piece = piece.lstrip("\r\n")
        if i < len(pieces) - 1:
            piece = piece.rstrip("\r\n")
        if piece.strip() or len(pieces) == 1:
            parts.append(Part("text", piece))
    return parts


def as_image_refs(value: Any, name: str) -> list[ImageRef] | Problem:
    """Return the images that a value names: a path or URL, bytes, a Hugging Face image, or a list of these."""
    if isinstance(value, str):
        return [ImageRef(location=value)] if value.strip() else Problem("image_missing", f"{name!r} is empty")
    if isinstance(value, bytes):
        return [ImageRef(data=value)]
    if isinstance(value, dict):
        return _from_dict(value, name)
    if isinstance(value, list | tuple):
        references: list[ImageRef] = []
        for item in value:
            found = (
                Problem("image_missing", f"{name!r} holds a list in a list")
                if isinstance(item, list | tuple)
                else as_image_refs(item, name)
            )
            if isinstance(found, Problem):
                return found
            references.extend(found)
        return references
    if value is None or (isinstance(value, float) and value != value):
        return Problem("image_missing", f"{name!r} is empty")
    return Problem("image_missing", f"{name!r} is a {type(value).__name__}, not an image")


def _from_dict(value: dict[str, Any], name: str) -> list[ImageRef] | Problem:
    data, path = value.get("bytes"), value.get("path") or value.get("url")
    if isinstance(path, str) or isinstance(data, bytes):
        return [ImageRef(location=path if isinstance(path, str) else None, data=data)]
    return Problem("image_missing", f"{name!r} has neither bytes, path nor url")


def plan_conversation(
    name: str, messages: str, usual_images: Sequence[str], columns: Sequence[str], config: ColumnConfig
) -> Reading:
    """Find where the images of a conversation set come from: the columns named, or the first usual one there is.

    Raises:
        ConfigError: an option names no column.
    """
    usual = [column for column in usual_images if column in columns]
    given = config.image or usual[:1]
    image = tuple(parse_template("image", text, columns, allow_constant=False) for text in given)
    system = parse_template("system", config.system, columns, allow_constant=True) if config.system else None
    # a column may come first in a row that was not looked at
    others = () if config.image else tuple(column for column in usual_images if column not in given)
    return Reading(format=name, image=image, other_images=others, messages=messages, system=system)


def find_images(row: RawRow, reading: Reading) -> list[ImageRef] | Problem:
    """Return the images beside a conversation; where the columns are empty, it is one without images."""
    images: list[ImageRef] = []
    for template in reading.image:
        if problem := _add_images(template.value(row), template.text, images):
            return problem
    for column in reading.other_images:
        if not images and (problem := _add_images(row.get(column), column, images)):
            return problem
    return images


def _add_images(value: Any, name: str, images: list[ImageRef]) -> Problem | None:
    if value is None or value == "":
        return None
    found = value if isinstance(value, Problem) else as_image_refs(value, name)
    if isinstance(found, Problem):
        return found
    images.extend(found)
    return None


def place_images(messages: list[Message], count: int) -> Problem | None:
    """Make sure that the messages show `count` images; where they show none, put all before the first user text.

    Returns:
        What is wrong: another number of placeholders than of images, or an image outside the user's turns.
    """
    shown = sum(part.type == "image" for message in messages for part in message.content)
    if shown == 0 and count:
        user = next((message for message in messages if message.role == "user"), None)
        if user is None:
            return Problem("no_user", "images, but no user turn to show them in")
        user.content[:0] = [Part("image") for _ in range(count)]
        return None
    if shown != count:
        return Problem("placeholder_mismatch", f"{shown} image placeholders for {count} images")
    for message in messages:
        if message.role != "user" and any(part.type == "image" for part in message.content):
            return Problem("image_in_answer", f"an image in a turn of the {message.role}")
    return None
