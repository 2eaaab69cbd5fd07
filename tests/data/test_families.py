"""The families' arithmetic against the real image processors, built offline with the hub models' numbers."""

import dataclasses
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata.errors import ConfigError
from vlmdata.families import (
    FAMILIES,
    find_family,
    find_hub_hint,
    fixed_point_size,
    get_family,
    read_grid,
    row_problem,
)

SIZES = [(1, 1), (10, 1900), (13, 1900), (28, 28), (336, 336), (559, 561), (560, 560), (1000, 1000), (1120, 2240)]
SIZES += [(300, 1000), (1000, 750), (4000, 3000), (20, 4000), (899, 31), (1540, 1541), (1024, 1025), (672, 1008)]


def random_sizes(count, seed, ratio=200.0):
    rng = random.Random(seed)
    sizes = [size for size in SIZES if max(size) <= ratio * min(size)]
    while len(sizes) < count:
        size = (round(2 ** rng.uniform(0, 12)), round(2 ** rng.uniform(0, 12)))
        if max(size) <= ratio * min(size):
            sizes.append(size)
    return sizes


def test_qwen_sizes_are_those_of_smart_resize():
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    for name in ("qwen2-vl", "qwen2.5-vl", "qwen3-vl"):
        grid = get_family(name).grid
        for bounds in ((grid.min_pixels, grid.max_pixels), (50_000, 300_000)):
            grid = dataclasses.replace(grid, min_pixels=bounds[0], max_pixels=bounds[1])
            processor = module.Qwen2VLImageProcessor(
                patch_size=grid.patch_px,
                merge_size=grid.merge,
                size={"shortest_edge": grid.min_pixels, "longest_edge": grid.max_pixels},
            )
            for width, height in random_sizes(2000, seed=1):
                expected = module.smart_resize(height, width, grid.side_step_px, grid.min_pixels, grid.max_pixels)
                assert grid.processed_size(width, height) == expected[::-1], (width, height)
                patches = processor.get_number_of_image_patches(height, width)
                assert grid.vision_patches(width, height) == patches
                assert grid.image_tokens(width, height) == patches // grid.merge**2


def test_qwen_refuses_what_smart_resize_refuses():
    with pytest.raises(ValueError, match="10x2001 px: one side is more than 200 times the other"):
        get_family("qwen2.5-vl").grid.processed_size(10, 2001)


