"""The in-line form that guides and chat templates show, made lazily from the rows of a built folder.

A built row keeps its images beside the messages; a processor's `apply_chat_template` and the notebooks want them inside
the message: `{"role": "user", "content": [{"type": "image", "image": <PIL image>}, {"type": "text", "text": "…"}]}`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["InlineRows", "decode_image", "inline_row"]


def decode_image(stored: Any) -> Image.Image:
    """Return the stored image as RGB; takes an encoded `{"bytes", "path"}` row or an already decoded PIL image."""
    from PIL import Image

    if isinstance(stored, Image.Image):
        return stored if stored.mode == "RGB" else stored.convert("RGB")
    with Image.open(io.BytesIO(stored["bytes"])) as image:
        return image.convert("RGB")


def inline_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"messages": […]}` with every image decoded to RGB and put where its part stands.

    Args:
        row: a row of `vlmdata.shards` or of `datasets.load_from_disk`.
    """
    images = iter(row["images"])
    messages = []
    for message in row["messages"]:
        content = [
            {"type": "image", "image": decode_image(next(images))}
            if part["type"] == "image"
            else {"type": "text", "text": part["text"]}
            for part in message["content"]
        ]
        messages.append({"role": message["role"], "content": content})
    return {"messages": messages}


class InlineRows(Sequence[dict[str, Any]]):
    """A split in the in-line form; a row is read and decoded when it is asked for, and not kept.

    Args:
        rows: anything with a length and integer indexing that gives built rows (a `Split`, a `datasets.Dataset`).
    """

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return inline_row(self._rows[index])
