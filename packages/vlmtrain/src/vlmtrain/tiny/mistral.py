"""Tiny Pixtral and Ministral 3."""

from __future__ import annotations

from typing import Any

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.options import HEAD_SIZE, TinyOptions
from vlmtrain.tiny.templates import read_own_template
from vlmtrain.tiny.tokenizer import build_tokenizer

__all__ = ["build_ministral3", "build_pixtral"]

SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
)
"""The special tokens of the real tokenizer, with their ids."""


def _build_tokenizer(options: TinyOptions) -> Any:
    return build_tokenizer(
        vocab_size=options.vocab_size,
        first=SPECIAL_TOKENS,
        roles={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
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
        "sliding_window": None,
        "initializer_range": options.hidden_size**-0.5,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _vision_config(options: TinyOptions, patch_size: int, image_size: int) -> dict[str, Any]:
    return {
        "model_type": "pixtral",
        "hidden_size": options.vision_hidden_size,
        "intermediate_size": 3 * options.vision_hidden_size,
        "num_hidden_layers": options.vision_layers,
        "num_attention_heads": options.vision_heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "initializer_range": options.vision_hidden_size**-0.5,
    }


def _build_processor(tokenizer: Any, patch_size: int, merge: int, image_size: int, template: str) -> Any:
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            patch_size={"height": patch_size, "width": patch_size}, size={"longest_edge": image_size}
        ),
        tokenizer=tokenizer,
        patch_size=patch_size,
        spatial_merge_size=merge,
        chat_template=read_own_template(template),
    )


def _set_generation(model: Any, tokenizer: Any) -> None:
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )


def build_pixtral(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Pixtral: any size in rows of patches, each row ended by a token, joined to a Mistral."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 16
    image_size = 64 * patch_size
    config = transformers.LlavaConfig(
        text_config={**_text_config(options, tokenizer, "mistral"), "max_position_embeddings": 32768},
        vision_config=_vision_config(options, patch_size, image_size),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    _set_generation(model, tokenizer)
    return model, _build_processor(tokenizer, patch_size, 1, image_size, "pixtral")


def build_ministral3(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Ministral 3: as Pixtral, with 2 x 2 patches merged into a token and long-context rotary positions."""
    tokenizer = _build_tokenizer(options)
    patch_size = options.patch_size or 14
    image_size = 110 * patch_size
    config = transformers.Mistral3Config(
        text_config=_text_config(options, tokenizer, "ministral3"),
        vision_config=_vision_config(options, patch_size, image_size),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    model = transformers.Mistral3ForConditionalGeneration(config)
    _set_generation(model, tokenizer)
    return model, _build_processor(tokenizer, patch_size, 2, image_size, "ministral3")
