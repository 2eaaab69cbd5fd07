"""How many tokens each row takes, and how many of them carry loss, without decoding a picture.

The text is tokenised as the template writes it, with one placeholder an image; what the processor puts in a
placeholder's stead depends on the stored size alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import DataError
from vlmdata.families import Family, read_grid
from vlmdata.shards import Split
from vlmtrain.chat import ChatFormat
from vlmtrain.family_rows import FamilyRows
from vlmtrain.masks import mask_labels, supervised_spans, unterminated_spans

__all__ = ["ImageTokenCounter", "RowLengths", "measure_lengths"]

_PROBE_SIZE = (336, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLengths:
    """What preflight and the trainer need to know of each row of a split, as arrays of one value a row."""

    tokens: npt.NDArray[np.int64]
    """`(N,)` tokens, image tokens included."""
    image_tokens: npt.NDArray[np.int64]
    """`(N,)` of them stand for images."""
    supervised: npt.NDArray[np.int64]
    """`(N,)` of them carry loss."""
    missing_spans: npt.NDArray[np.int64]
    """`(N,)` assistant turns in which the mask found no answer."""
    unterminated: npt.NDArray[np.int64]
    """`(N,)` answers that hold no token at which generation stops."""


class ImageTokenCounter:
    """Tokens that one picture of a size adds to the text around it.

    The family's grid gives them by arithmetic from the numbers of the processor in hand; what a template puts around
    them is measured once. For an unknown family the processor is asked once a size.
    """

    def __init__(self, chat: ChatFormat, family: Family | None) -> None:
        self._chat = chat
        self._grid = read_grid(family, chat.processor.to_dict()) if family else None
        self._known: dict[tuple[int, int], int] = {}
        self._written = _written_around_images(chat.processor)
        self._around = 0
        if self._grid is not None:
            self._around = self._measure(*_PROBE_SIZE) - self._grid.image_tokens(*_PROBE_SIZE)

    def __call__(self, width: int, height: int) -> int:
        """Tokens beyond the placeholder of a `width` × `height` px picture."""
        size = (width, height)
        if size not in self._known:
            foreseen = self._grid.image_tokens(width, height) + self._around if self._grid else None
            self._known[size] = self._measure(width, height) if foreseen is None else foreseen
        return self._known[size]

    def _measure(self, width: int, height: int) -> int:
        from PIL import Image

        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        text = self._chat.render([message])
        picture = Image.new("RGB", (width, height))
        processor = self._chat.processor
        whole = processor(text=[text], images=[[picture]], add_special_tokens=False)["input_ids"][0]
        bare = processor.tokenizer(self.write_around_images(text), add_special_tokens=False)["input_ids"]
        return len(whole) - len(bare)

    def write_around_images(self, text: str) -> str:
        """A rendered text with what the processor adds to it beside the images' own tokens."""
        return text.replace(*self._written) if self._written else text


def _written_around_images(processor: Any) -> tuple[str, str] | None:
    """The placeholder of Gemma 3 and what it becomes: line breaks, which melt with those of the text beside it."""
    sequence = getattr(processor, "full_image_sequence", None)
    return (processor.boi_token, sequence.replace(processor.tokenizer.image_token, "")) if sequence else None


def measure_lengths(
    split: Split, chat: ChatFormat, family: Family | None, *, last_turn_only: bool = False
) -> RowLengths:
    """Measures every row of a split, from its text and the stored sizes of its pictures.

    Args:
        split: The split of a built folder.
        chat: The processor and its mask rules.
        family: The model's family, if it is a known one.
        last_turn_only: Only the last answer carries loss.

    Returns:
        Arrays of one value a row.

    Raises:
        DataError: The family cannot represent a row, the template refuses one, or the processor a picture's size.
    """
    from tqdm import tqdm

    family_rows = FamilyRows(family)
    count_image_tokens = ImageTokenCounter(chat, family)
    sizes = split.stored_sizes()
    columns = np.zeros((5, len(sizes)), dtype=np.int64)
    with tqdm(total=len(sizes), desc="checking rows", unit="row", delay=2, disable=None) as progress:
        for start, messages in _batches(split):
            for offset, each in enumerate(messages):
                family_rows.look_at(start + offset, each)
            texts = [_render(chat, each, f"{split.name}: row {start + i}") for i, each in enumerate(messages)]
            texts = [count_image_tokens.write_around_images(text) for text in texts]
            ids_of_rows = chat.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            for offset, ids in enumerate(ids_of_rows):
                row = start + offset
                try:
                    image_tokens = sum(count_image_tokens(*size) for size in sizes[row])
                except ValueError as error:
                    raise DataError(f"{split.name}: row {row}: the processor refuses a picture: {error}") from error
                answers = sum(message["role"] == "assistant" for message in messages[offset])
                labels = mask_labels(ids, chat.rules, last_turn_only=last_turn_only)
                columns[:, row] = (
                    len(ids) + image_tokens,
                    image_tokens + len(sizes[row]),
                    sum(label >= 0 for label in labels),
                    answers - len(supervised_spans(ids, chat.rules)),
                    unterminated_spans(ids, chat.rules, chat.stop_ids),
                )
            progress.update(len(texts))
    family_rows.require_none(split.name)
    return RowLengths(
        tokens=columns[0],
        image_tokens=columns[1],
        supervised=columns[2],
        missing_spans=columns[3],
        unterminated=columns[4],
    )


def _render(chat: ChatFormat, messages: Any, row: str) -> str:
    try:
        return chat.render(messages)
    except DataError as error:
        raise DataError(f"{row}: {error}") from error


def _batches(split: Split) -> Iterator[tuple[int, list[Any]]]:
    start = 0
    for batch in split.iterate_batches(["messages"]):
        messages = batch.column(0).to_pylist()
        yield start, messages
        start += len(messages)
