"""`vlmtrain preview`: rows as the model is given them, with what carries loss, as one HTML file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmdata.errors import ResourceError
from vlmdata.families import Family
from vlmdata.pages import Html, count_of, join, page_pieces, tag
from vlmdata.shards import Split, open_folder
from vlmtrain.chat import ChatFormat
from vlmtrain.image_tokens import ImageTokenCounter, describe_sizes
from vlmtrain.lengths import RowLengths, measure_lengths
from vlmtrain.masks import mask_labels
from vlmtrain.preview_config import PreviewConfig
from vlmtrain.processors import load_chat_format, load_processor
from vlmtrain.rows import open_rows, sample_indices
from vlmtrain.source import find_model

__all__ = ["TokenRun", "token_runs", "write_preview"]

_THUMBNAIL_PX = 220
_STYLE = """
:root { --loss: #bfe8cb; --loss-edge: #2f8f5b; --image: #d9d2f2; --mask: transparent; --mark: #8a93a3 }
@media screen and (prefers-color-scheme: dark) { :root { --loss: #1f4a30; --loss-edge: #55b583; --image: #3b3359;
  --mark: #7c879a } }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.75 ui-monospace, monospace; margin: .5rem 0 0 }
.tokens span, .legend span { print-color-adjust: exact; -webkit-print-color-adjust: exact }
.loss { background: var(--loss); border-bottom: 2px solid var(--loss-edge); padding: .1em 0 }
.loss i { font-style: normal; border-right: 1px solid var(--loss-edge) }
.loss i:last-child { border-right: 0 }
.picture { background: var(--image); border-radius: 5px; padding: .1em .4em }
.mark { color: var(--mark) }
.legend span { padding: .15em .5em; margin-right: .6rem; font: 13px ui-monospace, monospace }
article h3 b { margin-right: .8rem } .pictures figure { max-width: 14rem } .pictures img { max-height: 11rem }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRun:
    """Neighbouring tokens of one kind."""

    kind: str
    """`loss`, `masked`, `special` or `picture`."""
    pieces: tuple[str, ...]
    """Texts of the tokens; several tokens of one character make one piece. For pictures, the token once."""
    tokens: int
    """Number of tokens."""


def write_preview(config: PreviewConfig) -> str:
    """Writes the page.

    Args:
        config: What to show.

    Returns:
        One line for the user.

    Raises:
        ToolkitError: The set or the model cannot be used, or the file cannot be written.
    """
    split = open_folder(config.data).split(config.split)
    source = find_model(config.model, weights_needed=False)
    chat = load_chat_format(
        source,
        load_processor(source),
        instruction_part=config.instruction_part,
        response_part=config.response_part,
    )
    last_turn_only = config.train_on == "last"
    lengths = measure_lengths(split, chat, source.family, last_turn_only=last_turn_only)
    chosen = _choose(lengths, config.rows, config.seed)
    body = itertools.chain(
        [_head(config, split, lengths, chat, source.family, source.name)],
        (_show_row(split, row, lengths, chat, last_turn_only=last_turn_only) for row in chosen),
    )
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        with config.out.open("w", encoding="utf-8") as file:
            file.writelines(page_pieces(f"{config.split} as {source.name} reads it", body))
    except OSError as error:
        raise ResourceError(f"{config.out}: cannot be written: {error.strerror or error}") from error
    return f"{config.out}: {len(chosen)} of {len(split)} rows"


def token_runs(ids: Sequence[int], labels: Sequence[int], chat: ChatFormat) -> list[TokenRun]:
    """One row cut into runs of tokens of one kind.

    Args:
        ids: `(S,)` token ids, image tokens expanded.
        labels: `(S,)` labels; those not negative carry loss.
        chat: Whose tokenizer and special tokens to use.
    """
    tokenizer = chat.processor.tokenizer
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}

    def kind(position: int) -> tuple[str, int]:
        token = ids[position]
        if labels[position] >= 0:
            return "loss", 0
        if token in chat.rules.never_ids:
            # each image token by itself, so that a run of one can be counted
            return "picture", token
        return ("special" if token in special else "masked"), 0

    runs = []
    for (name, token), positions in itertools.groupby(range(len(ids)), kind):
        members = [ids[position] for position in positions]
        pieces = (tokenizer.decode([token]),) if name == "picture" else tuple(_pieces(tokenizer, members))
        runs.append(TokenRun(kind=name, pieces=pieces, tokens=len(members)))
    return runs


def _pieces(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """Texts of tokens; a character that is spread over several tokens keeps them together.

    Tokenizers that write a blank in front of a word drop it where a text begins, so that each token is decoded behind
    the ones before it.
    """
    begin, shown = 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        if text.endswith("\ufffd") and end < len(ids):
            continue
        if text[len(shown) :] or end == len(ids):
            yield text[len(shown) :]
        shown = text
        # a new beginning now and then keeps this linear in the length
        if end - begin > 64 and text.endswith((" ", "\n")):
            begin, shown = end, ""


def _choose(lengths: RowLengths, count: int, seed: int) -> list[int]:
    """The longest and the shortest row first, then others in the set's order."""
    total = len(lengths.tokens)
    first = list(dict.fromkeys([int(lengths.tokens.argmax()), int(lengths.tokens.argmin())]))[:count]
    others = [row for row in sample_indices(total, count, seed) if row not in first]
    return first + others[: count - len(first)]


def _head(
    config: PreviewConfig, split: Split, lengths: RowLengths, chat: ChatFormat, family: Family | None, model: str
) -> Html:
    tokens = int(lengths.tokens.sum())
    sizes = describe_sizes(split.stored_sizes(), ImageTokenCounter(chat, family), family)
    shortest, longest = int(lengths.tokens.min()), int(lengths.tokens.max())
    takes = f"{shortest} to {longest}, median {int(np.median(lengths.tokens))}" if shortest < longest else f"{longest}"
    shown = min(config.rows, len(split))
    choice = "" if shown == len(split) else f" {shown} are shown: the longest, the shortest, and others by --seed."
    facts = (
        f"{count_of(len(split), 'row')} of {config.data}, split {config.split}: {tokens:,} tokens, "
        f"{lengths.image_tokens.sum() / max(tokens, 1):.0%} for images, "
        f"{lengths.supervised.sum() / max(tokens, 1):.1%} with loss; a row takes {takes}. {sizes.describe()}."
        f"{choice}"
    )
    legend = tag(
        "p",
        tag("span", "carries loss, a line between tokens", class_="loss"),
        tag("span", "image tokens × their number", class_="picture"),
        tag("span", "the template's own tokens", class_="mark"),
        tag("span", "text without loss"),
        class_="legend",
    )
    return join(
        tag("style", Html(_STYLE)), tag("h1", "What the model is given"), tag("p", model), tag("p", facts), legend
    )


def _show_row(split: Split, row: int, lengths: RowLengths, chat: ChatFormat, *, last_turn_only: bool) -> Html:
    stored = split.read_row(row)
    images = list(open_rows(split)[row]["images"])
    arguments: dict[str, Any] = {"text": [chat.render(stored["messages"])], "add_special_tokens": False}
    if images:
        arguments["images"] = [images]
    ids = [int(token) for token in chat.processor(**arguments)["input_ids"][0]]
    labels = mask_labels(ids, chat.rules, last_turn_only=last_turn_only)
    learned = sum(label >= 0 for label in labels)
    wrong = "" if len(ids) == lengths.tokens[row] else f", {int(lengths.tokens[row])} were foreseen"
    heading = tag(
        "h3",
        tag("b", f"row {row}"),
        f"{len(ids):,} tokens{wrong}; {int(lengths.image_tokens[row]):,} for images, {learned:,} with loss "
        f"({learned / max(len(ids), 1):.1%})",
    )
    runs = tag("div", [_show_run(run) for run in token_runs(ids, labels, chat)], class_="tokens", dir="auto")
    # a row without an id of its own is named by its source
    names = dict.fromkeys([stored["id"], stored["source"]])
    return tag("article", heading, _show_pictures(stored), runs, tag("p", " · ".join(names), class_="soft"))


def _show_pictures(stored: dict[str, Any]) -> Html | None:
    from vlmdata.pages.pictures import show_stored

    pairs = zip(stored["images"], stored["image_info"], strict=True)
    figures = [
        show_stored(image, info, f"{info['width']}×{info['height']} px", side_px=_THUMBNAIL_PX) for image, info in pairs
    ]
    return tag("div", figures, class_="pictures") if figures else None


def _show_run(run: TokenRun) -> Html:
    if run.kind == "picture":
        times = f" ×{run.tokens:,}" if run.tokens > 1 else ""
        return tag("span", run.pieces[0] + times, class_="picture")
    if run.kind == "loss":
        return tag("span", [tag("i", _show_breaks(piece)) for piece in run.pieces], class_="loss")
    text = _show_breaks("".join(run.pieces))
    return tag("span", text, class_="mark" if run.kind == "special" else None)


def _show_breaks(text: str) -> str:
    """A line break is a token of its own or a part of one: it is seen as well as obeyed."""
    return text.replace("\n", "↵\n")
