"""How many tokens each row takes, and how many of them carry loss, without decoding a picture.

The text is tokenised as the template writes it, with one placeholder an image; what the processor puts in a
placeholder's stead depends on the stored size alone, and is asked for once a size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.shards import Split
from vlmtrain.chat import ChatFormat
from vlmtrain.masks import mask_labels, supervised_spans, unterminated_spans

__all__ = ["ImageTokenCounter", "RowLengths", "measure_lengths"]


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
    """Tokens that one picture of a size adds to the text around it, measured with the processor once a size."""

    def __init__(self, chat: ChatFormat) -> None:
        """Args:
        chat: The processor and its template.
        """
        self._chat = chat
        self._known: dict[tuple[int, int], int] = {}

    def __call__(self, width: int, height: int) -> int:
        """Tokens beyond the placeholder of a `width` × `height` px picture."""
        size = (width, height)
        if size not in self._known:
            self._known[size] = self._measure(width, height)
        return self._known[size]

    def _measure(self, width: int, height: int) -> int:
        from PIL import Image

        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
        text = self._chat.render([message])
        picture = Image.new("RGB", (width, height))
        processor = self._chat.processor
        whole = processor(text=[text], images=[[picture]], add_special_tokens=False)["input_ids"][0]
        bare = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(whole) - len(bare)


def measure_lengths(split: Split, chat: ChatFormat, *, last_turn_only: bool = False) -> RowLengths:
    """Measures every row of a split, from its text and the stored sizes of its pictures.

    Args:
        split: The split of a built folder.
        chat: The processor and its mask rules.
        last_turn_only: Only the last answer carries loss.

    Returns:
        Arrays of one value a row.
    """
    from tqdm import tqdm

    count_image_tokens = ImageTokenCounter(chat)
    sizes = split.stored_sizes()
    columns = np.zeros((5, len(sizes)), dtype=np.int64)
    with tqdm(total=len(sizes), desc="checking rows", unit="row", delay=2, disable=None) as progress:
        for start, messages in _batches(split):
            texts = [chat.render(conversation) for conversation in messages]
            ids_of_rows = chat.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            for offset, ids in enumerate(ids_of_rows):
                row = start + offset
                image_tokens = sum(count_image_tokens(*size) for size in sizes[row])
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
    return RowLengths(
        tokens=columns[0],
        image_tokens=columns[1],
        supervised=columns[2],
        missing_spans=columns[3],
        unterminated=columns[4],
    )


def _batches(split: Split) -> Iterator[tuple[int, list[Any]]]:
    start = 0
    for batch in split.iterate_batches(["messages"]):
        messages = batch.column(0).to_pylist()
        yield start, messages
        start += len(messages)
