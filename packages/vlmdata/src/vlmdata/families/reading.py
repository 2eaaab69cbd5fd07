"""An image grid from the config of the processor in hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmdata.errors import ConfigError
from vlmdata.families.family import Family
from vlmdata.families.grids import (
    CropGrid,
    ImageGrid,
    PatchGrid,
    PinpointGrid,
    RowGrid,
    StretchGrid,
    TileGrid,
)

__all__ = ["read_grid"]

Config = Mapping[str, Any]


def read_grid(family: Family, processor_config: Config, preprocessor_config: Config | None = None) -> ImageGrid:
    """Return the image grid of a processor.

    Args:
        family: The model's family, which says which kind of grid it is.
        processor_config: processor_config.json, or `processor.to_dict()`; its `image_processor` is used if it has one.
        preprocessor_config: preprocessor_config.json of older models, which have the image processor apart.

    Raises:
        ConfigError: A number is missing or is not one.
    """
    image = preprocessor_config or processor_config.get("image_processor") or processor_config
    reader = READERS[type(family.grid)]
    try:
        return reader(family.grid, processor_config, image)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"the image processor's config is not that of {family.title}: {error!r}") from error


def _read_patches(known: Any, outer: Config, image: Config) -> ImageGrid:
    size = image.get("size") or {}
    bounds = {
        # Configs from before transformers 5 name the bounds themselves, some of them within `size`.
        old: int(_first(image.get(old), size.get(old), size.get(new)))
        for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    }
    return PatchGrid(patch_px=int(image["patch_size"]), merge=int(image["merge_size"]), **bounds)


def _read_rows(known: Any, outer: Config, image: Config) -> ImageGrid:
    patch = outer.get("patch_size") or image["patch_size"]
    return RowGrid(
        patch_px=int(patch["height"] if isinstance(patch, Mapping) else patch),
        merge=int(outer.get("spatial_merge_size", 1)),
        longest_px=int(image["size"]["longest_edge"]),
    )


def _read_stretch(known: Any, outer: Config, image: Config) -> ImageGrid:
    return StretchGrid(
        size_px=(int(image["size"]["width"]), int(image["size"]["height"])),
        tokens=int(outer.get("image_seq_length", known.tokens)),
        patch_px=known.patch_px,
    )


def _read_tiles(known: Any, outer: Config, image: Config) -> ImageGrid:
    return TileGrid(
        tile_px=int(image["size"]["height"]), max_tiles=int(image["max_image_tiles"]), patch_px=known.patch_px
    )


def _added_tokens(outer: Config) -> int:
    """Tokens besides the patches': `default` drops the class token again that the tower adds."""
    dropped = 1 if outer["vision_feature_select_strategy"] == "default" else 0
    return int(outer["num_additional_image_tokens"]) - dropped


def _read_crop(known: Any, outer: Config, image: Config) -> ImageGrid:
    return CropGrid(
        crop_px=(int(image["crop_size"]["width"]), int(image["crop_size"]["height"])),
        patch_px=int(outer["patch_size"]),
        added_tokens=_added_tokens(outer),
    )


def _read_pinpoints(known: Any, outer: Config, image: Config) -> ImageGrid:
    return PinpointGrid(
        pinpoints=tuple((int(height), int(width)) for height, width in image["image_grid_pinpoints"]),
        tile_px=int(image["crop_size"]["height"]),
        patch_px=int(outer["patch_size"]),
        added_tokens=_added_tokens(outer),
    )


def _first(*values: Any) -> Any:
    present = [value for value in values if value is not None]
    return present[0]


READERS = {
    PatchGrid: _read_patches,
    RowGrid: _read_rows,
    StretchGrid: _read_stretch,
    TileGrid: _read_tiles,
    CropGrid: _read_crop,
    PinpointGrid: _read_pinpoints,
}
