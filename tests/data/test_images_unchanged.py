"""JPEG files that are stored as they are: decoded small, and yet refused, hashed and compared as if decoded in full."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from vlmdata.config import ImageConfig
from vlmdata.dedup.verification import color_differences, unexplained_contrast
from vlmdata.images import ImageProblem, PreparedImage, prepare, prepare_image
from vlmdata.images.fingerprint import fingerprint
from vlmdata.images.unchanged import Unchanged, read_unchanged

KEEP = ImageConfig(small="keep")
BAD_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "bad-images"

KINDS: dict[str, dict[str, object]] = {
    "baseline 4:2:0": {},
    "baseline 4:4:4": {"subsampling": 0},
    "baseline 4:2:2": {"subsampling": 1},
    "restarts": {"restart_marker_blocks": 7},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": 0, "quality": 90},
}
# The frame header of a picture of 400x533 px with four samples of luma down for each sample of chroma.
UNUSUAL_SAMPLING = b"\xff\xc0\x00\x11\x08\x02\x15\x01\x90\x03\x01\x14"


def picture(seed: int = 0, width: int = 400, height: int = 533) -> Image.Image:
    """Soft shapes with some edges, as photos have them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (17, 13, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    ImageDraw.Draw(image).ellipse((width // 5, height // 4, width // 2, height // 2), fill=(200, 30, 60))
    return image


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def unchanged(data: bytes, config: ImageConfig = KEEP) -> Unchanged:
    found = read_unchanged(data, config)
    assert found is not None
    return found


def prepared(data: bytes) -> PreparedImage:
    outcome = prepare_image(data, KEEP)
    assert isinstance(outcome, PreparedImage), outcome
    return outcome


def tell(data: bytes) -> tuple[object, ...]:
    outcome = prepare_image(data, KEEP)
    if isinstance(outcome, ImageProblem):
        return outcome.reason, outcome.detail
    return outcome.action, outcome.note, outcome.width, outcome.height, outcome.salvaged


def broken_copies(data: bytes, seed: int) -> list[bytes]:
    """The file cut at many points, with bytes flipped in its headers and its scans, and with pieces lost."""
    rng = np.random.default_rng(seed)
    cut = [data[: int(end)] for end in rng.integers(2, len(data), 12)] + [data[:-count] for count in (1, 2, 3, 9)]
    copies = []
    for reach in (len(data), len(data), 700):
        for _ in range(6):
            flipped = bytearray(data)
            flipped[int(rng.integers(2, reach))] ^= int(rng.integers(1, 256))
            copies.append(bytes(flipped))
    for start in rng.integers(700, len(data) - 60, 4).tolist():
        copies.append(data[:start] + data[start + 40 :])
    return [*cut, *copies, data[:-2] + bytes(9), data + b"what follows"]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_end_as_with_a_full_decode(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = jpeg(picture(1).convert(mode), **KINDS[kind])
    assert read_unchanged(whole, KEEP) is not None
    files = [whole, *broken_copies(whole, seed=len(kind))]
    small = [tell(file) for file in files]
    monkeypatch.setattr(prepare, "read_unchanged", lambda *_: None)
    assert small == [tell(file) for file in files]
    assert {"stored", "image_truncated"} <= {said[0] for said in small}


@pytest.mark.shared_data
def test_bad_files_of_all_kinds_end_as_with_a_full_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    if not BAD_IMAGES.exists():
        pytest.skip("the set of bad images is not beside the checkout")
    files = [path.read_bytes() for path in sorted(BAD_IMAGES.rglob("*")) if path.is_file()]
    small = [tell(file) for file in files]
    monkeypatch.setattr(prepare, "read_unchanged", lambda *_: None)
    assert small == [tell(file) for file in files]


def text_page(_: int, width: int, height: int) -> Image.Image:
    """Small print, whose detail a small decode folds."""
    page = Image.new("RGB", (width, height), "white")
    for line in range(10, height, 9):
        ImageDraw.Draw(page).text((20, line), f"{line}: the quick brown fox jumps " * 9, fill="black", font_size=8)
    return page


@pytest.mark.parametrize("size", [(400, 533), (301, 407), (750, 999), (97, 211), (1000, 770)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("draw", [picture, text_page])
def test_small_decode_and_full_one_look_alike(
    draw: Callable[[int, int, int], Image.Image], mode: str, size: tuple[int, int]
) -> None:
    for seed in range(3):
        file = jpeg(draw(seed, *size).convert(mode), quality=90)
        small, full = unchanged(file).signals, fingerprint(Image.open(io.BytesIO(file)))
        apart = np.bitwise_count(np.frombuffer(small.phash, np.uint8) ^ np.frombuffer(full.phash, np.uint8)).sum()
        first, second = (np.frombuffer(each.thumbnail, np.uint8)[None] for each in (small, full))
        assert apart <= 12  # of 31 that near-duplicates may differ in
        assert unexplained_contrast(first, second)[0] <= 0.17  # half of what they may
        assert color_differences(first, second)[0] <= 8  # a third
        assert not small.is_flat


def oriented(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(image, exif=exif)


@pytest.mark.parametrize(
    "make",
    [
        lambda image: jpeg(image.convert("CMYK")),
        oriented,
        lambda image: jpeg(image.resize((2000, 1500))),
        lambda image: jpeg(Image.new("RGB", image.size, "white")),
        lambda image: jpeg(image, keep_rgb=True),
        lambda image: jpeg(image, icc_profile=swapped_profile()),
        lambda image: jpeg(image).replace(b"\xff\xc0\x00\x11\x08\x02\x15\x01\x90\x03\x01\x22", UNUSUAL_SAMPLING),
    ],
    ids=["CMYK", "turned", "too large", "flat", "not of luma and chroma", "other profile", "unusual sampling"],
)
def test_what_needs_its_pixels_is_decoded_in_full(make: Callable[[Image.Image], bytes]) -> None:
    assert read_unchanged(make(picture()), KEEP) is None


def swapped_profile() -> bytes:
    """The sRGB profile with its red and blue primaries exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * profile[131], 12)}
    red, blue = (slice(tags[name], tags[name] + 8) for name in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile)


def test_srgb_profile_and_other_metadata_are_cut_away_and_change_no_hash() -> None:
    plain = jpeg(picture())
    exif = Image.Exif()
    exif[0x010E] = "a description"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    dressed = jpeg(picture(), icc_profile=srgb, exif=exif, comment="a comment", dpi=(300, 300))
    first, second = prepared(plain), prepared(dressed)
    assert (first.action, second.action) == ("stored", "stripped")
    assert first.pixel_hash == second.pixel_hash
    with Image.open(io.BytesIO(second.data)) as image, Image.open(io.BytesIO(plain)) as wanted:
        assert not {"exif", "icc_profile", "comment"} & set(image.info)
        assert image.tobytes() == wanted.tobytes()


def test_equal_hashes_mean_equal_pixels() -> None:
    files = [jpeg(picture(seed % 3), **KINDS[kind]) for seed in range(6) for kind in KINDS]
    files += [jpeg(picture(0).convert("L")), jpeg(picture(0), quality=76), jpeg(picture(0), keep_rgb=True)]
    hashes = [prepared(file).pixel_hash for file in files]
    pixels = [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]
    pairs = [(i, j) for i in range(len(files)) for j in range(i)]
    assert all(pixels[i] == pixels[j] for i, j in pairs if hashes[i] == hashes[j])
    assert sum(hashes[i] == hashes[j] for i, j in pairs) >= len(files) // 2 - 3


def test_flat_jpegs_are_told_by_their_pixels_whatever_they_come_in() -> None:
    blank = Image.new("RGB", (400, 300), (250, 250, 250))
    buffer = io.BytesIO()
    blank.save(buffer, "PNG")
    assert prepared(jpeg(blank)).is_flat
    assert prepared(jpeg(blank)).pixel_hash == prepared(buffer.getvalue()).pixel_hash
