"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.options import HEAD_SIZE, TinyOptions
from vlmtrain.tiny.templates import read_trl_template
from vlmtrain.tiny.vocabulary import train_bpe

__all__ = ["build_qwen2_5_vl", "build_qwen2_vl", "build_qwen3_vl"]

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

INTERLEAVED_MROPE_SECTION = [6, 5, 5]
"""Those of Qwen3-VL, which are interleaved: the real 24, 20, 20 of a 128-channel head, at 32 channels."""


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
        "num_key_value_heads": options.kv_heads,
        "max_position_embeddings": 32768,
        "initializer_range": options.hidden_size**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE_SECTION},
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision_config(options: TinyOptions, patch_size: int) -> dict[str, Any]:
    return {
        "depth": options.vision_layers,
        "hidden_size": options.vision_hidden_size,
        "intermediate_size": 3 * options.vision_hidden_size,
        "num_heads": options.vision_heads,
        "patch_size": patch_size,
        "out_hidden_size": options.hidden_size,
        "initializer_range": options.vision_hidden_size**-0.5,
    }


def _set_generation(model: Any, tokenizer: Any) -> None:
    """Stop at either end token, as the real generation_config.json does; greedy, which leaves no sampling to chance."""
    model.generation_config.update(
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )


def _processor_parts(tokenizer: Any, patch_size: int, min_pixels: int, max_pixels: int) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer,
        "image_processor": transformers.Qwen2VLImageProcessor(
            patch_size=patch_size, size={"shortest_edge": min_pixels, "longest_edge": max_pixels}
        ),
    }


def build_qwen2_vl(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Qwen2-VL: full vision attention, multimodal rotary positions."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 14
    vision = _vision_config(options, patch_size)
    config = transformers.Qwen2VLConfig(
        text_config=_text_config(options, tokenizer),
        vision_config={
            **{name: vision[name] for name in ("depth", "num_heads", "patch_size", "initializer_range")},
            # In this family `hidden_size` is the width of the language model.
            "embed_dim": options.vision_hidden_size,
            "hidden_size": options.hidden_size,
            "mlp_ratio": 3,
        },
        tie_word_embeddings=False,
        **_token_ids(tokenizer),
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    _set_generation(model, tokenizer)
    processor = transformers.Qwen2VLProcessor(
        video_processor=transformers.Qwen2VLVideoProcessor(patch_size=patch_size),
        # The template of Qwen2-VL is that of Qwen2.5-VL.
        chat_template=read_trl_template("qwen2_5_vl"),
        **_processor_parts(tokenizer, patch_size, 56 * 56, 12_845_056),
    )
    return model, processor


def build_qwen2_5_vl(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Qwen2.5-VL: windowed vision attention except in the last layer, multimodal rotary positions."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 14
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text_config(options, tokenizer),
        vision_config={
            **_vision_config(options, patch_size),
            "window_size": 8 * patch_size,
            "fullatt_block_indexes": [options.vision_layers - 1],
        },
        tie_word_embeddings=False,
        **_token_ids(tokenizer),
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    _set_generation(model, tokenizer)
    processor = transformers.Qwen2_5_VLProcessor(
        video_processor=transformers.Qwen2VLVideoProcessor(patch_size=patch_size),
        chat_template=read_trl_template("qwen2_5_vl"),
        **_processor_parts(tokenizer, patch_size, 56 * 56, 12_845_056),
    )
    return model, processor


def build_qwen3_vl(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Qwen3-VL: learned and rotary vision positions, vision features added to the first language layers."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 16
    text = _text_config(options, tokenizer)
    text["head_dim"] = HEAD_SIZE
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": INTERLEAVED_MROPE_SECTION,
        "mrope_interleaved": True,
    }
    # Each of these layers feeds one of the first language layers.
    deepstack = list(range(min(options.vision_layers, options.layers, 3)))
    config = transformers.Qwen3VLConfig(
        text_config=text,
        vision_config={
            **_vision_config(options, patch_size),
            "num_position_embeddings": 16 * 16,
            "deepstack_visual_indexes": deepstack,
        },
        tie_word_embeddings=False,
        **_token_ids(tokenizer),
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    _set_generation(model, tokenizer)
    processor = transformers.Qwen3VLProcessor(
        video_processor=transformers.Qwen3VLVideoProcessor(patch_size=patch_size),
        chat_template=read_trl_template("qwen3_vl"),
        **_processor_parts(tokenizer, patch_size, 256 * 256, 4096 * 4096),
    )
    return model, processor
