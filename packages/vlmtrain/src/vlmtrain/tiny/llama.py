"""Tiny Llama 3.2 Vision (Mllama)."""

from __future__ import annotations

from typing import Any

from vlmtrain.tiny.huggingface import transformers
from vlmtrain.tiny.options import TinyOptions
from vlmtrain.tiny.templates import read_own_template
from vlmtrain.tiny.tokenizer import build_tokenizer

__all__ = ["build_llama3_2_vision"]

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
PATCHES_PER_SIDE = 8
"""Patches along a tile; the real model has 40."""
MAX_TILES = 4
OPEN_GATE = 0.5
"""Value of the gates that start closed in a new model: a trained one's are open, and with closed gates the text sees
nothing of the picture."""


def build_llama3_2_vision(options: TinyOptions) -> tuple[Any, Any]:
    """Build a Llama 3.2 Vision: tiles that every second layer of the language model sees by cross-attention."""
    tokenizer = build_tokenizer(
        vocab_size=options.vocab_size,
        last=SPECIAL_TOKENS,
        roles={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
    )
    patch_size = options.patch_size or 14
    tile_size = PATCHES_PER_SIDE * patch_size
    end_ids = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
    image_id = tokenizer.convert_tokens_to_ids("<|image|>")
    cross_layers = list(range(1, options.layers, 2)) or [0]
    config = transformers.MllamaConfig(
        text_config={
            # As in the real model the image token lies beyond the output head: it can be read, never written.
            "vocab_size": image_id,
            "hidden_size": options.hidden_size,
            "intermediate_size": 3 * options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "num_key_value_heads": options.kv_heads,
            "cross_attention_layers": cross_layers,
            "max_position_embeddings": 32768,
            "initializer_range": options.hidden_size**-0.5,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": end_ids,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=_vision_config(options, tile_size, patch_size),
        image_token_index=image_id,
    )
    model = transformers.MllamaForConditionalGeneration(config)
    _open_gates(model)
    model.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end_ids, pad_token_id=tokenizer.pad_token_id
    )
    processor = transformers.MllamaProcessor(
        image_processor=transformers.MllamaImageProcessor(
            size={"height": tile_size, "width": tile_size}, max_image_tiles=MAX_TILES
        ),
        tokenizer=tokenizer,
        chat_template=read_own_template("llama3_2_vision"),
    )
    return model, processor


def _vision_config(options: TinyOptions, tile_size: int, patch_size: int) -> dict[str, Any]:
    """The last layer is one of the global ones, and the features of an earlier one join those at the end."""
    local_layers = max(1, options.vision_layers - 1)
    return {
        "hidden_size": options.vision_hidden_size,
        "intermediate_size": 3 * options.vision_hidden_size,
        "num_hidden_layers": local_layers,
        "num_global_layers": 1,
        "attention_heads": options.vision_heads,
        "image_size": tile_size,
        "patch_size": patch_size,
        "max_num_tiles": MAX_TILES,
        "intermediate_layers_indices": [local_layers // 2],
        "vision_output_dim": 2 * options.vision_hidden_size,
        "initializer_range": options.vision_hidden_size**-0.5,
    }


def _open_gates(model: Any) -> None:
    for name, weight in model.named_parameters():
        if name.endswith("gate") and weight.numel() == 1:
            weight.data.fill_(OPEN_GATE)
