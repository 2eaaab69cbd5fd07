"""Stored sizes: bounds, strips, small images, exact sizes, multiples."""

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vlmdata.config import ImageConfig
from vlmdata.errors import ConfigError
from vlmdata.images import PreparedImage, prepare_image
from vlmdata.images.geometry import check_size, plan_layout
from vlmdata.images.outcome import ImageError


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        ((640, 480), (640, 480)),
        ((4000, 3000), (1000, 750)),
        ((3000, 4000), (750, 1000)),
        ((200, 150), (400, 300)),
        ((40, 30), (160, 120)),  # no more than four times
        ((1001, 1000), (1000, 999)),
        ((3000, 300), (1000, 100)),  # the upper bound wins over the lower
        ((900, 100), (1000, 111)),  # as far up as the upper bound lets it
        ((1000, 300), (1000, 300)),
    ],
)
def test_bounds(size: tuple[int, int], stored: tuple[int, int]) -> None:
    assert plan_layout(*size, ImageConfig()).stored == stored


def test_small_images_can_be_kept_or_refused() -> None:
    assert plan_layout(200, 150, ImageConfig(small="keep")).stored == (200, 150)
    with pytest.raises(ImageError) as refused:
        plan_layout(200, 150, ImageConfig(small="reject"))
    assert refused.value.reason == "image_too_small"
    assert plan_layout(3000, 350, ImageConfig(small="reject")).stored == (1000, 117)


@pytest.mark.parametrize("size", [(3000, 350), (900, 100), (100, 900), (5000, 301)])
def test_strips_that_cannot_meet_both_bounds_can_be_refused(size: tuple[int, int]) -> None:
    assert max(plan_layout(*size, ImageConfig()).stored) == 1000
    with pytest.raises(ImageError) as refused:
        plan_layout(*size, ImageConfig(strips="reject"))
    assert refused.value.reason == "image_strip"
    if max(size) > 1000:
        with pytest.raises(ImageError):
            plan_layout(*size, ImageConfig(strips="reject", small="keep"))


@pytest.mark.parametrize("size", [(1000, 300), (3000, 900), (200, 60), (640, 480), (40, 30)])
def test_other_shapes_are_no_strips(size: tuple[int, int]) -> None:
    assert plan_layout(*size, ImageConfig(strips="reject")) == plan_layout(*size, ImageConfig())
    assert plan_layout(900, 100, ImageConfig(strips="reject", small="keep")).stored == (900, 100)


@pytest.mark.parametrize(
    ("fit", "scaled", "offset"),
    [("pad", (512, 256), (0, 128)), ("crop", (1024, 512), (-256, 0)), ("stretch", (512, 512), (0, 0))],
)
def test_exact_size(fit: str, scaled: tuple[int, int], offset: tuple[int, int]) -> None:
    layout = plan_layout(800, 400, ImageConfig(size="512x512", fit=fit))  # type: ignore[arg-type]
    assert (layout.scaled, layout.stored, layout.offset) == (scaled, (512, 512), offset)


sides = st.integers(4, 20_000)


@given(sides, sides, st.sampled_from([1, 14, 28, 32]), st.sampled_from([100, 640, 999, 1000]))
@example(574, 635, 28, 640)  # the longer side is rounded to 644, beyond the limit
def test_stored_sizes_obey_every_rule(width: int, height: int, step: int, max_side: int) -> None:
    config = ImageConfig(multiple_of=step, max_side=max_side, min_side=64)
    try:
        check_size(width, height, config)
    except ImageError:
        return
    stored = plan_layout(width, height, config).stored
    assert max(stored) <= max_side
    assert all(side % step == 0 and side > 0 for side in stored)
    assert max(stored) <= 200 * min(stored)
    # the nearest multiple of the step may lie above four times the size
    assert max(stored) <= max(4 * max(width, height) + step / 2, step)
    scale = max(stored) / max(width, height)
    assert abs(min(stored) - min(width, height) * scale) <= max(step, max(stored) / 200 + step)


@given(sides, sides, st.sampled_from(["pad", "crop"]))
def test_exact_sizes_are_met_on_one_side_and_covered_or_held_on_the_other(width: int, height: int, fit: str) -> None:
    scaled = plan_layout(width, height, ImageConfig(size="640x480", fit=fit)).scaled  # type: ignore[arg-type]
    over = [inner - outer for inner, outer in zip(scaled, (640, 480), strict=True)]
    assert min(map(abs, over)) == 0
    assert max(over) <= 0 if fit == "pad" else min(over) >= 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_side": 800, "max_side": 700}, "min_side 800 is above max_side 700"),
        ({"size": "512"}, "WIDTHxHEIGHT"),
        ({"size": "512x0"}, "WIDTHxHEIGHT"),
        ({"size": "512x500", "multiple_of": 28}, "not a multiple of 28"),
        ({"multiple_of": 2000}, "does not fit"),
        ({"max_side": 0, "min_side": 0}, "at least 1"),
        ({"max_upscale": float("nan")}, "max_upscale"),
        ({"window": "5:1"}, "LOW:HIGH"),
        ({"window": "abc"}, "LOW:HIGH"),
        ({"jpeg_quality": 101}, "between 1 and 100"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ImageConfig(**options)  # type: ignore[arg-type]


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        ImageConfig(min_side=0, jpeg_quality=0, window="x")
    assert len(raised.value.problems) == 3


def halves(width: int, height: int) -> bytes:
    """Left half red, right half blue."""
    levels = np.zeros((height, width, 3), np.uint8)
    levels[:, : width // 2, 0] = 255
    levels[:, width // 2 :, 2] = 255
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ("pad", {(10, 10): (255, 255, 255), (10, 256): (255, 0, 0), (500, 256): (0, 0, 255)}),
        ("crop", {(10, 10): (255, 0, 0), (500, 500): (0, 0, 255)}),
        ("stretch", {(10, 10): (255, 0, 0), (500, 10): (0, 0, 255)}),
    ],
)
def test_exact_sizes_show_the_right_part(fit: str, expected: dict[tuple[int, int], tuple[int, int, int]]) -> None:
    outcome = prepare_image(halves(800, 400), ImageConfig(size="512x512", fit=fit))  # type: ignore[arg-type]
    assert isinstance(outcome, PreparedImage)
    stored = Image.open(io.BytesIO(outcome.data))
    assert stored.size == (512, 512)
    for place, color in expected.items():
        assert stored.getpixel(place) == color
    left, top, width, height = outcome.content_box
    assert (width / 800, height / 400) == ((512 / 800, 512 / 400) if fit == "stretch" else (width / 800, width / 800))
    assert (left + width / 2, top + height / 2) == (256, 256)
