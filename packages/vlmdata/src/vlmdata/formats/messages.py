"""Conversations in a `messages` column: TRL's and our own form, `{role, content}` with text or parts as content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.formats.conversation import (
    Draft,
    as_image_refs,
    find_images,
    place_images,
    plan_conversation,
    read_role,
    split_placeholders,
)
from vlmdata.formats.reading import Reading
from vlmdata.sample import ImageRef, Message, Part, Problem, RawRow

__all__ = ["NAME", "convert", "detect", "plan"]

NAME = "messages"


def detect(rows: Sequence[RawRow]) -> bool:
    """Rows whose `messages` are dictionaries with a role and content."""
    return any(
        isinstance(messages := row.get("messages"), list)
        and bool(messages)
        and all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages)
        for row in rows
    )


def plan(columns: Sequence[str], config: ColumnConfig) -> Reading:
    """Images come from the column named, or from `images` or `image`, or stand in the messages themselves.

    Raises:
        ConfigError: an option names no column.
    """
    return plan_conversation(NAME, "messages", ("images", "image"), columns, config)


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Read the messages, and match their image parts or `<image>` placeholders with the row's images."""
    raw = row.get("messages")
    if not isinstance(raw, list) or not raw:
        return Problem("no_messages", "'messages' is empty or no list")
    messages: list[Message] = []
    inline: list[ImageRef] = []
    for entry in raw:
        if not isinstance(entry, dict):
            return Problem("bad_message", f"a message is a {type(entry).__name__}, not a role and content")
        role = read_role(entry.get("role"))
        if isinstance(role, Problem):
            return role
        content = _read_content(entry.get("content"), inline)
        if isinstance(content, Problem):
            return content
        messages.append(Message(role, content))
    images = find_images(row, reading.image)
    if isinstance(images, Problem):
        return images
    if inline and images:
        return Problem("images_twice", f"{len(inline)} images in the messages and {len(images)} beside them")
    images = inline or images
    if problem := place_images(messages, len(images)):
        return problem
    return Draft(messages, images)


def _read_content(content: Any, inline: list[ImageRef]) -> list[Part] | Problem:
    if isinstance(content, str):
        return split_placeholders(content)
    if not isinstance(content, list):
        return Problem("bad_message", f"content is a {type(content).__name__}, not text or a list of parts")
    parts: list[Part] = []
    for entry in content:
        if not isinstance(entry, dict):
            return Problem("bad_message", f"a part of the content is a {type(entry).__name__}, not an object")
        kind = entry.get("type")
        if kind == "text":
            if not isinstance(entry.get("text"), str):
                return Problem("bad_message", "a text part without text")
            parts.append(Part("text", entry["text"]))
        elif kind in ("image", "image_url"):
            parts.append(Part("image"))
            value = next((entry[key] for key in ("image", "image_url", "url", "path") if entry.get(key)), None)
            if value is not None:
                found = as_image_refs(value, kind)
                if isinstance(found, Problem):
                    return found
                inline.extend(found)
        else:
            return Problem("unsupported_part", f"a part of type {kind!r:.60}; only text and images are trained on")
    return parts
