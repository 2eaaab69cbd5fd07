"""Lists of `{role, content}` messages, whose content is text or a list of parts, as several formats write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlmdata.formats.conversation import Draft, as_image_refs, find_images, place_images, read_role, split_placeholders
from vlmdata.formats.reading import Reading
from vlmdata.sample import ImageRef, Message, Part, Problem, RawRow

__all__ = ["attach_images", "is_message_list", "iterate_parts", "read_messages"]

# The keys under which a part of type image or image_url names its image, and what stands before the value in a URI.
_IMAGE_KEYS = {"image": "", "image_url": "", "url": "", "path": "", "base64": "data:image;base64,"}
# datasets fills absent fields of a part with None, so a message of a tool call is told by what is there.
_TOOL_KEYS = ("tool_calls", "function_call")


def is_message_list(value: Any) -> bool:
    """Tell whether a value is a non-empty list of objects that each have a role and content."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) and {"role", "content"} <= entry.keys() for entry in value)
    )


def iterate_parts(rows: Sequence[RawRow], column: str = "messages") -> Iterator[dict[str, Any]]:
    """Yield the content parts of all messages of all rows."""
    for row in rows:
        messages = row.get(column)
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict):
                    yield part


def read_messages(raw: Any, name: str) -> Draft | Problem:
    """Read messages; `images` of the draft are those that the messages carry themselves."""
    if not isinstance(raw, list) or not raw:
        return Problem("no_messages", f"{name!r} is empty or no list")
    draft = Draft([])
    for entry in raw:
        if not isinstance(entry, dict):
            return Problem("bad_message", f"a message is a {type(entry).__name__}, not a role and content")
        role = read_role(entry.get("role"))
        if isinstance(role, Problem):
            return role
        if any(entry.get(key) for key in _TOOL_KEYS):
            return Problem("unsupported_part", "a message calls tools")
        content = _read_content(entry.get("content"), draft.images)
        if isinstance(content, Problem):
            return content
        draft.messages.append(Message(role, content))
    return draft


def attach_images(draft: Draft, row: RawRow, reading: Reading) -> Draft | Problem:
    """Add the images that stand beside a conversation, and match all with their places in it."""
    beside = find_images(row, reading)
    if isinstance(beside, Problem):
        return beside
    if draft.images and beside:
        return Problem("images_twice", f"{len(draft.images)} images in the messages and {len(beside)} beside them")
    draft.images = draft.images or beside
    return place_images(draft.messages, len(draft.images)) or draft


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
            found = _read_image(entry)
            if isinstance(found, Problem):
                return found
            inline.extend(found)
        else:
            return Problem("unsupported_part", f"a part of type {kind!r:.60}; only text and images are trained on")
    return parts


def _read_image(entry: dict[str, Any]) -> list[ImageRef] | Problem:
    """Return the one image that a part carries; none where it only marks a place."""
    key = next((key for key in _IMAGE_KEYS if entry.get(key)), None)
    if key is None:
        return []
    value = entry[key]
    if isinstance(value, str):
        value = _IMAGE_KEYS[key] + value
    found = as_image_refs(value, key)
    if isinstance(found, list) and len(found) != 1:
        return Problem("bad_message", f"an image part with {len(found)} images")
    return found
