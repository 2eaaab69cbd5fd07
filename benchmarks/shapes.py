"""Sizes of published models as their config.json files give them; the weights that benchmarks put in are random."""

from __future__ import annotations

from typing import Any

__all__ = ["SHAPES"]

_QWEN2_5_VISION = {
    **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112},
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_PIXTRAL_VISION = {
    **{"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "num_attention_heads": 16},
    "head_dim": 64,
}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2-vl-2b": {
        "family": "qwen2-vl",
        "tie_word_embeddings": True,
        "text": {
            **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
            **{"num_attention_heads": 12, "num_key_value_heads": 2, "mrope_section": [16, 24, 24]},
        },
        "vision": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16},
    },
    "qwen2.5-vl-3b": {
        "family": "qwen2.5-vl",
        "tie_word_embeddings": True,
        "text": {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36},
            **{"num_attention_heads": 16, "num_key_value_heads": 2, "mrope_section": [16, 24, 24]},
        },
        "vision": {**_QWEN2_5_VISION, "out_hidden_size": 2048},
    },
    "qwen2.5-vl-7b": {
        "family": "qwen2.5-vl",
        "tie_word_embeddings": False,
        "text": {
            **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
            **{"num_attention_heads": 28, "num_key_value_heads": 4, "mrope_section": [16, 24, 24]},
        },
        "vision": {**_QWEN2_5_VISION, "out_hidden_size": 3584},
    },
    "qwen3-vl-8b": {
        "family": "qwen3-vl",
        "tie_word_embeddings": False,
        "text": {
            **{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "mrope_section": [24, 20, 20]},
        },
        "vision": {
            **{"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096},
            **{"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]},
        },
    },
    "gemma3-4b": {
        "family": "gemma3",
        "tie_word_embeddings": True,
        "text": {
            **{"vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
            **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256},
            "sliding_window": 1024,
        },
        "vision": {
            **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
            **{"image_size": 896, "patch_size": 14},
        },
        "top": {"mm_tokens_per_image": 256},
        "image_processor": {"size": {"height": 896, "width": 896}},
        "processor": {"image_seq_length": 256},
    },
    "llama3.2-vision-11b": {
        "family": "llama3.2-vision",
        "tie_word_embeddings": False,
        "text": {
            **{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 40},
            **{"num_attention_heads": 32, "num_key_value_heads": 8},
            "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        },
        "vision": {
            **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8},
            **{"attention_heads": 16, "image_size": 560, "patch_size": 14, "vision_output_dim": 7680},
            "intermediate_layers_indices": [3, 7, 15, 23, 30],
        },
        "image_processor": {"size": {"height": 560, "width": 560}},
    },
    "pixtral-12b": {
        "family": "pixtral",
        "tie_word_embeddings": False,
        "text": {
            **{"vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        },
        "vision": {**_PIXTRAL_VISION, "image_size": 1024, "patch_size": 16},
    },
    "ministral3-3b": {
        "family": "ministral3",
        "tie_word_embeddings": True,
        "text": {
            **{"vocab_size": 131072, "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
        },
        "vision": {**_PIXTRAL_VISION, "image_size": 1540, "patch_size": 14},
    },
    "llava-1.5-7b": {
        "family": "llava-1.5",
        "tie_word_embeddings": False,
        "text": {
            **{"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
            **{"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128},
        },
        "vision": {
            **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
            **{"image_size": 336, "patch_size": 14, "projection_dim": 768},
        },
        "top": {"image_seq_length": 576},
        "image_processor": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    },
}
"""By name: the family, the sizes of both towers, and what of the config and the processor depends on them."""
