"""The sets that build_speed measures on: photos re-encoded from real ones, scanned pages and charts drawn here.

Each is a folder with `images/` and `rows.csv` (columns image, question, answer), made once from a seed.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rendered_pages import draw_text

__all__ = ["KINDS", "make_set"]

_SEED = 4
_WORDS = (
    "amount annual apply before budget change client column detail effect entry figure follow income index invoice "
    "item ledger letter margin market measure method month notice number office order output page paper period plan "
    "price profit quarter rate record region report result sample section series share sheet sum table target total"
).split()
_PIXELS = (2.2e6, 10e6)
# Drawing takes far longer than cutting and encoding.
_VARIANTS = 3


def make_set(folder: Path, kind: str, count: int, photos: Path) -> None:
    """Make the images of a set and its rows.csv, which comes last; a set that is there is left as it is.

    Args:
        folder: where to put it.
        kind: one of `KINDS`.
        count: how many images.
        photos: folder of real JPEG photos, for the kind `photos`.
    """
    if (folder / "rows.csv").exists():
        return
    (folder / "images").mkdir(parents=True, exist_ok=True)
    sources = sorted(photos.glob("*.jpg")) if kind == "photos" else []
    if kind == "photos" and not sources:
        raise SystemExit(f"no photos in {photos}; name a folder with --photos")
    groups = range(0, count, _VARIANTS)
    with multiprocessing.Pool() as pool:
        made = pool.map(partial(_make_images, folder, kind, sources, count), groups, chunksize=4)
    names = [name for group in made for name in group]
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerows([f"images/{name}", "What is shown?", f"This is number {i}."] for i, name in enumerate(names))


def _make_images(folder: Path, kind: str, sources: list[Path], count: int, first: int) -> list[str]:
    """Some images from one drawing, or from one photo each."""
    rng = np.random.default_rng([_SEED, list(KINDS).index(kind), first])
    names = []
    if not sources:
        pixels, ratio = rng.uniform(*_PIXELS), rng.uniform(1.25, 1.45)
        short = round(math.sqrt(pixels / ratio))
        drawing = KINDS[kind](rng, short, round(short * ratio))
    for number in range(first, min(first + _VARIANTS, count)):
        image = _crop_photo(rng, sources[number % len(sources)]) if sources else _cut_margins(rng, drawing)
        name = f"{number:06d}.{'png' if kind == 'charts' else 'jpg'}"
        options = {} if kind == "charts" else {"quality": int(rng.integers(80, 96))}
        image.save(folder / "images" / name, **options)
        names.append(name)
    return names


def _cut_margins(rng: np.random.Generator, drawing: Image.Image) -> Image.Image:
    """A drawing with other margins, which no near-duplicate of it has."""
    left, top, right, bottom = (int(rng.uniform(0, 0.05) * drawing.width) for _ in range(4))
    return drawing.crop((left, top, drawing.width - right, drawing.height - bottom))


def _crop_photo(rng: np.random.Generator, source: Path) -> Image.Image:
    """Another cut of a photo at the photo's own size, mirrored or not: no near-duplicate of any other cut."""
    with Image.open(source) as photo:
        image = photo.convert("RGB")
    width, height = (int(rng.integers(round(0.75 * side), side + 1)) for side in image.size)
    left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    image = image.resize(image.size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def _draw_page(rng: np.random.Generator, short: int, long: int) -> Image.Image:
    """A page of text as a scanner gives it: paper that is not quite white, a slight turn, noise."""
    page = Image.new("RGB", (short, long), "white")
    draw = ImageDraw.Draw(page)
    unit = short / 80
    draw_text(draw, 6 * unit, 4 * unit, " ".join(rng.choice(_WORDS, 4)).title(), 3 * unit)
    columns = int(rng.integers(1, 3))
    width = (short - 12 * unit) / columns
    for column in range(columns):
        x, y = 6 * unit + column * width, 10 * unit
        while y < long - 8 * unit:
            if rng.random() < 0.05:
                shade = tuple(rng.integers(60, 220, 3).tolist())
                draw.rectangle((x, y, x + width - 2 * unit, y + 8 * unit), fill=shade)
                y += 9 * unit
            draw_text(draw, x, y, " ".join(rng.choice(_WORDS, int(width / unit / 5))), 1.5 * unit)
            y += 2.3 * unit
    page = page.rotate(rng.uniform(-0.6, 0.6), Image.Resampling.BICUBIC, fillcolor="white")
    page = page.filter(ImageFilter.GaussianBlur(unit / 40))
    paper = np.asarray(page, np.float32) * np.linspace(0.9, 0.97, short, dtype=np.float32)[None, :, None]
    noise = rng.standard_normal((long, short, 1), np.float32) * 3
    return Image.fromarray((paper + noise).clip(0, 255).astype(np.uint8))


def _draw_chart(rng: np.random.Generator, short: int, long: int) -> Image.Image:
    """A chart as plotting programs save it: bars or curves with grid, axes, numbers and a legend."""
    chart = Image.new("RGB", (long, short), "white")
    draw = ImageDraw.Draw(chart)
    unit = short / 60
    left, top, right, bottom = 8 * unit, 6 * unit, long - 4 * unit, short - 7 * unit
    draw_text(draw, long / 3, 1.5 * unit, " ".join(rng.choice(_WORDS, 3)).title(), 2.4 * unit)
    for line in range(9):
        y = bottom - (bottom - top) * line / 8
        draw.line((left, y, right, y), fill=(220, 220, 220), width=max(1, round(unit / 8)))
        draw_text(draw, left - 5 * unit, y - unit, str(line * int(rng.integers(1, 90))), 1.6 * unit)
    series, points = int(rng.integers(2, 6)), int(rng.integers(6, 24))
    step = (right - left) / points
    bars = rng.random() < 0.5
    for i in range(series):
        color = tuple(rng.integers(20, 220, 3).tolist())
        heights = bottom - (bottom - top) * rng.random(points) * 0.95
        if bars:
            wide = step * 0.8 / series
            for point, height in enumerate(heights.tolist()):
                x = left + step * (point + 0.1) + i * wide
                draw.rectangle((x, height, x + wide * 0.9, bottom), fill=color)
        else:
            curve = [(left + step * (point + 0.5), height) for point, height in enumerate(heights.tolist())]
            draw.line(curve, fill=color, width=max(2, round(unit / 3)), joint="curve")
        draw.rectangle(
            (right - 16 * unit, top + 2.5 * i * unit, right - 14 * unit, top + (2.5 * i + 1.6) * unit), color
        )
        draw_text(draw, right - 13 * unit, top + 2.5 * i * unit, str(rng.choice(_WORDS)), 1.6 * unit)
    for point in range(points):
        draw_text(draw, left + step * (point + 0.2), bottom + unit, str(rng.choice(_WORDS))[:6], 1.3 * unit)
    draw.line((left, top, left, bottom, right, bottom), fill="black", width=max(1, round(unit / 6)))
    # Drawing programs smooth their edges; Pillow does not.
    return chart.filter(ImageFilter.GaussianBlur(0.7))


KINDS: dict[str, Callable[[np.random.Generator, int, int], Image.Image]] = {
    "photos": lambda rng, short, long: Image.new("RGB", (short, long)),
    "scans": _draw_page,
    "charts": _draw_chart,
}
