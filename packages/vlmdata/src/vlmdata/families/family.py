"""The description of a model family: how its chats look, what its rows may hold, what its processor does to sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.families.grids import ImageGrid

__all__ = ["Family", "HubModel", "row_problem"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubModel:
    """A known model on the Hugging Face hub."""

    id: str
    """`owner/name`."""
    billion_parameters: float
    """Vision tower included."""

    @property
    def vram_4bit_gb(self) -> float:
        """Rough GPU memory for LoRA in 4-bit with one picture of 1000 tokens a step; `vlmtrain plan` works it out."""
        return round(2 + 0.8 * self.billion_parameters, 1)

    @property
    def vram_16bit_gb(self) -> float:
        """The same in 16-bit."""
        return round(2.5 + 2.1 * self.billion_parameters, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What both programs need to know of a model family."""

    name: str
    """As on the command line."""
    title: str
    """For people."""
    transformers_class: str
    """The model's class in transformers."""
    model_type: str
    """`model_type` of config.json."""
    text_types: tuple[str, ...] = ()
    """`text_config.model_type` that belong to the family, where `model_type` alone does not tell; empty: any."""
    vision_types: tuple[str, ...] = ()
    """`vision_config.model_type`, likewise."""
    instruction_part: str
    """Text with which the chat template opens a user's turn."""
    response_part: str
    """Text with which it opens an assistant's turn."""
    stop_tokens: tuple[str, ...]
    """Tokens at which generation stops; the first one ends an assistant's turn."""
    template_ends_turns: bool = True
    """Whether the template writes a stop token after each answer. Without one the model never learns to stop."""
    vision_module: str
    """Name of the vision tower within the model."""
    connector_modules: tuple[str, ...]
    """Names of what carries pictures over to the language model."""
    language_module: str = "model.language_model"
    """Name of the language model."""
    grid: ImageGrid
    """The numbers of the hub models' image processor; `read_grid` takes those of the processor in hand."""
    resizing: str
    """What the processor does to a picture's size, in words."""
    keeps_image_places: bool = True
    """Whether the template leaves each image where it stands in a turn. If not, all images come first."""
    text_sees_later_images: bool = True
    """Whether text may stand before an image of its turn. If not, it never attends to that image."""
    system_with_images: bool = True
    """Whether all templates of the family allow a system turn beside images."""
    max_images: int | None = None
    """Images that a row may have; None: any number."""
    box_coordinates: str | None = None
    """How the family writes boxes: `relative-1000`, or `absolute` px of the processed picture; None: it has no way."""
    hub_models: tuple[HubModel, ...]
    """Known instruction-tuned models."""


def row_problem(family: Family, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return in words why a row cannot be represented by a family, or None.

    Args:
        family: The model's family.
        messages: The turns as in the shards, `{role, content: [{type, text}]}`.
    """
    kinds = [(message["role"], [part["type"] for part in message["content"]]) for message in messages]
    images = sum(parts.count("image") for _, parts in kinds)
    if not images:
        return None
    if family.max_images is not None and images > family.max_images:
        return f"{images} images, and {family.title} takes {family.max_images} in a row"
    if not family.system_with_images and any(role == "system" for role, _ in kinds):
        return f"a system turn beside an image, which templates of {family.title} refuse"
    text_first = any("image" in parts[parts.index("text") :] for _, parts in kinds if "text" in parts)
    if text_first and not family.keeps_image_places:
        return f"text before an image in a turn: the template of {family.title} would move the image to the front"
    if text_first and not family.text_sees_later_images:
        return f"text before an image in a turn: in {family.title} it never attends to that image"
    return None
