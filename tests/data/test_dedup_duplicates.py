"""Which rows are dropped, for which kept row, and why: against a plain reference and by properties."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from vlmdata.config import DedupConfig, ImageConfig
from vlmdata.dedup import Duplicates, ImageLinks, Signatures, find_duplicates, hash_texts, link_images
from vlmdata.dedup.signatures import normalize_text
from vlmdata.images import PreparedImage, prepare_image


def signatures(
    rows: list[tuple[list[int], str]],
    images: int,
    *,
    protected: tuple[int, ...] = (),
    salvaged: tuple[int, ...] = (),
    pixels: dict[int, int] | None = None,
    pictures: list[PreparedImage] | None = None,
) -> Signatures:
    """Rows of (images shown, text); image i has the pixels, the hash and the thumbnail of its own number."""
    numbers = np.arange(images)
    pixel_hash = np.zeros((images, 16), np.uint8)
    pixel_hash[:, 0] = numbers
    phash, thumbnail = np.zeros((images, 32), np.uint8), np.zeros((images, 4224), np.uint8)
    is_flat = np.zeros(images, np.bool_)
    for number, picture in enumerate(pictures or []):
        pixel_hash[number] = np.frombuffer(bytes.fromhex(picture.pixel_hash), np.uint8)
        phash[number] = np.frombuffer(picture.phash, np.uint8)
        thumbnail[number] = np.frombuffer(picture.thumbnail, np.uint8)
        is_flat[number] = picture.is_flat
    return Signatures(
        row_offsets=np.cumsum([0, *(len(shown) for shown, _ in rows)]),
        row_images=np.array([image for shown, _ in rows for image in shown], np.int64),
        text_hash=np.frombuffer(b"".join(hash_texts([text]) for _, text in rows), np.uint8).reshape(-1, 16),
        text_length=np.array([len(text) for _, text in rows], np.int64),
        is_protected=np.isin(np.arange(len(rows)), protected),
        pixel_hash=pixel_hash,
        phash=phash,
        thumbnail=thumbnail,
        is_flat=is_flat,
        is_salvaged=np.isin(numbers, salvaged),
        original_pixels=np.array([(pixels or {}).get(number, 100) for number in range(images)], np.int64),
    )


def links(images: int, *pairs: tuple[int, int, int], equal: dict[int, int] | None = None) -> ImageLinks:
    picture = np.array([(equal or {}).get(number, number) for number in range(images)], np.int64)
    ordered = sorted(pairs)
    return ImageLinks(
        picture=picture,
        pairs=np.array([pair[:2] for pair in ordered], np.int64).reshape(-1, 2),
        distance=np.array([pair[2] for pair in ordered], np.uint16),
    )


PAIR, IMAGE = DedupConfig(), DedupConfig(dedup_scope="image")


def test_same_picture_with_another_answer_is_data() -> None:
    rows = signatures([([0], "a cat"), ([0], "a dog"), ([0], "a cat")], 1)
    assert list(find_duplicates(rows, PAIR, links(1))) == [(2, 0, "duplicate_exact", 0)]
    # The longest text is the richest; of equally long ones the first.
    assert list(find_duplicates(rows, IMAGE, links(1))) == [(1, 0, "duplicate_exact", 0), (2, 0, "duplicate_exact", 0)]


def test_nothing_is_dropped_when_told_so() -> None:
    rows = signatures([([0], "x"), ([0], "x")], 1)
    assert list(find_duplicates(rows, DedupConfig(dedup="none"))) == []


def test_near_pictures_count_only_for_near() -> None:
    rows = signatures([([0], "x"), ([1], "x"), ([2], "x")], 3)
    near = links(3, (0, 1, 7), equal={2: 0})
    assert list(find_duplicates(rows, DedupConfig(dedup="exact"), near)) == [(2, 0, "duplicate_exact", 0)]
    assert list(find_duplicates(rows, PAIR, near)) == [(1, 0, "duplicate_near", 7), (2, 0, "duplicate_exact", 0)]


def test_stars_not_chains() -> None:
    # 0 is near 1, 1 near 2, 2 near 3; only direct neighbours of a kept row go.
    chain = links(4, (0, 1, 5), (1, 2, 5), (2, 3, 5))
    rows = signatures([([number], "x") for number in range(4)], 4)
    assert list(find_duplicates(rows, PAIR, chain)) == [(1, 0, "duplicate_near", 5), (3, 2, "duplicate_near", 5)]


def test_equals_of_a_dropped_row_go_with_it_to_the_kept_one() -> None:
    rows = signatures([([0], "x"), ([1], "x"), ([2], "x")], 3, pixels={0: 900})
    found = find_duplicates(rows, PAIR, links(3, (0, 1, 9), equal={2: 1}))
    assert list(found) == [(1, 0, "duplicate_near", 9), (2, 0, "duplicate_near", 9)]


def test_nearest_kept_row_is_named() -> None:
    rows = signatures([([0], "x"), ([1], "x"), ([2], "x")], 3, pixels={2: 1})
    assert list(find_duplicates(rows, PAIR, links(3, (0, 2, 20), (1, 2, 4)))) == [(2, 1, "duplicate_near", 4)]


def test_several_images_must_agree_in_order_and_number() -> None:
    rows = signatures([([0, 1], "x"), ([1, 0], "x"), ([0, 1], "x"), ([0], "x"), ([0, 2], "x"), ([3, 2], "x")], 4)
    found = find_duplicates(rows, PAIR, links(4, (1, 2, 6), (0, 3, 11)))
    assert list(found) == [
        (2, 0, "duplicate_exact", 0),
        (4, 0, "duplicate_near", 6),
        (5, 0, "duplicate_near", 11),
    ]


def test_rows_without_images_are_duplicates_by_text_in_pair_scope_only() -> None:
    rows = signatures([([], "say hello "), ([], "say  hello"), ([], "say goodbye")], 0)
    assert list(find_duplicates(rows, PAIR, links(0))) == [(1, 0, "duplicate_exact", 0)]
    assert list(find_duplicates(rows, IMAGE, links(0))) == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 0),
        ({"pixels": {2: 101}}, 2),
        ({"pixels": {2: 101}, "salvaged": (2,)}, 0),
        ({"pixels": {2: 101}, "salvaged": (0, 1)}, 2),
        ({"pixels": {2: 101}, "protected": (1,), "salvaged": (1,)}, 1),
    ],
)
def test_order_of_what_is_kept(options: dict[str, object], kept: int) -> None:
    rows = signatures([([0], "x"), ([1], "x"), ([2], "x")], 3, **options)  # type: ignore[arg-type]
    found = find_duplicates(rows, PAIR, links(3, (0, 1, 2), (0, 2, 2), (1, 2, 2)))
    assert found.kept.tolist() == [kept, kept]


def test_richer_text_is_kept_in_image_scope() -> None:
    rows = signatures([([0], "a"), ([0], "a long answer"), ([0], "no")], 1)
    assert find_duplicates(rows, IMAGE, links(1)).kept.tolist() == [1, 1]


def reference(
    rows: Signatures, config: DedupConfig, known: ImageLinks, left_out: set[int]
) -> list[tuple[int, int, str, int]]:
    """Rows best first, each against the rows kept so far; equals of a dropped row go with it."""
    distances = {}
    for (a, b), distance in zip(known.pairs.tolist(), known.distance.tolist(), strict=True):
        distances[a, b] = distances[b, a] = distance
    shown = [
        known.picture[rows.row_images[start:stop]].tolist()
        for start, stop in zip(rows.row_offsets[:-1], rows.row_offsets[1:], strict=True)
    ]
    candidate_rows = [row for row in range(len(shown)) if row not in left_out]
    order = sorted(candidate_rows, key=lambda row: (not rows.is_protected[row], -rows.text_length[row], row))
    kept, found = [], []
    dropped: dict[tuple[object, ...], tuple[int, str, int]] = {}
    for place, row in enumerate(order):
        alike = (*shown[row], None, *(rows.text_hash[row].tolist() if config.dedup_scope == "pair" else ()))
        if alike in dropped:
            found.append((row, *dropped[alike]))
            continue
        candidates = []
        for better, other in enumerate(order[:place]):
            if other not in kept or len(shown[row]) != len(shown[other]):
                continue
            if config.dedup_scope == "pair" and (rows.text_hash[row] != rows.text_hash[other]).any():
                continue
            if config.dedup_scope == "image" and not shown[row]:
                continue
            apart = [0 if a == b else distances.get((a, b)) for a, b in zip(shown[row], shown[other], strict=True)]
            if None in apart or (config.dedup == "exact" and shown[row] != shown[other]):
                continue
            candidates.append((shown[row] != shown[other], max(apart, default=0), better, other))
        if candidates:
            near, distance, _, other = min(candidates)
            found.append((row, other, "duplicate_near" if near else "duplicate_exact", distance))
            dropped[alike] = found[-1][1:]
        else:
            kept.append(row)
    return sorted(found)


IMAGES = 6
rows_strategy = st.lists(
    st.tuples(st.lists(st.integers(0, IMAGES - 1), max_size=2), st.sampled_from("xyz")), max_size=14
)
pairs_strategy = st.sets(
    st.tuples(st.integers(0, IMAGES - 1), st.integers(0, IMAGES - 1)).filter(lambda p: p[0] < p[1])
)


@settings(max_examples=300, deadline=None)
# an equal of a dropped row that lies nearer to a row kept after that one
@example([([2], "x"), ([0], "x"), ([1], "x"), ([1], "x")], {(0, 1), (1, 2)}, "near", "pair", {0, 2}, set())
@given(
    rows_strategy,
    pairs_strategy,
    st.sampled_from(["exact", "near"]),
    st.sampled_from(["pair", "image"]),
    st.sets(st.integers(0, 13)),
    st.sets(st.integers(0, 13), max_size=4),
)
def test_stars_are_those_of_the_reference(
    rows: list[tuple[list[int], str]],
    pairs: set[tuple[int, int]],
    dedup: str,
    scope: str,
    protected: set[int],
    left_out: set[int],
) -> None:
    known = links(IMAGES, *((a, b, 1 + (3 * a + 5 * b) % 30) for a, b in pairs if 5 not in (a, b)), equal={5: 1})
    config = DedupConfig(dedup=dedup, dedup_scope=scope)  # type: ignore[arg-type]
    columns = signatures(rows, IMAGES, protected=tuple(protected))
    is_candidate = ~np.isin(np.arange(len(rows)), list(left_out))
    found = find_duplicates(columns, config, known, is_candidate=is_candidate)
    assert list(found) == reference(columns, config, known, left_out)
    assert not set(found.row.tolist()) & set(found.kept.tolist())
    if scope == "pair":
        assert all(rows[row][1] == rows[kept][1] for row, kept, _, _ in found)


def prepared(image: Image.Image, image_format: str = "PNG", **options: object) -> PreparedImage:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    outcome = prepare_image(buffer.getvalue(), ImageConfig())
    assert isinstance(outcome, PreparedImage)
    return outcome


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (36, 48, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)


def page(seed: int) -> Image.Image:
    image = Image.new("RGB", (600, 800), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 600, 80), fill=(30, 60, 120))
    for line, figure in enumerate(np.random.default_rng(seed).integers(10**8, 10**9, 20)):
        draw.text((60, 110 + line * 32), f"Line {line}: {figure}", fill="black", font_size=22)
    return image


def test_altered_copies_are_linked_and_pages_of_one_layout_are_not() -> None:
    pictures = [prepared(photo(seed)) for seed in range(5)] + [prepared(page(seed)) for seed in range(5)]
    for source in (photo(0), page(0)):
        pictures += [
            prepared(source, "JPEG", quality=40),
            prepared(source.resize((source.width // 2, source.height // 2), Image.Resampling.LANCZOS)),
            prepared(source.filter(ImageFilter.GaussianBlur(1.5))),
            prepared(source.point(lambda level: level * 0.9)),
        ]
    found = link_images(signatures([], len(pictures), pictures=pictures), 31)
    linked = set(map(tuple, found.pairs.tolist()))
    photos, pages = {0, 10, 11, 12, 13}, {5, 14, 15, 16, 17}
    assert linked == {(a, b) for group in (photos, pages) for a in group for b in group if a < b}


def test_recoloured_picture_is_another_picture_and_a_grey_copy_is_not() -> None:
    red, green, blue = photo(1).split()
    swapped = Image.merge("RGB", (blue, green, red))
    lightness = photo(1).convert("L")
    tinted = Image.merge(
        "YCbCr", (lightness, swapped.convert("YCbCr").getchannel(1), swapped.convert("YCbCr").getchannel(2))
    )
    pictures = [prepared(photo(1)), prepared(tinted.convert("RGB")), prepared(lightness)]
    found = link_images(signatures([], 3, pictures=pictures), 63)
    assert found.pairs.tolist() == [[0, 2], [1, 2]]


def test_flat_pictures_need_equal_pixels() -> None:
    blank = Image.new("RGB", (400, 400), (250, 250, 250))
    nearly = blank.copy()
    nearly.putpixel((5, 5), (249, 250, 250))
    pictures = [prepared(blank), prepared(nearly), prepared(blank, "BMP")]
    found = link_images(signatures([], 3, pictures=pictures), 31)
    assert found.picture.tolist() == [0, 1, 0]
    assert found.pairs.tolist() == []
    assert found.edges().tolist() == [[0, 2]]


def test_links_can_be_limited_to_equal_pixels() -> None:
    pictures = [prepared(photo(0)), prepared(photo(0), "JPEG"), prepared(photo(0), "TIFF")]
    columns = signatures([], 3, pictures=pictures)
    assert link_images(columns, None).edges().tolist() == [[0, 2]]
    assert link_images(columns, 31).edges().tolist() == [[0, 2], [0, 1]]


def test_parts_are_put_together_in_order() -> None:
    parts = [signatures([([0], "x"), ([0, 1], "y")], 2), signatures([], 0), signatures([([0], "z")], 1)]
    whole = Signatures.concatenate(parts)
    assert whole.row_offsets.tolist() == [0, 1, 3, 4]
    assert whole.row_images.tolist() == [0, 0, 1, 2]
    assert len(whole.text_hash) == 3


def test_columns_that_do_not_fit_are_refused() -> None:
    columns = signatures([([0], "x")], 1)
    fields = {name: getattr(columns, name) for name in Signatures.__slots__}
    with pytest.raises(ValueError, match="is_flat has 2 entries, not 1"):
        Signatures(**fields | {"is_flat": np.zeros(2, np.bool_)})
    with pytest.raises(ValueError, match="row_offsets"):
        Signatures(**fields | {"row_offsets": np.array([0, 2])})


@pytest.mark.parametrize(
    ("text", "same"),
    [("a  b\n", "a b"), ("\u00e9", "e\u0301"), ("\u00a0x\u2003y", "x y"), ("", "  \t")],
)
def test_texts_that_count_as_equal(text: str, same: str) -> None:
    assert normalize_text(text) == normalize_text(same)
    assert hash_texts([text]) == hash_texts([same])


@pytest.mark.parametrize(
    ("first", "second"),
    [(["\\Delta"], ["\\delta"]), (["A."], ["A"]), (["ab", "c"], ["a", "bc"]), (["a"], ["a", ""]), (["ﬁ"], ["fi"])],
)
def test_texts_that_do_not(first: list[str], second: list[str]) -> None:
    assert hash_texts(first) != hash_texts(second)


def test_lone_surrogates_have_a_hash() -> None:
    assert len(hash_texts(["\ud800"])) == 16


def test_no_rows() -> None:
    found = find_duplicates(signatures([], 0), PAIR)
    assert isinstance(found, Duplicates)
    assert len(found) == 0
