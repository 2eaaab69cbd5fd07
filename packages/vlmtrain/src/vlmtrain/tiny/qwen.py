"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.options import TinyOptions
from vlmtrain.tiny.templates import read_trl_template
from vlmtrain.tiny.vocabulary import train_bpe

__all__ = ["build_qwen2_5_vl"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The special tokens of the real tokenizer, in its order; they follow the text vocabulary there too."""

MROPE_SECTION = [4, 6, 6]
"""Rotary frequencies for time, height and width: the real 16, 24, 24 of a 128-channel head, at 32 channels."""


def _build_tokenizer(options: TinyOptions) -> Any:
    """Return a tokenizer of the real class: text is normalised to NFC, digits are single tokens."""
    vocab, merges = train_bpe(options.vocab_size)
    for token in SPECIAL_TOKENS:
        vocab[token] = len(vocab)
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|endoftext|>", "<|im_end|>")],
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _token_ids(tokenizer: Any) -> dict[str, int]:
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _text_config(options: TinyOptions, tokenizer: Any) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": options.hidden_size,
        "intermediate_size": 3 * options.hidden_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "max_position_embeddings": 32768,
        "initializer_range": options.hidden_size**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE_SECTION},
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _set_generation(model: Any, tokenizer: Any) -> None:
    """Stop at either end token, as the real generation_config.json does; greedy, which leaves no sampling to chance."""
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = tokenizer.pad_token_id


def build_qwen2_5_vl(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Qwen2.5-VL: windowed vision attention except in the last layer, multimodal rotary positions."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 14
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text_config(options, tokenizer),
        vision_config={
            "depth": options.vision_layers,
            "hidden_size": options.vision_hidden_size,
            "intermediate_size": 3 * options.vision_hidden_size,
            "num_heads": options.vision_heads,
            "patch_size": patch_size,
            "window_size": 8 * patch_size,
            "out_hidden_size": options.hidden_size,
            "fullatt_block_indexes": [options.vision_layers - 1],
            "initializer_range": options.vision_hidden_size**-0.5,
        },
        tie_word_embeddings=False,
        **_token_ids(tokenizer),
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    _set_generation(model, tokenizer)
    sizes = {"shortest_edge": 4 * 28 * 28, "longest_edge": 16384 * 28 * 28}
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=patch_size, size=sizes),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(patch_size=patch_size),
        chat_template=read_trl_template("qwen2_5_vl"),
    )
    return model, processor
