"""Tiny Gemma 3."""

from __future__ import annotations

from typing import Any

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.options import HEAD_SIZE, TinyOptions
from vlmtrain.tiny.templates import read_trl_template
from vlmtrain.tiny.tokenizer import build_tokenizer

__all__ = ["build_gemma3"]

PATCHES_PER_SIDE = 16
TOKENS_PER_SIDE = 4
"""Patches are pooled 4 x 4 into a token, as in the real model, which has 64 patches and 16 tokens a side."""


def build_gemma3(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Gemma 3: one square view, whose tokens see each other both ways, and sliding windows but in one layer."""
    tokenizer = build_tokenizer(
        vocab_size=options.vocab_size,
        first=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        last=("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        # <eos> ends a text, <end_of_turn> a turn: generation stops at both.
        roles={"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>", "unk_token": "<unk>"},
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    )
    patch_size = options.patch_size or 14
    image_size = PATCHES_PER_SIDE * patch_size
    end_ids = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": options.hidden_size,
            "intermediate_size": 3 * options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.kv_heads,
            "head_dim": HEAD_SIZE,
            "query_pre_attn_scalar": HEAD_SIZE,
            "sliding_window": 128,
            "layer_types": ["sliding_attention"] * (options.layers - 1) + ["full_attention"],
            "initializer_range": options.hidden_size**-0.5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": end_ids,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": options.vision_hidden_size,
            "intermediate_size": 3 * options.vision_hidden_size,
            "num_hidden_layers": options.vision_layers,
            "num_attention_heads": options.vision_heads,
            "image_size": image_size,
            "patch_size": patch_size,
            "vision_use_head": False,
        },
        mm_tokens_per_image=TOKENS_PER_SIDE**2,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        initializer_range=options.hidden_size**-0.5,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    # A new model's projection is zero, and would show the text nothing of the picture.
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=options.vision_hidden_size**-0.5)
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end_ids, pad_token_id=tokenizer.pad_token_id
    )
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(
            size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        image_seq_length=TOKENS_PER_SIDE**2,
        chat_template=read_trl_template("gemma3"),
    )
    return model, processor
