"""Every pixel mode that Pillow knows becomes the picture that a viewer shows."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from vlmdata.config import ImageConfig
from vlmdata.images import ImageProblem, PreparedImage, prepare_image

AS_IT_IS = ImageConfig(small="keep", max_side=4000)


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """Smooth colours, so that lossy formats stay close, with a corner that tells the sides apart."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], axis=-1).astype(np.uint8)
    rgb[: height // 4, : width // 4] = (250, 240, 20)
    return Image.fromarray(rgb)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def prepared(data: bytes, config: ImageConfig = AS_IT_IS) -> PreparedImage:
    outcome = prepare_image(data, config)
    assert isinstance(outcome, PreparedImage), outcome
    return outcome


def pixels(outcome: PreparedImage) -> np.ndarray:
    stored = Image.open(io.BytesIO(outcome.data))
    assert stored.format == outcome.format
    assert stored.size == (outcome.width, outcome.height)
    return np.asarray(stored.convert("RGB"), dtype=np.int16)


def difference(outcome: PreparedImage, wanted: Image.Image) -> float:
    return float(np.abs(pixels(outcome) - np.asarray(wanted.convert("RGB"), dtype=np.int16)).mean())


@pytest.mark.parametrize(
    ("mode", "image_format", "tolerance"),
    [
        ("RGB", "BMP", 0),
        ("RGB", "TIFF", 0),
        ("RGB", "PPM", 0),
        ("RGB", "PNG", 0),
        ("RGB", "JPEG2000", 1),
        ("RGBA", "PNG", 0),
        ("RGBX", "TIFF", 0),
        ("L", "PNG", 0),
        ("L", "BMP", 0),
        ("LA", "PNG", 0),
        ("YCbCr", "TIFF", 1),
        ("CMYK", "TIFF", 0),
        ("1", "PNG", 0),
        ("1", "TIFF", 0),
    ],
)
def test_modes_keep_their_picture(mode: str, image_format: str, tolerance: float) -> None:
    source = picture().convert(mode)
    assert difference(prepared(encoded(source, image_format)), source) <= tolerance


@pytest.mark.parametrize(("image_format", "tolerance"), [("JPEG", 3), ("WEBP", 4), ("AVIF", 4)])
def test_lossy_formats_stay_close(image_format: str, tolerance: float) -> None:
    assert difference(prepared(encoded(picture(), image_format)), picture()) <= tolerance


def test_palette_is_resolved() -> None:
    source = picture().quantize(32)
    assert difference(prepared(encoded(source, "PNG")), source) == 0
    assert difference(prepared(encoded(source, "GIF")), source) == 0


def test_alpha_goes_onto_white() -> None:
    source = picture().convert("RGBA")
    source.putalpha(Image.linear_gradient("L").resize(source.size))
    on_white = Image.alpha_composite(Image.new("RGBA", source.size, "white"), source)
    assert difference(prepared(encoded(source, "PNG")), on_white) < 1
    grey = source.convert("LA")
    on_white = Image.alpha_composite(Image.new("RGBA", source.size, "white"), grey.convert("RGBA"))
    assert difference(prepared(encoded(grey, "PNG")), on_white) < 1


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(image_format: str) -> None:
    source = Image.new("P", (40, 40), 1)
    source.putpalette([10, 20, 30, 200, 100, 50])
    source.paste(0, (0, 0, 40, 20))
    shown = pixels(prepared(encoded(source, image_format, transparency=0)))
    assert (shown[:20] == 255).all()
    assert (shown[20:] == (200, 100, 50)).all()


def test_transparent_colour_of_a_true_colour_png_becomes_white() -> None:
    source = Image.new("RGB", (40, 40), (200, 100, 50))
    source.paste((1, 2, 3), (0, 0, 40, 20))
    shown = pixels(prepared(encoded(source, "PNG", transparency=(1, 2, 3))))
    assert (shown[:20] == 255).all()
    assert (shown[20:] == (200, 100, 50)).all()


def test_lab_shows_the_same_colours() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(picture(), to_lab)
    assert lab is not None
    assert difference(prepared(encoded(lab, "TIFF")), picture()) < 3


def deep(values: np.ndarray, mode: str) -> bytes:
    return encoded(Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])), "TIFF")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_samples_are_scaled_by_the_used_range(mode: str) -> None:
    ramp = np.tile(np.linspace(100, 4000, 64), (48, 1)).round()
    outcome = prepared(deep(ramp, mode))
    shown = pixels(outcome)[:, :, 0]
    assert outcome.window == "100:4000"
    assert shown.min() == 0
    assert shown.max() == 255
    assert np.abs(shown - (ramp - 100) / 3900 * 255).max() <= 1


def test_16_bit_png_is_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 4095, 64), (48, 1)).astype(np.uint16)
    outcome = prepared(encoded(Image.fromarray(ramp), "PNG"))
    assert (pixels(outcome) == 255).mean() < 0.05
    assert outcome.window == "0:4095"


