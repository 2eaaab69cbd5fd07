"""Tiny LLaVA 1.5 and LLaVA 1.6."""

from __future__ import annotations

from typing import Any

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.options import HEAD_SIZE, TinyOptions
from vlmtrain.tiny.templates import read_own_template, read_trl_template
from vlmtrain.tiny.tokenizer import build_tokenizer

__all__ = ["build_llava_1_5", "build_llava_1_6"]

PATCHES_PER_SIDE = 8
"""Patches along a view; the real towers have 24."""
PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Rows and columns of tiles that LLaVA 1.6 may cut a picture into."""


def _build_tokenizer(options: TinyOptions) -> Any:
    """The markers USER:, ASSISTANT: and [INST] are plain text here, as in the real tokenizers."""
    return build_tokenizer(
        vocab_size=options.vocab_size,
        first=("<unk>", "<s>", "</s>"),
        last=("<image>", "<pad>"),
        roles={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        named={"image_token": "<image>"},
    )


def _text_config(options: TinyOptions, tokenizer: Any, model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "vocab_size": len(tokenizer),
        "hidden_size": options.hidden_size,
        "intermediate_size": 3 * options.hidden_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "head_dim": HEAD_SIZE,
        "max_position_embeddings": 4096,
        "initializer_range": options.hidden_size**-0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision_config(options: TinyOptions, patch_size: int) -> dict[str, Any]:
    """A CLIP tower, of which the last layer is not used: features come from the one before."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": options.vision_hidden_size,
        "intermediate_size": 3 * options.vision_hidden_size,
        "num_hidden_layers": options.vision_layers + 1,
        "num_attention_heads": options.vision_heads,
        "image_size": PATCHES_PER_SIDE * patch_size,
        "patch_size": patch_size,
        "projection_dim": options.vision_hidden_size,
    }


def _view_sizes(patch_size: int) -> dict[str, dict[str, int]]:
    side = PATCHES_PER_SIDE * patch_size
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def _set_generation(model: Any, tokenizer: Any) -> None:
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def build_llava_1_5(options: TinyOptions) -> tuple[Any, Any]:
    """Build a LLaVA 1.5: one centre-cropped view, and a template that ends no answer."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 14
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=_text_config(options, tokenizer, "llama"),
            vision_config=_vision_config(options, patch_size),
            image_token_index=tokenizer.image_token_id,
            image_seq_length=PATCHES_PER_SIDE**2,
        )
    )
    _set_generation(model, tokenizer)
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(**_view_sizes(patch_size)),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=read_own_template("llava_1_5"),
    )
    return model, processor


def build_llava_1_6(options: TinyOptions) -> tuple[Any, Any]:
    """Build a LLaVA 1.6 on a Mistral: a base view and up to four tiles, with a line break after each row of patches."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 14
    side = PATCHES_PER_SIDE * patch_size
    pinpoints = [[rows * side, columns * side] for rows, columns in PINPOINTS]
    model = transformers.LlavaNextForConditionalGeneration(
        transformers.LlavaNextConfig(
            text_config={**_text_config(options, tokenizer, "mistral"), "sliding_window": None},
            vision_config=_vision_config(options, patch_size),
            image_token_index=tokenizer.image_token_id,
            image_seq_length=PATCHES_PER_SIDE**2,
            image_grid_pinpoints=pinpoints,
        )
    )
    _set_generation(model, tokenizer)
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **_view_sizes(patch_size)),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=read_trl_template("llava_next"),
    )
    return model, processor
