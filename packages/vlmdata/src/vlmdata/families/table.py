"""The families, with the numbers of their hub models."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from vlmdata.errors import ConfigError
from vlmdata.families.family import Family, HubModel
from vlmdata.families.grids import CropGrid, PatchGrid, PinpointGrid, RowGrid, StretchGrid, TileGrid

__all__ = ["FAMILIES", "find_family", "find_hub_hint", "get_family"]

CHATML: dict[str, Any] = {
    "instruction_part": "<|im_start|>user\n",
    "response_part": "<|im_start|>assistant\n",
    "stop_tokens": ("<|im_end|>", "<|endoftext|>"),
    "vision_module": "model.visual",
}
BRACKETS: dict[str, Any] = {"instruction_part": "[INST]", "response_part": "[/INST]", "stop_tokens": ("</s>",)}
PROJECTED: dict[str, Any] = {
    "vision_module": "model.vision_tower",
    "connector_modules": ("model.multi_modal_projector",),
}
"""Parts that several families share."""


def _hub_models(pattern: str, billions: Mapping[str, float]) -> tuple[HubModel, ...]:
    """Return the models `pattern` with each size in place of `{}`."""
    return tuple(
        HubModel(id=f"unsloth/{pattern.format(size)}", billion_parameters=count) for size, count in billions.items()
    )


_FAMILIES = (
    Family(
        name="qwen2-vl",
        title="Qwen2-VL",
        transformers_class="Qwen2VLForConditionalGeneration",
        model_type="qwen2_vl",
        connector_modules=("model.visual.merger",),
        grid=PatchGrid(patch_px=14, merge=2, min_pixels=56 * 56, max_pixels=12_845_056),
        resizing="rounded to multiples of 28 px",
        box_coordinates="relative-1000",
        hub_models=_hub_models("Qwen2-VL-{}-Instruct", {"2B": 2.2, "7B": 8.3}),
        **CHATML,
    ),
    Family(
        name="qwen2.5-vl",
        title="Qwen2.5-VL",
        transformers_class="Qwen2_5_VLForConditionalGeneration",
        model_type="qwen2_5_vl",
        connector_modules=("model.visual.merger",),
        grid=PatchGrid(patch_px=14, merge=2, min_pixels=56 * 56, max_pixels=12_845_056),
        resizing="rounded to multiples of 28 px",
        box_coordinates="absolute",
        hub_models=_hub_models("Qwen2.5-VL-{}-Instruct", {"3B": 3.8, "7B": 8.3, "32B": 33.5, "72B": 73.4}),
        **CHATML,
    ),
    Family(
        name="qwen3-vl",
        title="Qwen3-VL",
        transformers_class="Qwen3VLForConditionalGeneration",
        model_type="qwen3_vl",
        connector_modules=("model.visual.merger", "model.visual.deepstack_merger_list"),
        grid=PatchGrid(patch_px=16, merge=2, min_pixels=256 * 256, max_pixels=4096 * 4096),
        resizing="rounded to multiples of 32 px, enlarged below 256x256 px in all",
        box_coordinates="relative-1000",
        hub_models=_hub_models("Qwen3-VL-{}-Instruct", {"2B": 2.1, "4B": 4.4, "8B": 8.8, "32B": 33.4}),
        **CHATML,
    ),
    Family(
        name="gemma3",
        title="Gemma 3",
        transformers_class="Gemma3ForConditionalGeneration",
        model_type="gemma3",
        instruction_part="<start_of_turn>user\n",
        response_part="<start_of_turn>model\n",
        stop_tokens=("<end_of_turn>", "<eos>"),
        grid=StretchGrid(size_px=(896, 896), tokens=256, patch_px=14),
        resizing="stretched to 896x896 px",
        hub_models=_hub_models("gemma-3-{}-it", {"4b": 4.3, "12b": 12.2, "27b": 27.4}),
        **PROJECTED,
    ),
    Family(
        name="llama3.2-vision",
        title="Llama 3.2 Vision",
        transformers_class="MllamaForConditionalGeneration",
        model_type="mllama",
        instruction_part="<|start_header_id|>user<|end_header_id|>\n\n",
        response_part="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop_tokens=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        vision_module="model.vision_model",
        connector_modules=("model.multi_modal_projector",),
        grid=TileGrid(tile_px=560, max_tiles=4, patch_px=14),
        resizing="fitted into up to 4 tiles of 560x560 px, enlarged until a side fills one",
        text_sees_later_images=False,
        system_with_images=False,
        hub_models=_hub_models("Llama-3.2-{}-Vision-Instruct", {"11B": 10.7, "90B": 88.6}),
    ),
    Family(
        name="pixtral",
        title="Pixtral",
        transformers_class="LlavaForConditionalGeneration",
        model_type="llava",
        vision_types=("pixtral",),
        grid=RowGrid(patch_px=16, merge=1, longest_px=1024),
        resizing="shrunk to a longest side of 1024 px, rounded up to multiples of 16 px",
        hub_models=_hub_models("Pixtral-{}-2409", {"12B": 12.7}),
        **BRACKETS,
        **PROJECTED,
    ),
    Family(
        name="ministral3",
        title="Ministral 3",
        transformers_class="Mistral3ForConditionalGeneration",
        model_type="mistral3",
        grid=RowGrid(patch_px=14, merge=2, longest_px=1540),
        resizing="shrunk to a longest side of 1540 px, rounded up to multiples of 28 px",
        hub_models=_hub_models("Ministral-3-{}-Instruct-2512", {"3B": 3.8, "8B": 8.9, "14B": 13.9}),
        **BRACKETS,
        **PROJECTED,
    ),
    Family(
        name="llava-1.5",
        title="LLaVA 1.5",
        transformers_class="LlavaForConditionalGeneration",
        model_type="llava",
        text_types=("llama",),
        vision_types=("clip_vision_model",),
        instruction_part="USER:",
        response_part="ASSISTANT:",
        stop_tokens=("</s>",),
        template_ends_turns=False,
        grid=CropGrid(crop_px=(336, 336), patch_px=14, added_tokens=0),
        resizing="brought to a shorter side of 336 px, of which the central square is kept and the rest lost",
        keeps_image_places=False,
        hub_models=_hub_models("llava-1.5-{}-hf", {"7b": 7.1}),
        **PROJECTED,
    ),
    Family(
        name="llava-1.6",
        title="LLaVA 1.6 (Mistral)",
        transformers_class="LlavaNextForConditionalGeneration",
        model_type="llava_next",
        text_types=("mistral",),
        grid=PinpointGrid(
            pinpoints=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
            tile_px=336,
            patch_px=14,
            added_tokens=0,
        ),
        resizing="stretched to a base view of 336x336 px, and fitted into two to four tiles of that size",
        keeps_image_places=False,
        hub_models=_hub_models("llava-v1.6-mistral-{}-hf", {"7b": 7.6}),
        **BRACKETS,
        **PROJECTED,
    ),
)

FAMILIES: dict[str, Family] = {family.name: family for family in _FAMILIES}
"""Every family by its name on the command line."""

OLDER_IDS = {"ministral-8b-vision": "unsloth/Ministral-3-8B-Instruct-2512"}
"""Beginnings of hub ids that guides name and that never were, or were renamed; with what is meant."""


def get_family(name: str) -> Family:
    """Return a family by its name.

    Raises:
        ConfigError: There is none of that name; the message has the nearest one and all known ones.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name.lower(), FAMILIES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown family {name!r}: {hint}known are {', '.join(FAMILIES)}")


def find_family(config: Mapping[str, Any]) -> Family | None:
    """Return the family that a model's config.json belongs to, or None where it is not a known one.

    `llava` is the type of Pixtral and of LLaVA 1.5, which differ by their vision tower; LLaVA variants on other
    language models have other templates, and are none of the families. Mistral Small 3 counts as `ministral3`: class,
    grid and markers are the same.
    """
    text_type = (config.get("text_config") or {}).get("model_type")
    vision_type = (config.get("vision_config") or {}).get("model_type")
    for family in FAMILIES.values():
        if (
            config.get("model_type") == family.model_type
            and (not family.text_types or text_type in family.text_types)
            and (not family.vision_types or vision_type in family.vision_types)
        ):
            return family
    return None


def find_hub_hint(model_id: str) -> str | None:
    """Return the hub id that an id probably means: one from older guides, or one close to a known id; else None."""
    name = model_id.rpartition("/")[2].lower()
    if meant := next((meant for older, meant in OLDER_IDS.items() if name.startswith(older)), None):
        return meant
    known = {model.id.rpartition("/")[2].lower(): model.id for family in _FAMILIES for model in family.hub_models}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    return known[near[0]] if near and known[near[0]] != model_id else None
