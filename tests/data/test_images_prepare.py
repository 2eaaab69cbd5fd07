"""Bad files end as a reason, never as an exception; upright whatever the camera said; nothing leaks to stderr."""

import io
import struct
import warnings
import zlib
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from scipy.ndimage import gaussian_filter

from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, PreparedImage, prepare_image

KEEP = ImageConfig(small="keep")


def picture(width: int = 96, height: int = 64) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x + y) % 64 * 3], axis=-1).astype(np.uint8)
    rgb[: height // 3, : width // 4] = (250, 240, 20)
    return Image.fromarray(rgb)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A header that claims a size, and hardly any data."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(bytes(100)), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def problem(data: bytes, config: ImageConfig = KEEP) -> ImageProblem:
    outcome = prepare_image(data, config)
    assert isinstance(outcome, ImageProblem), outcome
    assert outcome.detail
    assert "\n" not in outcome.detail
    return outcome


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "image_unreadable", "empty"),
        (b"no image at all", "image_unreadable", "starts with b'no image at all'"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "image_unsupported", "web page"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "image_unsupported", "SVG"),
        (b"%PDF-1.7\n", "image_unsupported", "PDF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "image_unsupported", "HEIF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "image_unsupported", "git lfs pull"),
        (encoded(picture(), "EPS"), "image_unsupported", "PostScript"),
        (png_of_size(50_000, 50_000), "image_bomb", "2500000000 pixels, more than max_pixels 89478485"),
        (png_of_size(9_500, 9_500), "image_bomb", "90250000 pixels, more than max_pixels"),
        (png_of_size(64, 64), "image_truncated", "truncated"),
        (encoded(Image.new("RGB", (3, 300)), "PNG"), "image_too_small", "3x300"),
        (encoded(Image.new("RGB", (5, 1001)), "PNG"), "image_aspect", "5x1001"),
        (encoded(picture(), "PNG")[:-40], "image_truncated", "truncated"),
        (encoded(picture(), "JPEG")[:-40], "image_truncated", "truncated"),
    ],
)
def test_reasons(data: bytes, reason: str, words: str) -> None:
    found = problem(data)
    assert found.reason == reason
    assert words.lower() in found.detail.lower()


def test_limits_are_options() -> None:
    data = encoded(picture(), "PNG")
    assert problem(data, ImageConfig(max_image_bytes=100)).reason == "image_too_large_bytes"
    assert problem(data, ImageConfig(max_pixels=5000)).reason == "image_bomb"
    assert problem(data, ImageConfig(max_aspect_ratio=1.2)).reason == "image_aspect"
    assert problem(data, ImageConfig(smallest_side=65)).reason == "image_too_small"
    wide = encoded(Image.new("RGB", (10_000, 10_000)), "PNG", compress_level=1)
    assert isinstance(prepare_image(wide, ImageConfig(max_pixels=100_000_000)), PreparedImage)


