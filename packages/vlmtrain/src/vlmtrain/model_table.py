"""`vlmtrain models`: what is known of each family, as a table; nothing heavy is imported for it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from vlmdata.families import FAMILIES, Family, ImageGrid, fixed_point_size, get_family

__all__ = ["describe_families", "describe_family", "family_facts"]

_EXAMPLE = (1000, 750)
_WIDTH = 108


def family_facts(family: Family) -> dict[str, Any]:
    """What is known of a family, for `--json`.

    Args:
        family: One of `vlmdata.families.FAMILIES`.
    """
    return {
        "family": family.name,
        "title": family.title,
        "class": family.transformers_class,
        "model_type": family.model_type,
        "instruction_part": family.instruction_part,
        "response_part": family.response_part,
        "stop_tokens": list(family.stop_tokens),
        "template_ends_turns": family.template_ends_turns,
        "side_step_px": family.grid.side_step_px,
        "resizing": family.resizing,
        "example": _measure_example(family.grid),
        "vision_module": family.vision_module,
        "connector_modules": list(family.connector_modules),
        "language_module": family.language_module,
        "rows": _row_rules(family),
        "box_coordinates": family.box_coordinates,
        "hub_models": [
            {
                "id": model.id,
                "billion_parameters": model.billion_parameters,
                "vram_4bit_gb": model.vram_4bit_gb,
                "vram_16bit_gb": model.vram_16bit_gb,
            }
            for model in family.hub_models
        ],
    }


def describe_families(names: Iterable[str] = ()) -> str:
    """The families as text: a line each, or all that is known of those that are named.

    Args:
        names: Families as on the command line.

    Raises:
        ConfigError: There is no family of a name.
    """
    chosen = [get_family(name) for name in names]
    if chosen:
        return "\n\n".join(describe_family(family) for family in chosen)
    width, height = _EXAMPLE
    lines = [f"{'family':<16} {'class':<36} {f'{width}x{height} px':<25} {'smallest known model':<40} {'4-bit':>7}"]
    for family in FAMILIES.values():
        example, model = _measure_example(family.grid), family.hub_models[0]
        size = f"{example['processed_px'][0]}x{example['processed_px'][1]}, {_describe_tokens(family.grid)}"
        lines.append(
            f"{family.name:<16} {family.transformers_class:<36} {size:<25} {model.id:<40} {model.vram_4bit_gb:>4.1f} GB"
        )
    lines.append(
        "\nAll that is known of one: vlmtrain models FAMILY. A tiny one to try a pipeline with: vlmtrain tiny FAMILY "
        "DIR.\nOther models train too where their chat template shows how it opens a turn; else --instruction-part "
        "and\n--response-part say so."
    )
    return "\n".join(lines)


def describe_family(family: Family) -> str:
    """All that is known of a family, in some twenty lines."""
    example = _measure_example(family.grid)
    width, height = _EXAMPLE
    stays = fixed_point_size(family.grid, width, height, max_side=max(_EXAMPLE), min_side=1)
    kept = "no stored size is left alone" if stays is None else f"stored as {stays[0]}x{stays[1]} px it is left alone"
    ends = " and ".join(repr(token) for token in family.stop_tokens)
    entries = [
        ("class", f"{family.transformers_class}, model_type {family.model_type}"),
        ("markers", f"user {family.instruction_part!r}, assistant {family.response_part!r}"),
        ("answers end", ends if family.template_ends_turns else f"{ends}, added to the template, which writes none"),
        ("pictures", family.resizing),
        (
            "",
            f"{width}x{height} px become {example['processed_px'][0]}x{example['processed_px'][1]}, "
            f"{_describe_tokens(family.grid)}; {kept}",
        ),
        ("rows", "; ".join(_row_rules(family))),
        ("boxes", family.box_coordinates or "none"),
        ("vision", f"{family.vision_module} (--finetune-vision-layers)"),
        ("connector", f"{', '.join(family.connector_modules)} (--connector)"),
        ("language", f"{family.language_module} (--finetune-language-layers)"),
    ]
    lines = [f"{family.name}: {family.title}"]
    for title, text in entries:
        lines += textwrap.wrap(text, _WIDTH, initial_indent=f"  {title:<12} ", subsequent_indent=" " * 15)
    lines.append(f"  {'hub models':<12} {'':<44} {'parameters':>10} {'LoRA 4-bit':>11} {'16-bit':>9}  (rough)")
    lines += [
        f"  {'':<12} {each.id:<44} {each.billion_parameters:>8.1f} B {each.vram_4bit_gb:>8.1f} GB "
        f"{each.vram_16bit_gb:>6.1f} GB"
        for each in family.hub_models
    ]
    return "\n".join(lines)


def _measure_example(grid: ImageGrid) -> dict[str, Any]:
    return {
        "px": list(_EXAMPLE),
        "processed_px": list(grid.processed_size(*_EXAMPLE)),
        "tokens": grid.image_tokens(*_EXAMPLE),
        "vision_patches": grid.vision_patches(*_EXAMPLE),
    }


def _describe_tokens(grid: ImageGrid) -> str:
    tokens = grid.image_tokens(*_EXAMPLE)
    return "cross-attention" if tokens == 1 else f"{tokens} tokens"


def _row_rules(family: Family) -> list[str]:
    """What its rows may hold, in words."""
    rules = []
    if family.max_images is not None:
        rules.append(f"at most {family.max_images} images")
    if not family.keeps_image_places:
        rules.append("images before the text of their turn (the template moves them there)")
    elif not family.text_sees_later_images:
        rules.append("images before the text of their turn (text never attends to a later one)")
    else:
        rules.append("images anywhere in a turn")
    if not family.system_with_images:
        rules.append("no system turn beside an image in older templates")
    return rules
