"""`--for FAMILY`: the real image processors leave stored pictures as they are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.config import ImageConfig
from vlmdata.errors import ConfigError
from vlmdata.families import get_family
from vlmdata.images import ImageProblem, prepare_image
from vlmdata.images.geometry import plan_layout

SIZES = [(1600, 1200), (640, 480), (333, 500), (60, 45), (2000, 310)]


def encode(width: int, height: int) -> bytes:
    levels = np.random.default_rng(width).integers(0, 256, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def load_processor(family: str):
    """The family's own image processor, with the hub models' numbers; without normalisation, so that pixels show."""
    grid = get_family(family).grid
    plain = {"do_normalize": False, "do_rescale": False}
    if family.startswith("qwen"):
        module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
        bounds = {"shortest_edge": grid.min_pixels, "longest_edge": grid.max_pixels}
        return module.Qwen2VLImageProcessor(patch_size=grid.patch_px, merge_size=grid.merge, size=bounds, **plain)
    if family in ("pixtral", "ministral3"):
        module = pytest.importorskip("transformers.models.pixtral.image_processing_pixtral")
        patch = {"height": grid.side_step_px, "width": grid.side_step_px}
        return module.PixtralImageProcessor(size={"longest_edge": grid.longest_px}, patch_size=patch, **plain)
    module = pytest.importorskip("transformers.models.mllama.image_processing_mllama")
    size = {"height": grid.tile_px, "width": grid.tile_px}
    return module.MllamaImageProcessor(size=size, max_image_tiles=grid.max_tiles, **plain)


def count_levels(values: np.ndarray) -> np.ndarray:
    return np.bincount(values.astype(np.uint8).ravel(), minlength=256)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl", "ministral3", "llama3.2-vision"])
def test_the_processor_leaves_stored_pictures_alone(family: str) -> None:
    processor = load_processor(family)
    config = ImageConfig(for_=family)
    left_alone = 0
    for width, height in SIZES:
        outcome = prepare_image(encode(width, height), config)
        assert not isinstance(outcome, ImageProblem)
        assert max(outcome.width, outcome.height) <= 1000
        if "no size within the bounds" in outcome.note:
            continue
        picture = Image.open(io.BytesIO(outcome.data)).convert("RGB")
        # every value of the picture is among what the processor makes of it, and no other: nothing was resampled
        seen = count_levels(np.asarray(processor(picture, return_tensors="pt")["pixel_values"]))
        # qwen shows each picture twice, as two frames
        own = count_levels(np.asarray(picture)) * (2 if family.startswith("qwen") else 1)
        # llama pads its tiles with zeros
        first = 1 if family == "llama3.2-vision" else 0
        assert np.array_equal(seen[first:], own[first:]), (width, height)
        left_alone += 1
    # only llama's tiles leave strips and tiny pictures no size that is both large and alike enough
    assert left_alone >= (len(SIZES) if family != "llama3.2-vision" else 3)


def test_a_picture_that_was_stored_for_the_family_is_not_resampled_again() -> None:
    config = ImageConfig(for_="qwen2.5-vl")
    first = prepare_image(encode(1600, 1200), config)
    assert not isinstance(first, ImageProblem)
    second = prepare_image(first.data, config)
    assert not isinstance(second, ImageProblem)
    assert (second.action, second.data) == ("stored", first.data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"for_": "qwen2.5"}, "did you mean 'qwen2.5-vl'"),
        ({"for_": "qwen2.5-vl", "multiple_of": 32}, "multiple_of 32 and --for qwen2.5-vl contradict each other.*28 px"),
        ({"for_": "llama3.2-vision", "max_side": 500}, "max_side 500 is too small for --for llama3.2-vision"),
        ({"for_": "qwen3-vl", "size": "512x500"}, "not left alone.*makes 512x512 px|makes 512x480 px"),
        ({"for_": "gemma3", "size": "512x512"}, "makes 896x896 px"),
    ],
)
def test_what_cannot_be_met_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageConfig(**options)


def test_options_that_agree_are_accepted() -> None:
    assert plan_layout(1600, 1200, ImageConfig(for_="qwen2.5-vl", multiple_of=14)).stored == (980, 756)
    assert ImageConfig(for_="gemma3", size="896x896").describe_family() is not None
    assert plan_layout(1600, 1200, ImageConfig(for_="gemma3", multiple_of=32)).stored == (992, 736)


def test_families_without_such_sizes_are_told_in_words() -> None:
    for family in ("gemma3", "llava-1.5", "llava-1.6"):
        config = ImageConfig(for_=family)
        assert "leaves no size alone" in str(config.describe_family())
        assert plan_layout(1600, 1200, config).stored == (1000, 750)
        assert not plan_layout(1600, 1200, config).note


def test_small_pictures_follow_their_policy() -> None:
    keep = plan_layout(200, 150, ImageConfig(for_="qwen2.5-vl", small="keep")).stored
    assert keep in ((196, 140), (196, 168))
    assert min(plan_layout(200, 150, ImageConfig(for_="qwen2.5-vl")).stored) >= 300
    outcome = prepare_image(encode(200, 150), ImageConfig(for_="qwen2.5-vl", small="reject"))
    assert isinstance(outcome, ImageProblem)
    assert outcome.reason == "image_too_small"
    strip = prepare_image(encode(5000, 10), ImageConfig(for_="qwen2.5-vl", max_aspect_ratio=600))
    assert isinstance(strip, ImageProblem)
    assert "refuses it" in strip.detail


def test_the_family_is_printed_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(640, 480))
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "question": "What?", "answer": "That."}\n')
    (tmp_path / "build.yaml").write_text("for: qwen3-vl\n")
    values = {"inputs": [str(tmp_path / "rows.jsonl")], "out": tmp_path / "out", "workers": 0, "for": "qwen3-vl"}
    report = build_folder(BuildConfig.from_values(values))
    assert any("multiples of 32 px" in note for note in report.notes)
    assert report.manifest.config["for"] == "qwen3-vl"
    (row,) = open_folder(tmp_path / "out").split("train").iterate(["image_info"])
    assert (row["image_info"][0]["width"], row["image_info"][0]["height"]) == (640, 480)
    again = build_folder(BuildConfig.from_values(values))
    assert again.was_unchanged
