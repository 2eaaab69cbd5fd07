"""The report and the preview: what they show, that nothing of the data becomes markup, and that they stay small."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmdata import BuildConfig, build_folder, open_folder
from vlmdata.manifest import Counts
from vlmdata.pages.html import Html, cut, escape_text, join, tag
from vlmdata.preview import write_preview
from vlmdata.report.conversations import render_row
from vlmdata.report.rejections import render_flow, sample_reasons

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; </title></style><h1>"
VOID = {"img", "meta", "br"}


def make_photo(seed: int, size: int = 64) -> Image.Image:
    """Smooth, and unlike any other: what perceptual hashes are made for."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.sections: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(self.sections.values())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.sections[dict(attrs)["id"] or ""] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            name = next(reversed(self.sections), "")
            self.sections[name] = self.sections.get(name, "") + data + "\n"


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with copies, contradictions, broken files and markup in every text."""
    folder = tmp_path_factory.mktemp("messy")
    rows: list[dict[str, object]] = []
    for i in range(6):
        make_photo(i).save(folder / f"{i}.png")
        make_photo(i).save(folder / f"{i}.jpg", quality=60)
        rows.append({"image": f"{i}.png", "question": f"What? {EVIL}", "answer": "shirt" if i % 2 else EVIL})
    rows.append(rows[0] | {"id": "copy"})
    rows.append(rows[1] | {"image": "1.jpg", "id": "near"})
    rows.append(rows[2] | {"answer": "trousers", "id": "other answer"})
    rows.append(rows[3] | {"image": "3.jpg", "answer": "a hat", "id": "other answer, near image"})
    rows.append(rows[4] | {"question": "Another question?", "answer": "no contradiction"})
    make_photo(9).save(folder / "pages.tif", save_all=True, append_images=[make_photo(8)])
    make_photo(9).resize((900, 4)).save(folder / "strip.png")
    (folder / "cut.png").write_bytes((folder / "5.png").read_bytes()[:2000])
    for name in ("pages.tif", "strip.png", "cut.png", "absent.png", f"../{EVIL}.png", "http://127.0.0.1/x.png"):
        rows.append({"image": name, "question": "What?", "answer": "nothing", "id": f"{EVIL} {name}"})
    (folder / "set.jsonl").write_text("\n".join(json.dumps({"id": f"row {i}"} | row) for i, row in enumerate(rows)))
    return folder / "set.jsonl"


def build(rows: Path, out: Path, **options: object) -> Path:
    values = {"inputs": [str(rows)], "out": out, "workers": 0, "min_side": 16, "max_reject_rate": 1.0, **options}
    build_folder(BuildConfig.from_values(values))
    return out


@pytest.fixture(scope="module")
def built(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(messy, tmp_path_factory.mktemp("built") / "out", split="val=0.3")


@pytest.fixture(scope="module")
def page(built: Path) -> Page:
    return Page((built / "report.html").read_text())


def read_rejected(built: Path) -> list[dict]:
    return [json.loads(line) for line in (built / "rejected.jsonl").read_text().splitlines()]


def test_no_text_of_the_data_becomes_markup(page: Page) -> None:
    assert page.tags["script"] == 0
    assert page.tags["h1"] == 1
    assert page.tags["title"] == 1 + page.attributes.count(("class", "bar"))
    assert [name for name, _ in page.attributes if name.startswith("on")] == []
    addresses = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert [value for value in addresses if not value.startswith(("data:image/", "#"))] == []
    for section in ("splits", "sample", "duplicates", "conflicts", "reasons"):
        assert EVIL in page.sections[section]


def test_counts_add_up(page: Page, built: Path) -> None:
    counts = open_folder(built).manifest.counts
    flow = page.sections["flow"]
    assert f"read {counts.read} = kept {counts.kept} + rejected {counts.read - counts.kept}" in flow
    ends = dict(re.findall(r"^(.+?)  (\d+)  \(", flow, re.MULTILINE))
    assert sum(map(int, ends.values())) == counts.read
    assert {name: int(count) for name, count in ends.items() if not name.startswith("kept")} == counts.rejected
    assert int(ends["kept, train"]) + int(ends["kept, val"]) == counts.kept == 9
    for reason, count in counts.rejected.items():
        assert f"{reason}: {count} row{'s' * (count > 1)}\n" in page.sections["reasons"]


def test_every_rejection_is_an_example_while_they_are_few(page: Page, built: Path) -> None:
    for line in read_rejected(built):
        for value in (line["detail"], line["id"][:100], str(line["row"])):
            assert value in page.sections["reasons"]


def test_refused_images_are_shown_where_they_open(built: Path) -> None:
    text = (built / "report.html").read_text()
    reasons = text[text.index('id="reasons"') :]
    pictures = re.findall(r'alt="([^"]+)" src="data:image/(\w+);base64,([^"]+)"', reasons)
    sizes = {}
    for name, kind, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
            assert image.format == kind.upper()
            sizes[name] = image.size
    assert sizes == {"pages.tif": (64, 64), "strip.png": (120, 1), "cut.png": (64, 64)}


def test_contaminated_rows_stand_beside_a_copy_of_the_evaluation_picture(messy: Path, tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    make_photo(0).save(tmp_path / "eval" / "equal.png")
    make_photo(3).save(tmp_path / "eval" / "near.jpg", quality=40)
    out = build(messy, tmp_path / "out", against=(str(tmp_path / "eval"),))
    shown = Page((out / "report.html").read_text()).sections["contamination"]
    assert "3 rows show one of the 2 pictures" in shown
    assert "2 with equal pixels, 1 nearly the same" in shown
    assert "eval/near.jpg" in shown
    assert "dropped, equal pixels" in shown
    text = (out / "report.html").read_text()
    section = text[text.index('id="contamination"') : text.index('id="conflicts"')]
    copies = re.findall(r'alt="eval/near.jpg" src="data:image/png;base64,([^"]+)"', section)
    with Image.open(io.BytesIO(base64.b64decode(copies[0]))) as copy:
        difference = np.abs(np.asarray(copy, np.int16) - np.asarray(make_photo(3), np.int16)).mean()
    assert difference < 40  # small as the copy is, and its colours smaller still


def test_duplicates_stand_beside_the_row_that_is_kept(page: Page, built: Path) -> None:
    shown = page.sections["duplicates"]
    dropped = [line for line in read_rejected(built) if line["stage"] == "dedup"]
    assert sorted(line["id"] for line in dropped) == ["copy", "near"]
    assert "1 with equal pixels, 1 nearly the same; dropped for 2 kept rows" in shown
    assert len(re.findall("^kept$", shown, re.MULTILINE)) == 2
    assert "dropped, equal pixels" in shown
    (distance,) = re.findall(r"distance (\d+) of 256", str(dropped))
    assert f"dropped, distance {distance}\n" in shown
    for line in dropped:
        assert f"set.jsonl:{line['row']}\n" in shown


def test_contradictions_are_those_that_brute_force_finds(page: Page, built: Path) -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for split in open_folder(built).splits.values():
        for row in split:
            asked = "".join(part["text"] or "" for part in row["messages"][0]["content"])
            # photos of the set are named by their number, whatever the file
            photo = (row["images"][0]["path"] or "")[0]
            answers.setdefault((photo, asked), set()).add(row["messages"][-1]["content"][0]["text"] or "")
    expected = {key: found for key, found in answers.items() if len(found) > 1}
    assert sorted(photo for photo, _ in expected) == ["2", "3"]
    shown = page.sections["conflicts"]
    assert "2 times the same image" in shown
    assert shown.count("2 different answers in 2 rows") == 2
    for found in expected.values():
        assert all(answer in shown for answer in found)
    assert "no contradiction" not in shown


def test_rows_without_images_never_contradict(tmp_path: Path) -> None:
    rows = [{"question": "Tell a joke.", "answer": f"Number {i}."} for i in range(3)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = (build(tmp_path / "set.jsonl", tmp_path / "out") / "report.html").read_text()
    assert "No two kept rows show the same image" in text
    assert "The rows have no images." in text


def test_the_same_build_writes_the_same_page(messy: Path, built: Path, tmp_path: Path) -> None:
    again = build(messy, tmp_path / "elsewhere", split="val=0.3", workers=2)
    assert (again / "report.html").read_bytes() == (built / "report.html").read_bytes()


def test_without_deduplication(messy: Path, tmp_path: Path) -> None:
    page = Page((build(messy, tmp_path / "out", dedup="none") / "report.html").read_text())
    assert "--dedup none" in page.sections["duplicates"]
    # nearly equal images are not looked for then, equal ones are
    assert "1 time the same image" in page.sections["conflicts"]


def test_the_page_of_a_large_set_is_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    rows = []
    for i in range(24):
        Image.fromarray(noise.integers(0, 256, (256, 256, 3), np.uint8)).save(tmp_path / f"{i}.png", compress_level=0)
        rows += [{"image": [f"{i}.png"] * 4, "question": "What? " * 4000, "answer": f"{j} " * 4000} for j in range(4)]
    rows += [{"image": f"absent {i}.png " * 4, "question": "What?", "answer": "?"} for i in range(2000)]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = build(tmp_path / "set.jsonl", tmp_path / "out", max_text_chars=1_000_000, max_repetition=1.0)
    shards = sum(shard.bytes for shard in open_folder(out).manifest.splits["train"].shards)
    assert shards > 70e6
    assert (out / "report.html").stat().st_size < 2e6
    page = Page((out / "report.html").read_text())
    assert "image_missing: 2,000 rows, 5 of them" in page.sections["reasons"]
    assert "24 times the same image" in page.sections["conflicts"]
    assert "and 14 more" in page.sections["conflicts"]


def test_examples_are_drawn_from_all_lines() -> None:
    lines = [{"source": "a", "row": i, "reason": "x", "detail": "", "id": None} for i in range(1000)]
    lines.append({"source": "a", "row": 3, "reason": "y", "detail": "", "id": None, "level": "image"})
    drawn = sample_reasons(lines, seed=1)
    assert {key: sample.count for key, sample in drawn.items()} == {("row", "x"): 1000, ("image", "y"): 1}
    places = [line["row"] for line in drawn["row", "x"].lines]
    assert places == sorted(set(places))
    assert len(places) == 5
    assert drawn == sample_reasons(lines, seed=1)
    every = [line["row"] for seed in range(400) for line in sample_reasons(lines, seed)["row", "x"].lines]
    assert np.mean(every) == pytest.approx(499.5, abs=5 * 289 / 2000**0.5)


def test_markup_is_only_what_is_marked_so() -> None:
    assert tag("p", "<b>", Html("<i></i>"), 3, None, ["x", ["&"]]) == "<p>&lt;b&gt;<i></i>3x&amp;</p>"
    assert tag("a", class_='"><b', data_x=1, title=None) == '<a class="&quot;&gt;&lt;b" data-x="1"></a>'
    assert tag("img", alt="'") == '<img alt="&#x27;">'
    assert join("<", ("a", Html("<br>"))) == "&lt;a<br>"
    assert escape_text("a\0b\x1b\n\u202e") == "a␀b␛\n[U+202E]"
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "abc… (1 more characters)"


def test_preview_shows_images_as_they_are_stored(built: Path, tmp_path: Path) -> None:
    shown = write_preview(built, tmp_path / "page.html", split="train", rows=99, seed=None)
    train = open_folder(built).split("train")
    assert shown == len(train)
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert page.tags["article"] == shown
    assert page.tags["script"] == 0
    stored = [base64.b64encode(image["bytes"]).decode() for row in train for image in row["images"]]
    assert re.findall(r'src="data:image/\w+;base64,([^"]+)"', text) == stored


def test_browsers_know_every_stored_format(messy: Path, tmp_path: Path) -> None:
    make_photo(0).save(messy.parent / "photo.webp")
    row = {"image": "photo.webp", "question": "What?", "answer": "photo"}
    (tmp_path / "set.jsonl").write_text(json.dumps(row))
    out = build(tmp_path / "set.jsonl", tmp_path / "out", image_root=messy.parent, max_side=32)
    (stored,) = open_folder(out).split("train")
    info = stored["image_info"][0]
    assert f'src="data:image/{info["format"].lower()};base64,' in render_row(stored)
    assert f"64x64 → 32x32 px, {info['format']}, resized" in render_row(stored)
    info["format"] = "WEBP"
    assert 'src="data:image/webp;base64,' in render_row(stored)


@pytest.mark.parametrize(("reasons", "named", "rest"), [(12, 12, None), (13, 13, None), (14, 12, "2 other reasons")])
def test_a_single_further_reason_goes_by_its_name(reasons: int, named: int, rest: str | None) -> None:
    counts = Counts(read=reasons, kept=0, rejected={f"reason_{i:02}": 1 for i in range(reasons)})
    drawn = render_flow(counts, {})
    assert drawn.count("reason_") == named
    assert ("other reasons" in drawn) == (rest is not None)
    assert rest is None or rest in drawn
