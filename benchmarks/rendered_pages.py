"""Pages and charts that share a layout and differ in what they say, rendered from a seed with Pillow's own font."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["ALTERED_LAYOUTS", "LAYOUTS", "SPARSE_LAYOUTS", "Layout", "draw_text"]

Layout = Callable[[np.random.Generator], Image.Image]

_WORDS = (
    "copper harvest ledger window marble orange river silver engine castle lantern meadow pocket quartz ribbon saddle "
    "timber velvet walnut yellow anchor basket candle dragon ember falcon garden hammer island jacket kettle lemon"
).split()
_COMMON_SEED = 7


@functools.cache
def _font(size_px: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def draw_text(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: object, size_px: float = 18, fill: object = "black"
) -> None:
    draw.text((x, y), str(text), font=_font(size_px), fill=fill)


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(str(word) for word in rng.choice(_WORDS, count))


def _money(rng: np.random.Generator) -> str:
    return f"{rng.integers(1, 2000)}.{rng.integers(0, 100):02d}"


def _date(rng: np.random.Generator) -> str:
    return f"2025-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"


def _blank(width: int = 770, height: int = 1000, fill: object = "white") -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), fill)
    return image, ImageDraw.Draw(image)


def _item_row(draw: ImageDraw.ImageDraw, rng: np.random.Generator, row: int, *, name: bool = True) -> None:
    y = 334 + row * 36
    if name:
        draw_text(draw, 50, y, _words(rng, 3))
    draw_text(draw, 450, y, rng.integers(1, 40))
    draw_text(draw, 540, y, _money(rng))
    draw_text(draw, 640, y, _money(rng))


def invoice(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank()
    draw.rectangle((0, 0, 770, 90), fill=(30, 60, 120))
    draw_text(draw, 40, 25, "NORTHWIND SUPPLY", 36, "white")
    draw_text(draw, 560, 35, "INVOICE", 28, "white")
    address = f"{rng.integers(1, 200)} {_words(rng, 2).title()} Street"
    fields = (
        ("Invoice no.", rng.integers(10_000, 99_999)),
        ("Date", _date(rng)),
        ("Customer", _words(rng, 2).title()),
        ("Address", address),
        ("Due", f"{rng.integers(7, 60)} days"),
    )
    for line, (name, value) in enumerate(fields):
        draw_text(draw, 40, 120 + line * 28, name)
        draw_text(draw, 200, 120 + line * 28, value)
    draw.rectangle((40, 290, 730, 320), fill=(220, 220, 220))
    for x, name in ((50, "Item"), (450, "Qty"), (540, "Price"), (640, "Amount")):
        draw_text(draw, x, 294, name)
    for row in range(14):
        draw.line((40, 360 + row * 36, 730, 360 + row * 36), fill=(180, 180, 180))
        _item_row(draw, rng, row)
    draw_text(draw, 540, 870, "Total", 24)
    draw_text(draw, 640, 870, _money(rng), 24)
    draw_text(draw, 40, 950, "Thank you for your order. Payable within the term stated above.", 14, (90, 90, 90))
    return image


def receipt(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank(420, 980)
    draw_text(draw, 110, 20, "CORNER MARKET", 26)
    draw_text(draw, 120, 56, "12 High Street  Tel 555-0100", 14)
    for row in range(24):
        draw_text(draw, 20, 100 + row * 30, _words(rng, 2).upper())
        draw_text(draw, 320, 100 + row * 30, _money(rng))
    draw.line((20, 830, 400, 830), fill="black", width=2)
    draw_text(draw, 20, 845, "TOTAL", 26)
    draw_text(draw, 300, 845, _money(rng), 26)
    draw_text(draw, 90, 920, f"{_date(rng)} {rng.integers(0, 24):02d}:{rng.integers(0, 60):02d}")
    return image


def text_page(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank()
    draw_text(draw, 60, 50, _words(rng, 4).title(), 28)
    for line in range(30):
        draw_text(draw, 60, 110 + line * 25 + line // 6 * 18, _words(rng, 4 if line % 6 == 5 else 9), 17)
    return image


def form(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank()
    draw_text(draw, 60, 40, "APPLICATION FOR MEMBERSHIP", 30)
    for line in range(16):
        y = 110 + line * 50
        draw_text(draw, 60, y + 8, f"{line + 1}. {_WORDS[line].title()}")
        draw.rectangle((260, y, 700, y + 36), outline="black")
        draw_text(draw, 270, y + 8, _words(rng, int(rng.integers(1, 4))), 18, (20, 20, 140))
        draw.rectangle((715, y + 8, 735, y + 28), outline="black", fill="black" if rng.integers(0, 2) else "white")
    return image


def slide(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank(960, 540, (245, 245, 250))
    draw.rectangle((0, 0, 960, 80), fill=(20, 90, 90))
    draw_text(draw, 40, 20, _words(rng, 3).title(), 36, "white")
    for line in range(5):
        draw.ellipse((60, 133 + line * 70, 72, 145 + line * 70), fill=(20, 90, 90))
        draw_text(draw, 90, 125 + line * 70, _words(rng, int(rng.integers(4, 8))), 24)
    draw_text(draw, 820, 510, "Northwind 2025", 14, "gray")
    return image


def table(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank(900, 640)
    for row in range(16):
        for column in range(6):
            x, y = 20 + column * 143, 20 + row * 37
            draw.rectangle((x, y, x + 143, y + 37), outline="black")
            draw_text(draw, x + 8, y + 8, _WORDS[column].title() if row == 0 else _money(rng), 17)
    return image


def _axes(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image, draw = _blank(900, 600)
    draw_text(draw, 300, 15, title, 26)
    draw.line((80, 60, 80, 540), fill="black", width=2)
    draw.line((80, 540, 870, 540), fill="black", width=2)
    for tick in range(6):
        draw_text(draw, 30, 530 - tick * 92, tick * 20, 16)
        draw.line((80, 540 - tick * 92, 870, 540 - tick * 92), fill=(215, 215, 215))
    for month, name in enumerate("JFMAMJJASOND"):
        draw_text(draw, 95 + month * 65, 550, name, 16)
    return image, draw


def _bars(heights: list[int]) -> Image.Image:
    image, draw = _axes("Sales by month")
    for month, height in enumerate(heights):
        draw.rectangle((95 + month * 65, 540 - height, 135 + month * 65, 540), fill=(60, 110, 190))
    return image


def bar_chart(rng: np.random.Generator) -> Image.Image:
    return _bars(rng.integers(10, 460, 12).tolist())


def line_chart(rng: np.random.Generator) -> Image.Image:
    image, draw = _axes("Temperature")
    for color in ((200, 40, 40), (40, 120, 60)):
        heights = np.clip(230 + np.cumsum(rng.normal(0, 55, 12)), 15, 465)
        draw.line([(100 + month * 65, 540 - int(h)) for month, h in enumerate(heights)], fill=color, width=4)
    return image


def scatter_plot(rng: np.random.Generator) -> Image.Image:
    image, draw = _axes("Height and weight")
    for _ in range(60):
        x, y = int(rng.integers(90, 860)), int(rng.integers(70, 530))
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(150, 60, 160))
    return image


def pie_chart(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank(700, 600)
    draw_text(draw, 220, 15, "Market share", 26)
    angle = 0.0
    colors = ((200, 60, 60), (60, 160, 80), (60, 90, 190), (220, 170, 50), (130, 70, 160))
    for share, color in zip(rng.dirichlet(np.full(5, 2.0)), colors, strict=True):
        draw.pieslice((130, 80, 570, 520), angle, angle + share * 360, fill=color)
        angle += share * 360
    return image


def equation(rng: np.random.Generator) -> Image.Image:
    image, draw = _blank(800, 300)
    left = f"{rng.choice(list('abcxyz'))}^{rng.integers(2, 9)} + {rng.integers(2, 99)}{rng.choice(list('pqrst'))}"
    draw_text(draw, int(rng.integers(60, 260)), int(rng.integers(80, 180)), f"{left} = {rng.integers(2, 999)}", 40)
    return image


def monthly_bill(rng: np.random.Generator) -> Image.Image:
    """Always the same customer: number, date, four lines of figures and the total differ."""
    image = invoice(np.random.default_rng(_COMMON_SEED))
    draw = ImageDraw.Draw(image)
    for box in (
        (195, 118, 440, 175),
        (630, 860, 760, 905),
        *((445, 330 + r * 36, 730, 359 + r * 36) for r in range(4)),
    ):
        draw.rectangle(box, fill="white")
    draw_text(draw, 200, 120, rng.integers(10_000, 99_999))
    draw_text(draw, 200, 148, _date(rng))
    for row in range(4):
        _item_row(draw, rng, row, name=False)
    draw_text(draw, 640, 870, _money(rng), 24)
    return image


def one_line_changed(rng: np.random.Generator) -> Image.Image:
    image = invoice(np.random.default_rng(_COMMON_SEED))
    draw = ImageDraw.Draw(image)
    draw.rectangle((45, 510, 730, 539), fill="white")
    _item_row(draw, rng, 5)
    return image


def one_figure_changed(rng: np.random.Generator) -> Image.Image:
    image = invoice(np.random.default_rng(_COMMON_SEED))
    draw = ImageDraw.Draw(image)
    draw.rectangle((630, 860, 760, 905), fill="white")
    draw_text(draw, 640, 870, _money(rng), 24)
    return image


def one_bar_changed(rng: np.random.Generator) -> Image.Image:
    heights = np.random.default_rng(_COMMON_SEED).integers(10, 460, 12).tolist()
    heights[5] = int(rng.integers(10, 460))
    return _bars(heights)


LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout
    for layout in (
        invoice,
        receipt,
        text_page,
        form,
        slide,
        table,
        bar_chart,
        line_chart,
        scatter_plot,
        pie_chart,
    )
}
# Hardly anything on white: a mark in the corner is as much ink as all the rest.
SPARSE_LAYOUTS: dict[str, Layout] = {"equation": equation}
# Pages that are the same but for a detail: the hardest cases, and the ones that people disagree about.
ALTERED_LAYOUTS: dict[str, Layout] = {
    layout.__name__: layout for layout in (monthly_bill, one_line_changed, one_figure_changed, one_bar_changed)
}