def test_pixtral_and_ministral_sizes_are_those_of_the_processor():
    np = pytest.importorskip("numpy")
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pixtral")
    for name in ("pixtral", "ministral3"):
        grid = get_family(name).grid
        for width, height in random_sizes(1000, seed=2, ratio=900):
            picture = np.broadcast_to(np.uint8(0), (height, width, 3))
            size = module.get_resize_output_image_size(picture, grid.longest_px, grid.side_step_px, "channels_last")
            high, wide = size
            assert grid.processed_size(width, height) == (wide, high), (width, height)
            rows, columns = high // grid.side_step_px, wide // grid.side_step_px
            assert grid.image_tokens(width, height) == rows * columns + rows
            assert grid.vision_patches(width, height) == (high // grid.patch_px) * (wide // grid.patch_px)


def test_mllama_canvas_and_size_are_those_of_the_processor():
    module = pytest.importorskip("transformers.models.mllama.image_processing_mllama")
    for grid in (
        get_family("llama3.2-vision").grid,
        dataclasses.replace(get_family("llama3.2-vision").grid, max_tiles=9),
    ):
        for width, height in random_sizes(3000, seed=3, ratio=5000):
            high, wide = module.get_optimal_tiled_canvas(height, width, grid.max_tiles, grid.tile_px)
            columns, rows = grid.choose_canvas(width, height)
            assert (columns * grid.tile_px, rows * grid.tile_px) == (wide, high), (width, height)
            size = module.get_image_size_fit_to_canvas(height, width, high, wide, grid.tile_px)
            assert grid.processed_size(width, height) == (size[1], size[0]), (width, height)
            assert grid.vision_patches(width, height) == rows * columns * 1601
            assert grid.image_tokens(width, height) == 1


def test_gemma_crops_are_those_of_pan_and_scan():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.gemma3.image_processing_gemma3")
    plain = get_family("gemma3").grid
    grid = dataclasses.replace(plain, pan_and_scan=True)
    processor = module.Gemma3ImageProcessor(size={"height": 896, "width": 896})
    for width, height in random_sizes(1000, seed=4, ratio=5000):
        picture = torch.empty((1,)).expand(1, 3, height, width)
        crops = len(processor.pan_and_scan_batched(picture, grid.min_crop_px, grid.max_crops, grid.min_ratio))
        assert grid.count_crops(width, height) == crops, (width, height)
        assert grid.image_tokens(width, height) == 256 * (1 + crops)
        assert grid.vision_patches(width, height) == 4096 * (1 + crops)
        assert plain.image_tokens(width, height) == 256
    assert plain.processed_size(10, 3000) == (896, 896)


def test_llava_1_6_tokens_and_sizes_are_those_of_the_processor():
    np = pytest.importorskip("numpy")
    module = pytest.importorskip("transformers.models.llava_next.image_processing_llava_next")
    processing = pytest.importorskip("transformers.models.llava_next.processing_llava_next")
    utils = pytest.importorskip("transformers.image_processing_utils")
    grid = get_family("llava-1.6").grid
    counter = object.__new__(processing.LlavaNextProcessor)
    pinpoints = [list(pinpoint) for pinpoint in grid.pinpoints]
    counter.image_processor = module.LlavaNextImageProcessor(image_grid_pinpoints=pinpoints)
    counter.patch_size, counter.num_additional_image_tokens = grid.patch_px, 1
    for width, height in random_sizes(3000, seed=5, ratio=300):
        best = utils.select_best_resolution((height, width), grid.pinpoints)
        assert grid.choose_pinpoint(width, height) == best[::-1], (width, height)
        picture = np.broadcast_to(np.uint8(0), (3, height, width))
        size = utils.get_patch_output_size(picture, best, input_data_format="channels_first")
        assert grid.processed_size(width, height) == size[::-1], (width, height)
        # The strategy "default" drops the class token again.
        tokens = counter._get_number_of_features(height, width, grid.tile_px, grid.tile_px) - 1
        assert grid.image_tokens(width, height) == tokens, (width, height)
        assert grid.vision_patches(width, height) == 577 * (1 + best[0] * best[1] // 336**2)


def test_llava_1_5_always_takes_576_tokens():
    grid = get_family("llava-1.5").grid
    assert {grid.image_tokens(*size) for size in SIZES} == {576}
    assert {grid.processed_size(*size) for size in SIZES} == {(336, 336)}
    assert grid.vision_patches(5, 5) == 577


WITH_FIXED_POINTS = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "llama3.2-vision", "pixtral", "ministral3"]


@pytest.mark.parametrize("name", WITH_FIXED_POINTS)
@settings(max_examples=300, deadline=None)
@given(width=st.integers(4, 5000), height=st.integers(4, 5000), max_side=st.integers(600, 2000))
def test_a_stored_size_is_left_alone_by_the_processor_and_keeps_the_bounds(name, width, height, max_side):
    if max(width, height) > 15 * min(width, height):
        return
    grid = get_family(name).grid
    step = grid.side_step_px
    size = fixed_point_size(grid, width, height, max_side=max_side, min_side=300)
    scale = min(max_side / max(width, height), max(1, min(300 / min(width, height), 4)))
    wanted = tuple(min(math.ceil(side * scale - 1e-6), max_side) for side in (width, height))
    if size is None:
        # Qwen3-VL enlarges small areas: what it makes of a thin strip may pass the longest side.
        assert max(grid.processed_size(*wanted)) > max_side
        assert name == "qwen3-vl"
        assert wanted[0] * wanted[1] < 1.5 * grid.min_pixels
        return
    assert grid.processed_size(*size) == size
    assert max(size) <= max_side
    # Both sides lie within a step of the original's, at one scale.
    assert abs(size[0] * wanted[1] - size[1] * wanted[0]) <= step * sum(wanted)
    if max(wanted) <= min(max_side - step, 1000) and min(wanted) >= 560:
        assert all(abs(stored - side) <= step for stored, side in zip(size, wanted, strict=True))
    if min(wanted) >= 300 and max(wanted) <= 1000 - step:
        assert min(size) >= 300


@settings(max_examples=200, deadline=None)
@given(width=st.integers(4, 5000), height=st.integers(4, 5000))
def test_fixed_points_honour_bounds_on_the_area(width, height):
    if max(width, height) > 15 * min(width, height):
        return
    grid = dataclasses.replace(get_family("qwen2.5-vl").grid, min_pixels=200_000, max_pixels=300_000)
    size = fixed_point_size(grid, width, height, max_side=1000, min_side=1)
    if size is None:
        # Too long and thin to have the area within the longest side.
        assert max(grid.processed_size(width, height)) > 900
    else:
        assert grid.processed_size(*size) == size
        assert 200_000 <= size[0] * size[1] <= 300_000


def test_a_permitted_strip_stays_permitted():
    for max_side in range(500, 1100):
        assert fixed_point_size(get_family("qwen2.5-vl").grid, 9, 1800, max_side=max_side, min_side=300) is not None


def test_some_families_leave_no_size_alone():
    for name in ("gemma3", "llava-1.5", "llava-1.6"):
        assert fixed_point_size(get_family(name).grid, 1000, 700, max_side=1000, min_side=300) is None
    assert fixed_point_size(get_family("qwen2.5-vl").grid, 100, 100, max_side=27, min_side=1) is None
    # Llama 3.2 Vision enlarges whatever is smaller than a tile.
    assert fixed_point_size(get_family("llama3.2-vision").grid, 100, 100, max_side=500, min_side=1) is None
    assert fixed_point_size(get_family("llama3.2-vision").grid, 400, 200, max_side=1000, min_side=1) == (560, 280)


def test_known_sizes():
    assert get_family("qwen2.5-vl").grid.processed_size(1000, 750) == (1008, 756)
    assert get_family("qwen2.5-vl").grid.image_tokens(1000, 750) == 972
    assert get_family("qwen3-vl").grid.processed_size(1000, 1000) == (992, 992)
    assert get_family("pixtral").grid.image_tokens(1000, 1000) == 4032
    assert fixed_point_size(get_family("qwen2.5-vl").grid, 1600, 1200, max_side=1000, min_side=300) == (980, 756)


HUB_CONFIGS = {
    "qwen2-vl": {"model_type": "qwen2_vl", "vision_config": {"model_type": "qwen2_vl"}},
    "qwen2.5-vl": {"model_type": "qwen2_5_vl", "vision_config": {"model_type": "qwen2_5_vl"}},
    "qwen3-vl": {"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text"}},
    "gemma3": {"model_type": "gemma3", "vision_config": {"model_type": "siglip_vision_model"}},
    "llama3.2-vision": {"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}},
    "pixtral": {
        "model_type": "llava",
        "text_config": {"model_type": "mistral"},
        "vision_config": {"model_type": "pixtral"},
    },
    "ministral3": {
        "model_type": "mistral3",
        "text_config": {"model_type": "ministral3"},
        "vision_config": {"model_type": "pixtral"},
    },
    "llava-1.5": {
        "model_type": "llava",
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model"},
    },
    "llava-1.6": {
        "model_type": "llava_next",
        "text_config": {"model_type": "mistral"},
        "vision_config": {"model_type": "clip_vision_model"},
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_found_from_its_config(name):
    assert find_family(HUB_CONFIGS[name]).name == name


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "gemma3_text"},
        {"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}},
        {"model_type": "llava", "text_config": {"model_type": "qwen2"}, "vision_config": None},
        {"model_type": "llava_next", "text_config": {"model_type": "llama"}},
    ],
)
def test_another_model_is_no_known_family(config):
    assert find_family(config) is None


def test_an_unknown_name_is_refused_with_the_nearest_one():
    assert get_family("gemma3").title == "Gemma 3"
    with pytest.raises(ConfigError, match=r"unknown family 'Gemma-3': did you mean 'gemma3'\? known are qwen2-vl, "):
        get_family("Gemma-3")
    with pytest.raises(ConfigError, match="unknown family 'xyz': known are"):
        get_family("xyz")


def test_ids_of_older_guides_have_a_hint():
    assert find_hub_hint("unsloth/Ministral-8B-Vision-2507") == "unsloth/Ministral-3-8B-Instruct-2512"
    assert find_hub_hint("unsloth/Qwen2.5-VL-7B-Instruct") is None
    assert find_hub_hint("unsloth/Qwen2.5-VL-7B-Instuct") == "unsloth/Qwen2.5-VL-7B-Instruct"
    assert find_hub_hint("somebody/of-their-own") is None


HUB_PROCESSORS = {
    "qwen2-vl": (
        {},
        {"patch_size": 14, "merge_size": 2, "size": {"min_pixels": 3136, "max_pixels": 12845056}},
    ),
    "qwen2.5-vl": ({}, {"patch_size": 14, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12845056}),
    "qwen3-vl": (
        {},
        {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16777216}},
    ),
    "gemma3": ({"image_seq_length": 256}, {"size": {"height": 896, "width": 896}}),
    "llama3.2-vision": ({}, {"size": {"height": 560, "width": 560}, "max_image_tiles": 4}),
    "pixtral": (
        {"patch_size": 16},
        {"patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 1024}},
    ),
    "ministral3": (
        {"patch_size": 14, "spatial_merge_size": 2},
        {"patch_size": 14, "size": {"longest_edge": 1540}},
    ),
    "llava-1.5": (
        {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "llava-1.6": (
        {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        {
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_hub_models_config_gives_the_familys_grid(name):
    family = get_family(name)
    outer, image = HUB_PROCESSORS[name]
    assert read_grid(family, outer, image) == family.grid
    assert read_grid(family, {**outer, "image_processor": image}) == family.grid


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_of_another_processor_is_refused_in_words(name):
    family = get_family(name)
    with pytest.raises(
        ConfigError,
        match=f"the image processor's config is not that of {family.title}".replace("(", r"\(").replace(")", r"\)"),
    ):
        read_grid(family, {"processor_class": "Other"})


def turn(role, *kinds):
    return {"role": role, "content": [{"type": kind, "text": "x" if kind == "text" else None} for kind in kinds]}


IMAGE_FIRST = [turn("user", "image", "text"), turn("assistant", "text")]
TEXT_FIRST = [turn("user", "text", "image"), turn("assistant", "text")]
INTERLEAVED = [turn("user", "image", "text", "image", "text"), turn("assistant", "text")]
LATER_IMAGE = [
    turn("user", "text"),
    turn("assistant", "text"),
    turn("user", "image", "text"),
    turn("assistant", "text"),
]
SYSTEM = [turn("system", "text"), *IMAGE_FIRST]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_a_family_cannot_represent_are_named(name):
    family = get_family(name)
    text_only = [turn("system", "text"), turn("user", "text", "text"), turn("assistant", "text")]
    assert row_problem(family, IMAGE_FIRST) is None
    assert row_problem(family, LATER_IMAGE) is None
    assert row_problem(family, text_only) is None
    moved = name in ("llava-1.5", "llava-1.6")
    unseen = name == "llama3.2-vision"
    for row in (TEXT_FIRST, INTERLEAVED):
        problem = row_problem(family, row)
        assert (problem is not None) == (moved or unseen)
        if problem:
            assert ("would move the image to the front" in problem) == moved
            assert ("never attends to that image" in problem) == unseen
    assert (row_problem(family, SYSTEM) is not None) == unseen


def test_a_limit_on_images_is_kept():
    family = dataclasses.replace(get_family("gemma3"), max_images=1)
    assert row_problem(family, IMAGE_FIRST) is None
    assert row_problem(family, INTERLEAVED) == "2 images, and Gemma 3 takes 1 in a row"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_described_in_full(name):
    family = get_family(name)
    assert family.name == name
    assert family.instruction_part != family.response_part
    assert family.stop_tokens
    for model in family.hub_models:
        assert model.id.startswith("unsloth/")
        assert 0 < model.vram_4bit_gb < model.vram_16bit_gb


def test_importing_families_needs_nothing_heavy():
    heavy = ("torch", "PIL", "click", "numpy", "pyarrow", "datasets", "yaml")
    code = f"import sys, vlmdata.families; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
