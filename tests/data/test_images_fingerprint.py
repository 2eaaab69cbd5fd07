"""Perceptual hashes: what they are, what moves them and what does not."""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from scipy.fft import dctn

from vlmdata.images.fingerprint import PHASH_BYTES, THUMBNAIL_BYTES, fingerprint, hash_pixels, perceptual_hash


def picture(seed: int = 0, size: tuple[int, int] = (500, 400)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def bits_apart(first: bytes, second: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(first, np.uint8) ^ np.frombuffer(second, np.uint8)).sum())


def test_hash_is_the_signs_of_cosine_coefficients() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    coefficients = dctn(levels.astype(np.float64), type=2)[8:24, 8:24]
    found, strength = perceptual_hash(levels)
    assert found == np.packbits(coefficients > 0).tobytes()
    assert strength == pytest.approx(np.sqrt((coefficients**2).mean()))


def test_sizes() -> None:
    signals = fingerprint(picture())
    assert (len(signals.phash), len(signals.thumbnail)) == (PHASH_BYTES, THUMBNAIL_BYTES)
    assert len(fingerprint(picture().convert("L")).thumbnail) == THUMBNAIL_BYTES


@pytest.mark.parametrize(
    "alter",
    [
        lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: image.point(lambda level: level * 0.85),
        lambda image: image.convert("L"),
        lambda image: jpeg(image, 30),
    ],
    ids=["half", "blur", "darker", "grey", "jpeg"],
)
def test_copies_stay_near(alter: object) -> None:
    altered = alter(picture())  # type: ignore[operator]
    assert bits_apart(fingerprint(picture()).phash, fingerprint(altered).phash) <= 20


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def test_other_pictures_are_far() -> None:
    hashes = [fingerprint(picture(seed)).phash for seed in range(20)]
    assert min(bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 70


def test_pages_of_one_layout_are_told_apart_where_imagehash_does_not() -> None:
    pages = []
    for seed in range(8):
        page = Image.new("RGB", (600, 800), "white")
        draw = ImageDraw.Draw(page)
        draw.rectangle((0, 0, 600, 80), fill=(30, 60, 120))
        for line, figure in enumerate(np.random.default_rng(seed).integers(10**8, 10**9, 20)):
            draw.text((60, 110 + line * 32), f"Line {line}: {figure}", fill="black", font_size=22)
        pages.append(page)
    pairs = [(a, b) for i, a in enumerate(pages) for b in pages[:i]]
    assert min(bits_apart(fingerprint(a).phash, fingerprint(b).phash) for a, b in pairs) > 31
    assert sum(imagehash.phash(a) - imagehash.phash(b) <= 10 for a, b in pairs) > len(pairs) // 2


@pytest.mark.parametrize("color", ["white", "black", (12, 200, 99)])
def test_blank_pictures_are_flat(color: object) -> None:
    assert fingerprint(Image.new("RGB", (400, 300), color)).is_flat  # type: ignore[arg-type]
    gradient = Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    assert fingerprint(gradient).is_flat
    assert not fingerprint(picture()).is_flat


def test_pixel_hash_sees_one_level_of_one_pixel() -> None:
    changed = picture()
    red, green, blue = changed.getpixel((7, 7))  # type: ignore[misc]
    changed.putpixel((7, 7), (red, green, blue ^ 1))
    assert hash_pixels(picture()) == hash_pixels(picture())
    assert hash_pixels(changed) != hash_pixels(picture())
    assert len(hash_pixels(changed)) == 32