def test_pillows_own_settings_are_as_they_were_afterwards() -> None:
    core = cast(Any, Image).core
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, core.get_use_block_allocator()
    prepare_image(encoded(picture(), "PNG")[:-40], ImageConfig(max_pixels=1_000_000, salvage_truncated=True))
    after = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, core.get_use_block_allocator()
    assert after == before


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_truncated_files_are_salvaged_on_request_and_marked(image_format: str) -> None:
    whole = encoded(picture(), image_format)
    salvage = ImageConfig(small="keep", salvage_truncated=True)
    outcome = prepare_image(whole[: len(whole) * 3 // 4], salvage)
    assert isinstance(outcome, PreparedImage)
    assert outcome.salvaged
    assert outcome.action == "reencoded"
    top = np.asarray(Image.open(io.BytesIO(outcome.data)).convert("RGB"), dtype=int)[:16]
    assert np.abs(top - np.asarray(picture(), dtype=int)[:16]).mean() < 6
    sound = prepare_image(whole, salvage)
    assert isinstance(sound, PreparedImage)
    assert not sound.salvaged


@pytest.mark.parametrize(("compression", "words"), [("tiff_lzw", "not yet in table"), ("group4", "Bad code word")])
def test_chatter_of_c_libraries_is_caught(compression: str, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    source = Image.fromarray(levels).convert("1" if compression == "group4" else "L")
    data = bytearray(encoded(source, "TIFF", compression=compression))
    start = Image.open(io.BytesIO(data)).tag_v2[273][0]  # type: ignore[attr-defined]
    data[start + 60 : start + 100] = bytes([0xA5, 0x5A]) * 20
    outcome = prepare_image(bytes(data), KEEP)
    said = outcome.note if isinstance(outcome, PreparedImage) else outcome.detail
    assert words in said
    assert capfd.readouterr() == ("", "")


def test_warnings_of_decoders_are_noted_once(recwarn: pytest.WarningsRecorder) -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x05\x00\x12\x01")
    outcome = prepare_image(data, KEEP)
    assert isinstance(outcome, PreparedImage)
    assert outcome.note.count("Corrupt EXIF") == 1
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("config", [KEEP, ImageConfig(small="keep", size="40x60", fit="crop")], ids=["bounds", "crop"])
def test_every_orientation_comes_out_upright(orientation: int, config: ImageConfig) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = picture().transpose(undo[orientation]) if orientation in undo else picture()
    tags = Image.Exif()
    tags[0x0112] = orientation
    wanted = prepare_image(encoded(picture(), "PNG"), config)
    assert isinstance(wanted, PreparedImage)
    for image_format, options in (
        ("PNG", {}),
        ("JPEG", {"quality": 98, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
    ):
        outcome = prepare_image(encoded(turned, image_format, exif=tags, **options), config)
        assert isinstance(outcome, PreparedImage)
        assert (outcome.original_width, outcome.original_height) == (96, 64)
        shown, right = (np.asarray(Image.open(io.BytesIO(o.data)).convert("RGB"), dtype=int) for o in (outcome, wanted))
        assert shown.shape == right.shape
        assert np.abs(shown - right).mean() <= 3


def similarity(first: Image.Image, second: Image.Image) -> float:
    """Structural similarity (Wang et al., 2004), Gaussian windows of standard deviation 1.5, mean over the picture."""
    a, b = (np.asarray(image.convert("L"), dtype=np.float64) for image in (first, second))
    mean_a, mean_b = gaussian_filter(a, 1.5), gaussian_filter(b, 1.5)
    variance_a = gaussian_filter(a * a, 1.5) - mean_a**2
    variance_b = gaussian_filter(b * b, 1.5) - mean_b**2
    covariance = gaussian_filter(a * b, 1.5) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((above / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())


@pytest.mark.parametrize("long_side", [1100, 1500, 2100, 3300])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_cheap_resizing_is_as_good_as_an_exact_one(long_side: int, image_format: str) -> None:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (long_side // 9, long_side // 7, 3), dtype=np.uint8)
    source = Image.fromarray(coarse).resize((long_side, long_side * 7 // 9), Image.Resampling.BICUBIC)
    source.paste("black", (0, 100, long_side, 103))
    data = encoded(source, image_format, **({"quality": 95, "subsampling": 0} if image_format == "JPEG" else {}))
    outcome = prepare_image(data, ImageConfig(jpeg_quality=100))
    assert isinstance(outcome, PreparedImage)
    exact = Image.open(io.BytesIO(data)).resize((outcome.width, outcome.height), Image.Resampling.LANCZOS)
    assert similarity(Image.open(io.BytesIO(outcome.data)), exact) >= 0.99


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    st.floats(0.1, 1),
)
def test_damaged_files_never_raise(image_format: str, damage: list[tuple[float, int]], share: float) -> None:
    data = bytearray(encoded(picture(), image_format))
    for place, value in damage:
        data[int(place * len(data))] = value
    outcome = prepare_image(bytes(data[: int(share * len(data))]), KEEP)
    if isinstance(outcome, PreparedImage):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stored = Image.open(io.BytesIO(outcome.data))
            stored.load()
        assert stored.mode in ("RGB", "L")
        assert stored.size == (outcome.width, outcome.height)
    else:
        assert outcome.reason.startswith(("image_", "multi_page"))
