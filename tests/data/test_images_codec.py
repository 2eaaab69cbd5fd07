"""What is stored: the file itself where it fits, without metadata; else JPEG or PNG by what they cost and lose."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmdata.config import ImageConfig
from vlmdata.images import PreparedImage, prepare_image
from vlmdata.images.containers import strip_jpeg, strip_png, strip_webp
from vlmdata.images.encoding import encode

KEEP = ImageConfig(small="keep")


def noise(width: int = 320, height: int = 310) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawing(width: int = 320, height: int = 310) -> Image.Image:
    levels = np.full((height, width, 3), 255, np.uint8)
    levels[::16] = (200, 0, 0)
    levels[:, ::40] = (0, 0, 160)
    return Image.fromarray(levels)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "a camera"
    tags.get_ifd(0x8825)[1] = "N"
    return tags


def prepared(data: bytes, config: ImageConfig = KEEP) -> PreparedImage:
    outcome = prepare_image(data, config)
    assert isinstance(outcome, PreparedImage), outcome
    return outcome


def same_pixels(first: bytes, second: bytes) -> bool:
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (first, second)]
    return images[0].size == images[1].size and images[0].tobytes() == images[1].tobytes()


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 2}),
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_a_file_that_fits_is_stored_byte_for_byte(image_format: str, mode: str, options: dict[str, object]) -> None:
    data = encoded(drawing().convert(mode), image_format, **options)
    outcome = prepared(data)
    assert outcome.action == "stored"
    assert outcome.data == data
    assert outcome.format == image_format


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_metadata_is_cut_away_without_touching_a_pixel(image_format: str) -> None:
    data = encoded(drawing(), image_format, exif=exif())
    outcome = prepared(data)
    assert outcome.action == "stripped"
    assert b"a camera" in data
    assert b"a camera" not in outcome.data
    assert not Image.open(io.BytesIO(outcome.data)).getexif()
    assert same_pixels(data, outcome.data)


def test_jpeg_loses_comments_previews_and_what_follows_its_end() -> None:
    plain = encoded(drawing(), "JPEG")
    data = encoded(drawing(), "JPEG", comment=b"secret comment") + b"trailing secret"
    assert strip_jpeg(data) == plain
    # A JFIF preview: one pixel of three bytes behind a header that says 1x1.
    preview = plain.replace(b"\xff\xe0\x00\x10JFIF", b"\xff\xe0\x00\x13JFIF", 1)
    preview = preview[:18] + b"\x01\x01" + b"\x09\x09\x09" + preview[20:]
    assert strip_jpeg(preview) == plain
    assert same_pixels(preview, plain)


def test_jpeg_keeps_the_segment_that_names_its_colour_space() -> None:
    # RGB stored as such is told by Adobe's segment alone; without it a decoder takes it for YCbCr.
    data = encoded(drawing(), "JPEG", keep_rgb=True, exif=exif())
    outcome = prepared(data)
    assert b"Adobe" in outcome.data
    assert same_pixels(data, outcome.data)


def test_jpeg_with_restart_markers_and_many_scans_is_walked_to_its_end() -> None:
    for options in ({"restart_marker_blocks": 4}, {"progressive": True, "restart_marker_rows": 1}):
        data = encoded(noise(), "JPEG", **options)
        assert strip_jpeg(data) is data
        assert strip_jpeg(data + b"x") == data


def test_png_loses_text_and_time_chunks_and_what_follows_its_end() -> None:
    data = encoded(drawing(), "PNG")
    text = b"tEXtAuthor\x00someone"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    assert strip_png(data[:33] + chunk + data[33:] + b"trailing") == data


def test_animated_png_becomes_its_first_frame_losslessly() -> None:
    data = encoded(drawing(), "PNG", save_all=True, append_images=[noise()])
    outcome = prepared(data)
    assert outcome.action == "stripped"
    assert outcome.data == encoded(drawing(), "PNG")


@pytest.mark.parametrize("strip", [strip_jpeg, strip_png, strip_webp])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_cut_off_files_are_never_called_clean(strip: object, image_format: str) -> None:
    data = encoded(drawing(), image_format)
    for length in range(0, len(data) - 1, 7):
        assert strip(data[:length]) is None  # type: ignore[operator]


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_drawings_resized_from_lossless_files_stay_lossless(image_format: str) -> None:
    source = drawing(1600, 1500)
    outcome = prepared(encoded(source, image_format))
    assert (outcome.action, outcome.format) == ("resized", "PNG")
    assert (outcome.width, outcome.height) == (1000, 938)


def test_photographs_resized_from_lossless_files_become_jpeg() -> None:
    outcome = prepared(encoded(noise(1200, 1100), "PNG"))
    assert (outcome.action, outcome.format) == ("resized", "JPEG")


def test_what_was_lossy_becomes_jpeg_without_colour_subsampling() -> None:
    for image_format in ("JPEG", "WEBP", "AVIF"):
        outcome = prepared(encoded(drawing(1600, 1500), image_format))
        assert (outcome.action, outcome.format) == ("resized", "JPEG")
        layers = Image.open(io.BytesIO(outcome.data)).layer  # type: ignore[attr-defined]
        assert [layer[1:3] for layer in layers] == [(1, 1)] * 3


def test_lossless_webp_counts_as_lossless() -> None:
    assert prepared(encoded(drawing(1600, 1500), "WEBP", lossless=True)).format == "PNG"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(drawing().convert("CMYK"), "JPEG"), "JPEG"),
        (encoded(drawing().quantize(8), "PNG"), "PNG"),
        (encoded(drawing().convert("1"), "PNG"), "PNG"),
        (encoded(drawing().convert("RGBA"), "PNG"), "PNG"),
        (encoded(drawing(), "BMP"), "PNG"),
        (encoded(drawing(), "JPEG", exif=exif(6)), "JPEG"),
    ],
    ids=["cmyk", "palette", "bilevel", "alpha", "bmp", "turned"],
)
def test_files_of_another_kind_are_encoded_anew_at_their_size(data: bytes, expected: str) -> None:
    outcome = prepared(data)
    assert (outcome.action, outcome.format) == ("reencoded", expected)


def test_16_bit_colour_png_is_not_stored_as_it_was() -> None:
    rows = b"".join(b"\x00" + bytes(320 * 6) for _ in range(300))
    header = b"IHDR" + struct.pack(">IIBBBBB", 320, 300, 16, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(rows), b"IEND"]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    outcome = prepared(data)
    assert outcome.action == "reencoded"
    assert outcome.data[24] == 8


def test_colour_without_colour_is_written_as_grey() -> None:
    grey = drawing().convert("L")
    data, image_format = encode(grey.convert("RGB"), lossy_source=False, jpeg_quality=92)
    assert image_format == "PNG"
    assert Image.open(io.BytesIO(data)).mode == "L"
    assert Image.open(io.BytesIO(data)).tobytes() == grey.tobytes()


def test_coloured_text_keeps_its_colours() -> None:
    # One pixel wide red lines on white: with subsampled colours they would turn pink and stain the paper.
    source = Image.new("RGB", (1200, 1200), "white")
    for x in range(0, 1200, 6):
        source.paste((220, 0, 0), (x, 0, x + 1, 1200))
    outcome = prepared(encoded(source, "PNG"), ImageConfig(max_side=1200, size="1200x1200", jpeg_quality=92))
    stored = np.asarray(Image.open(io.BytesIO(outcome.data)).convert("RGB"), dtype=np.int16)
    assert np.abs(stored - np.asarray(source, dtype=np.int16)).max() <= 40
