"""What comparisons between rows need to know of their conversations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdata.dedup.signatures import hash_texts
from vlmdata.sample import Message

__all__ = ["hash_prompt", "hash_system", "list_spoken"]


def list_spoken(message: Message) -> Iterator[str]:
    """Yield the role, the texts and the places of the images, which together are what a message says."""
    yield message.role
    for part in message.content:
        yield "\0image" if part.text is None else part.text


def hash_prompt(messages: Sequence[Message]) -> int:
    """Return a 64-bit hash of all that comes before the last turn."""
    spoken = hash_texts(text for message in messages[:-1] for text in list_spoken(message))
    return int.from_bytes(spoken[:8], "little")


def hash_system(messages: Sequence[Message]) -> bytes | None:
    """Return a hash of the system text where other questions on the same images may follow this conversation.

    That takes images that all stand at one end of the first question: shown once, they need no mark in those that
    follow, and none of their texts would have a gap.

    Returns:
        None where images stand elsewhere, or there are none.
    """
    turns = [message for message in messages if message.role != "system"]
    kinds = [part.type for part in turns[0].content]
    images = kinds.count("image")
    is_apart = "text" in kinds and (kinds[:images] == ["image"] * images or kinds[-images:] == ["image"] * images)
    shows_later = any(part.type == "image" for message in turns[1:] for part in message.content)
    if not images or not is_apart or shows_later:
        return None
    system = (text for message in messages if message.role == "system" for text in list_spoken(message))
    return hash_texts(system)