@pytest.mark.parametrize(
    ("mode", "value", "window", "shown"),
    [("I;16", 32768, "0:65535", 128), ("I", 0, "0:65535", 0), ("F", 1.0, "0:1", 255), ("F", -7.0, "-7:1", 0)],
)
def test_constant_deep_images_use_the_range_of_their_type(mode: str, value: float, window: str, shown: int) -> None:
    outcome = prepared(deep(np.full((40, 40), value), mode))
    assert outcome.window == window
    assert np.abs(pixels(outcome) - shown).max() <= 1


def test_window_can_be_given_or_full() -> None:
    ramp = np.tile(np.linspace(0, 4000, 64), (48, 1)).round()
    full = prepared(deep(ramp, "I;16"), ImageConfig(small="keep", window="full"))
    assert full.window == "0:65535"
    assert pixels(full).max() <= 16
    given = prepared(deep(ramp, "I;16"), ImageConfig(small="keep", window="1000:2000"))
    assert given.window == "1000:2000"
    assert (pixels(given) == 255).mean() == pytest.approx(0.5, abs=0.03)


def test_floats_that_are_no_numbers_are_black_and_do_not_stretch_the_window() -> None:
    values = np.tile(np.linspace(0, 10, 64), (48, 1))
    values[0, :3] = np.nan, np.inf, -np.inf
    outcome = prepared(deep(values, "F"))
    assert outcome.window == "0:10"
    assert pixels(outcome)[0, :3, 0].tolist() == [0, 255, 0]


def test_8_bit_images_have_no_window() -> None:
    assert prepared(encoded(picture(), "PNG")).window is None


def test_wide_gamut_profile_is_applied(tmp_path: object) -> None:
    # Red and blue primaries exchanged: a profile whose effect cannot be overlooked.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp.").replace(b"bXYZ", b"rXYZ").replace(b"tmp.", b"bXYZ")
    source = picture()
    outcome = prepared(encoded(source, "PNG", icc_profile=swapped))
    red, green, blue = source.split()
    assert outcome.action == "reencoded"
    assert difference(outcome, Image.merge("RGB", (blue, green, red))) < 4


def test_srgb_profile_is_left_out_losslessly() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    outcome = prepared(encoded(picture(), "PNG", icc_profile=srgb))
    assert outcome.action == "stripped"
    assert b"iCCP" not in outcome.data
    assert difference(outcome, picture()) == 0


def test_broken_profile_is_noted_and_the_picture_kept() -> None:
    outcome = prepared(encoded(picture(), "PNG", icc_profile=b"not a profile"))
    assert "colour profile not used" in outcome.note
    assert difference(outcome, picture()) == 0


def test_first_frame_of_an_animation_is_taken_and_recorded() -> None:
    frames = [picture(), Image.new("RGB", picture().size, "black")]
    for image_format in ("GIF", "WEBP", "PNG"):
        outcome = prepared(encoded(frames[0], image_format, save_all=True, append_images=frames[1:]))
        assert outcome.frame == 0
        assert difference(outcome, frames[0]) < 8
    assert prepared(encoded(picture(), "GIF")).frame is None


def test_first_picture_of_an_mpo_is_stored_without_the_second() -> None:
    data = encoded(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", picture().size, "black")])
    outcome = prepared(data)
    assert (outcome.frame, outcome.action, outcome.format) == (0, "stripped", "JPEG")
    assert len(outcome.data) < len(data)
    assert getattr(Image.open(io.BytesIO(outcome.data)), "n_frames", 1) == 1
    assert difference(outcome, Image.open(io.BytesIO(data))) == 0


def test_pages_are_refused_or_the_first_is_read() -> None:
    data = encoded(picture(), "TIFF", save_all=True, append_images=[picture(), picture()])
    outcome = prepare_image(data, AS_IT_IS)
    assert isinstance(outcome, ImageProblem)
    assert (outcome.reason, outcome.detail) == ("multi_page", "TIFF of 3 pages (see --pages)")
    assert difference(prepared(data, ImageConfig(small="keep", pages="first")), picture()) == 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_equal_pixels_hash_alike_whatever_the_container_and_mode(mode: str) -> None:
    source = picture().convert(mode)
    files = [encoded(source, "PNG"), encoded(source, "BMP"), encoded(source.convert("RGB"), "TIFF")]
    assert len({prepared(file).pixel_hash for file in files}) == 1
    changed = source.copy()
    changed.putpixel((1, 1), 3 if mode == "L" else (3, 3, 3))
    assert prepared(encoded(changed, "PNG")).pixel_hash != prepared(files[0]).pixel_hash


def test_equal_bytes_of_another_shape_hash_differently() -> None:
    grey = Image.new("L", (40, 30), 7)
    assert prepared(encoded(grey, "PNG")).pixel_hash != prepared(encoded(grey.resize((30, 40)), "PNG")).pixel_hash
