"""A tokenizer over the tiny vocabulary, with a family's special tokens where the real one has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.vocabulary import WORD_PATTERN, train_bpe

__all__ = ["build_tokenizer"]


def build_tokenizer(
    *,
    vocab_size: int,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    roles: Mapping[str, str],
    named: Mapping[str, str] | None = None,
) -> Any:
    """Build a byte-level tokenizer that puts a BOS token in front of a text, as the real ones do.

    The real tokenizers of Gemma and LLaVA are SentencePiece models; this one is byte-level for all families, so that
    every text comes back unchanged.

    Args:
        vocab_size: Tokens of the text vocabulary.
        first: Special tokens before the text vocabulary, with ids from 0.
        last: Special tokens after it.
        roles: `bos_token`, `eos_token`, `pad_token` and, where there is one, `unk_token`.
        named: Further tokens that a processor asks its tokenizer for, such as `image_token`.

    Returns:
        A transformers `PreTrainedTokenizerFast`.
    """
    words, merges = train_bpe(vocab_size)
    tokens = [*first, *words, *last]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*first, *last)])
    bos = roles["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=dict(named or {}),
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
        **roles,
    )
