"""How many tokens a picture of a size takes, and what the processor does to its size, without decoding it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmdata.families import Family, ImageGrid, read_grid
from vlmdata.families.grids import TileGrid
from vlmtrain.chat import ChatFormat

__all__ = ["ImageTokenCounter", "SizeChanges", "describe_sizes", "find_placeholder_ids", "vision_positions"]

_PROBE_SIZE = (336, 224)
_SHOWN = 3

Size = tuple[int, int]


class ImageTokenCounter:
    """Tokens that one picture of a size adds to the text around it.

    The family's grid gives them by arithmetic from the numbers of the processor in hand; what a template puts around
    them is measured once. For an unknown family the processor is asked once a size.
    """

    def __init__(self, chat: ChatFormat, family: Family | None) -> None:
        self._chat = chat
        self.grid = read_grid(family, chat.processor.to_dict()) if family else None
        self._known: dict[Size, int] = {}
        self._patches: dict[Size, int] = {}
        self._written = _written_around_images(chat.processor)
        self._around = 0
        if self.grid is not None:
            self._around = self._measure(*_PROBE_SIZE) - self.grid.image_tokens(*_PROBE_SIZE)

    def __call__(self, width: int, height: int) -> int:
        """Tokens beyond the placeholder of a `width` × `height` px picture.

        Raises:
            ValueError: The processor refuses a picture of this shape.
        """
        size = (width, height)
        if size not in self._known:
            foreseen = self.grid.image_tokens(width, height) + self._around if self.grid else None
            self._known[size] = self._measure(width, height) if foreseen is None else foreseen
        return self._known[size]

    def count_patches(self, width: int, height: int) -> int:
        """Positions that the vision tower computes for a picture of this size.

        Of an unknown family, four for each token, as where two by two patches make one.
        """
        size = (width, height)
        if size not in self._patches:
            self._patches[size] = vision_positions(self.grid, *size) if self.grid else 4 * self(*size)
        return self._patches[size]

    def _measure(self, width: int, height: int) -> int:
        from PIL import Image

        text = self._chat.render(_probe(images=1))
        picture = Image.new("RGB", (width, height))
        processor = self._chat.processor
        whole = processor(text=[text], images=[[picture]], add_special_tokens=False)["input_ids"][0]
        bare = processor.tokenizer(self.write_around_images(text), add_special_tokens=False)["input_ids"]
        return len(whole) - len(bare)

    def write_around_images(self, text: str) -> str:
        """A rendered text with what the processor adds to it beside the images' own tokens."""
        return text.replace(*self._written) if self._written else text


def vision_positions(grid: ImageGrid, width: int, height: int) -> int:
    """Positions of the vision tower for a picture: Llama 3.2 Vision computes all of its tiles, empty ones too."""
    if isinstance(grid, TileGrid):
        # each tile's positions are padded to a multiple of 8
        return grid.max_tiles * -(-((grid.tile_px // grid.patch_px) ** 2 + 1) // 8) * 8
    return grid.vision_patches(width, height)


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeChanges:
    """Pictures that the processor does not take in their stored size."""

    pictures: int
    """All pictures."""
    changed: int
    """Of these, the resized ones."""
    common: tuple[tuple[Size, Size, int], ...]
    """The most frequent changes: from, to (width, height) in px, and how many pictures."""
    words: str | None
    """What the family's processor does, in words."""

    def describe(self) -> str:
        """One line for the run's output."""
        if not self.pictures:
            return "no pictures"
        if self.words is None:
            return f"{self.pictures} pictures; what the processor does to their sizes is not known for this model"
        if not self.changed:
            return f"{self.pictures} pictures, all taken in their stored size"
        shown = ", ".join(f"{count} from {a[0]}x{a[1]} to {b[0]}x{b[1]}" for a, b, count in self.common)
        more = ", …" if sum(count for *_, count in self.common) < self.changed else ""
        return f"{self.changed} of {self.pictures} pictures are {self.words} by the processor ({shown}{more} px)"


def describe_sizes(sizes: Iterable[Iterable[Size]], counter: ImageTokenCounter, family: Family | None) -> SizeChanges:
    """What the processor does to the stored sizes of a split.

    Args:
        sizes: `(width, height)` in px of each picture of each row.
        counter: Whose grid tells.
        family: The model's family, if it is a known one.
    """
    counts = Counter(size for row in sizes for size in row)
    changes: Counter[tuple[Size, Size]] = Counter()
    if counter.grid is not None:
        for size, count in counts.items():
            taken = counter.grid.processed_size(*size)
            if taken != size:
                changes[size, taken] += count
    return SizeChanges(
        pictures=sum(counts.values()),
        changed=sum(changes.values()),
        common=tuple((before, after, count) for (before, after), count in changes.most_common(_SHOWN)),
        words=family.resizing if family and counter.grid else None,
    )


def find_placeholder_ids(chat: ChatFormat, counter: ImageTokenCounter) -> frozenset[int]:
    """The image tokens that the template writes exactly once for each picture."""
    ids = [_count_ids(chat, counter.write_around_images(chat.render(_probe(images=n)))) for n in (1, 2)]
    return frozenset(token for token in chat.rules.never_ids if (ids[0][token], ids[1][token]) == (1, 2))


def _count_ids(chat: ChatFormat, text: str) -> Counter[int]:
    return Counter(chat.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def _probe(*, images: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*([{"type": "image"}] * images), {"type": "text", "text": "?"}]}]


def _written_around_images(processor: Any) -> tuple[str, str] | None:
    """The placeholder of Gemma 3 and what it becomes: line breaks, which melt with those of the text beside it."""
    sequence = getattr(processor, "full_image_sequence", None)
    return (processor.boi_token, sequence.replace(processor.tokenizer.image_token, "")) if sequence else None
