"""A small byte-level BPE vocabulary, trained on the spot from `vlmtrain.tiny.corpus`."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from vlmtrain.tiny.corpus import CORPUS

__all__ = ["WORD_PATTERN", "train_bpe"]

#: Words with the space before them, one digit at a time, punctuation, white space.
WORD_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def _train(size: int) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def train_bpe(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a byte-level BPE: all 256 bytes are in it, so that any text can be encoded and comes back unchanged.

    Args:
        size: Tokens of the vocabulary, at most; 256 of them are the bytes.

    Returns:
        The tokens with their ids from 0, and the merges in order.
    """
    model = json.loads(_train(size))["model"]
    return dict(model["vocab"]), [(left, right) for left, right in model["merges"]]
