"""Near-duplicates: what is found and what is taken for one by mistake, beside imagehash and pdqhash.

Every base picture is altered in each of the ways below, as a file; each altered file is held against its base (recall),
and every picture against every picture of another base (precision). All methods see the same files in the same run.
"hash alone" is what a list of `vlmdata hash` finds, without the second look.
The last table is of pages that are the same but for a detail, which people may call duplicates or not: the share of
pairs of originals that each method takes for duplicates.

    python benchmarks/near_duplicates.py [--photos DIR] [--pages 30] [--processes 2]
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from rendered_pages import ALTERED_LAYOUTS, LAYOUTS, SPARSE_LAYOUTS, draw_text
from vlmdata.config import DedupConfig, ImageConfig
from vlmdata.dedup import UNVERIFIED_DISTANCE
from vlmdata.dedup.search import neighbours_within
from vlmdata.dedup.verification import verify_pairs
from vlmdata.images import PreparedImage, prepare_image

try:
    import pdqhash
except ImportError:
    pdqhash = None

IMAGEHASH_DISTANCE = 10
PDQ_DISTANCE = 31


def _jpeg(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _corner_mark(image: Image.Image) -> Image.Image:
    """Half-transparent white letters with a dark rim along the lower edge, a 20th of the shorter side high."""
    size = min(image.size) / 20
    letters = Image.new("L", (round(size * 8), round(size * 1.4)))
    draw_text(ImageDraw.Draw(letters), size * 0.2, 0, "(c) example.org", size, 128)
    place = (image.width - letters.width, image.height - letters.height - round(size * 0.3))
    marked = image.copy()
    marked.paste("black", place, letters.filter(ImageFilter.MaxFilter(3)))
    marked.paste("white", place, letters)
    return marked


def _page_mark(image: Image.Image) -> Image.Image:
    """Grey letters at a quarter of full strength from one corner to the other."""
    size = image.width / 6
    letters = Image.new("L", (round(image.width * 1.2), round(size * 1.4)))
    draw_text(ImageDraw.Draw(letters), size * 0.4, 0, "SAMPLE COPY", size, 64)
    letters = letters.rotate(30, expand=True)
    marked = image.copy()
    marked.paste((128, 128, 128), ((image.width - letters.width) // 2, (image.height - letters.height) // 2), letters)
    return marked


def _resize(image: Image.Image, share: float) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)


def _crop(image: Image.Image, share: float) -> Image.Image:
    left, top = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((left, top, image.width - left, image.height - top))


# The first group is to be found, the second is shown as it comes out.
TRANSFORMS: dict[str, Callable[[Image.Image], bytes]] = {
    "half size": lambda image: _jpeg(_resize(image, 0.5)),
    "JPEG q 30": lambda image: _jpeg(image, 30),
    "JPEG q 50": lambda image: _jpeg(image, 50),
    "JPEG q 70": lambda image: _jpeg(image, 70),
    "JPEG q 95": lambda image: _jpeg(image, 95),
    "watermark, corner": lambda image: _jpeg(_corner_mark(image)),
    "brightness -15 %": lambda image: _jpeg(ImageEnhance.Brightness(image).enhance(0.85)),
    "brightness +15 %": lambda image: _jpeg(ImageEnhance.Brightness(image).enhance(1.15)),
    "blur, radius 1 px": lambda image: _jpeg(image.filter(ImageFilter.GaussianBlur(1))),
    "blur, radius 2 px": lambda image: _jpeg(image.filter(ImageFilter.GaussianBlur(2))),
}
OTHER_TRANSFORMS: dict[str, Callable[[Image.Image], bytes]] = {
    "watermark, whole page": lambda image: _jpeg(_page_mark(image)),
    "blur, radius 4 px": lambda image: _jpeg(image.filter(ImageFilter.GaussianBlur(4))),
    "grey": lambda image: _jpeg(image.convert("L")),
    "border 2 %": lambda image: _jpeg(ImageOps.expand(image, round(max(image.size) * 0.02), "black")),
    "flip": lambda image: _jpeg(ImageOps.mirror(image)),
    "crop 5 %": lambda image: _jpeg(_crop(image, 0.05)),
    "turn 4 degrees": lambda image: _jpeg(image.rotate(4, Image.Resampling.BICUBIC, fillcolor="white")),
}
ALL_TRANSFORMS = TRANSFORMS | OTHER_TRANSFORMS


@dataclass(frozen=True, slots=True)
class Signed:
    """Signatures of B bases, each followed by its V - 1 altered files.

    Attributes:
        layout: (B,) name of the layout, `photo` for photos.
        phash: (B, V, 32) uint8, ours.
        thumbnail: (B, V, T) uint8, ours.
        is_flat: (B, V) bool, ours.
        imagehash: (B, V, 8) uint8, imagehash.phash.
        pdq: (B, V, 32) uint8.
    """

    layout: npt.NDArray[np.str_]
    phash: npt.NDArray[np.uint8]
    thumbnail: npt.NDArray[np.uint8]
    is_flat: npt.NDArray[np.bool_]
    imagehash: npt.NDArray[np.uint8]
    pdq: npt.NDArray[np.uint8]


def _sign_file(data: bytes) -> tuple[npt.NDArray[np.uint8], ...]:
    prepared = prepare_image(data, ImageConfig())
    assert isinstance(prepared, PreparedImage), prepared
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    pdq = np.packbits(pdqhash.compute(np.asarray(decoded))[0] > 0) if pdqhash else np.zeros(32, np.uint8)
    return (
        np.frombuffer(prepared.phash, np.uint8),
        np.frombuffer(prepared.thumbnail, np.uint8),
        np.array([prepared.is_flat], np.uint8),
        np.packbits(imagehash.phash(decoded).hash.reshape(-1)),
        pdq,
    )


def sign_base(base: tuple[str, str]) -> list[npt.NDArray[np.uint8]]:
    """Signatures of one base, a photo's path or the seed of a layout, and of its altered files, each (V, ...)."""
    layout, which = base
    if layout == "photo":
        original = Path(which).read_bytes()
        image = Image.open(io.BytesIO(original)).convert("RGB")
    else:
        image = (LAYOUTS | SPARSE_LAYOUTS | ALTERED_LAYOUTS)[layout](np.random.default_rng(int(which)))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        original = buffer.getvalue()
    files = [original, *(transform(image) for transform in ALL_TRANSFORMS.values())]
    return [np.stack(column) for column in zip(*(_sign_file(file) for file in files), strict=True)]


def sign_bases(bases: list[tuple[str, str]], processes: int) -> Signed:
    with ProcessPoolExecutor(processes) as pool:
        columns = [np.stack(column) for column in zip(*pool.map(sign_base, bases, chunksize=4), strict=True)]
    columns[2] = columns[2][..., 0].astype(np.bool_)
    return Signed(np.array([layout for layout, _ in bases]), *columns)


def _near(
    signed: Signed, pairs: npt.NDArray[np.int64], distance: npt.NDArray[np.uint16], limit: int
) -> npt.NDArray[np.bool_]:
    """Our verdict on pairs of pictures, numbered over bases and files."""
    is_flat = signed.is_flat.reshape(-1)
    verdict = (distance <= limit) & ~is_flat[pairs].any(axis=1)
    thumbnail = signed.thumbnail.reshape(-1, signed.thumbnail.shape[-1])
    verdict[verdict] = verify_pairs(thumbnail, pairs[verdict], distance[verdict])
    return verdict


def _near_by_hash(
    signed: Signed, pairs: npt.NDArray[np.int64], distance: npt.NDArray[np.uint16]
) -> npt.NDArray[np.bool_]:
    """The verdict on the same pairs where the small copies are not there."""
    return (distance <= UNVERIFIED_DISTANCE) & ~signed.is_flat.reshape(-1)[pairs].any(axis=1)


def _bits(first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    return np.bitwise_count(first ^ second).sum(axis=-1, dtype=np.uint16)


def recall(signed: Signed, limit: int) -> dict[str, list[float]]:
    """Share of each kind of altered files that is found, by ours, our hashes alone, imagehash and pdqhash."""
    bases, files = signed.is_flat.shape
    found: dict[str, list[float]] = {}
    for place, name in enumerate(ALL_TRANSFORMS, start=1):
        first = np.arange(bases) * files
        pairs = np.stack([first, first + place], axis=1)
        distance = _bits(signed.phash[:, 0], signed.phash[:, place])
        ours, alone = _near(signed, pairs, distance, limit), _near_by_hash(signed, pairs, distance)
        theirs = _bits(signed.imagehash[:, 0], signed.imagehash[:, place]) <= IMAGEHASH_DISTANCE
        pdq = _bits(signed.pdq[:, 0], signed.pdq[:, place]) <= PDQ_DISTANCE
        found[name] = [float(verdict.mean()) for verdict in (ours, alone, theirs, pdq)]
    return found


def confusions(signed: Signed, limit: int) -> list[tuple[int, int]]:
    """(rightly, wrongly) paired pictures among all pairs, by ours, our hashes alone, imagehash and pdqhash."""
    bases, files = signed.is_flat.shape
    base_of = np.repeat(np.arange(bases), files)
    candidates = neighbours_within(signed.phash.reshape(-1, 32), limit)
    near = _near(signed, candidates.pairs, candidates.distance, limit)
    alone = _near_by_hash(signed, candidates.pairs, candidates.distance)
    pdq = neighbours_within(signed.pdq.reshape(-1, 32), PDQ_DISTANCE).pairs
    right = wrong = 0
    codes = signed.imagehash.reshape(-1, 8).view(np.uint64)[:, 0]
    for place in range(len(codes) - 1):
        close = np.bitwise_count(codes[place] ^ codes[place + 1 :]) <= IMAGEHASH_DISTANCE
        of_base = int(close[: files - 1 - place % files].sum())
        right += of_base
        wrong += int(close.sum()) - of_base

    def judge(pairs: npt.NDArray[np.int64]) -> tuple[int, int]:
        same = int((base_of[pairs[:, 0]] == base_of[pairs[:, 1]]).sum())
        return same, len(pairs) - same

    return [judge(candidates.pairs[near]), judge(candidates.pairs[alone]), (right, wrong), judge(pdq)]


def report(name: str, signed: Signed, limit: int) -> None:
    bases, files = signed.is_flat.shape
    print(f"\n{name}: {bases} bases, {bases * files} pictures, {int(signed.is_flat[:, 0].sum())} flat")
    columns = [
        f"vlmdata d<={limit}",
        f"hash alone d<={UNVERIFIED_DISTANCE}",
        f"imagehash d<={IMAGEHASH_DISTANCE}",
        f"pdqhash d<={PDQ_DISTANCE}",
    ]
    print(f"{'recall, %':26s}" + "".join(f"{column:>18s}" for column in columns))
    shown = recall(signed, limit)
    for transform, shares in shown.items():
        if transform == next(iter(OTHER_TRANSFORMS)):
            print("  as they come out")
        shares = shares if pdqhash else [*shares[:3], float("nan")]
        print(f"{transform:26s}" + "".join(f"{share * 100:18.2f}" for share in shares))
    pairs = confusions(signed, limit)
    precision = [f"{100 * right / max(1, right + wrong):.3f}" for right, wrong in pairs]
    print(f"{'precision, %':26s}" + "".join(f"{share:>18s}" for share in precision))
    print(f"{'pairs wrongly taken':26s}" + "".join(f"{wrong:18d}" for _, wrong in pairs))


def report_altered(signed: Signed, limit: int) -> None:
    """Shares of pairs of originals taken for duplicates, layout by layout."""
    names = "".join(f"{name:>18s}" for name in ("vlmdata", "hash alone", "imagehash", "pdqhash"))
    print(f"\n{'pages altered in a detail':26s}{names}   (% of pairs)")
    files = signed.is_flat.shape[1]
    for layout in ALTERED_LAYOUTS:
        bases = np.flatnonzero(signed.layout == layout)
        pairs = np.array(list(itertools.combinations(bases, 2)))
        first, second = pairs.T
        distance = _bits(signed.phash[first, 0], signed.phash[second, 0])
        ours, alone = _near(signed, pairs * files, distance, limit), _near_by_hash(signed, pairs * files, distance)
        theirs = _bits(signed.imagehash[first, 0], signed.imagehash[second, 0]) <= IMAGEHASH_DISTANCE
        pdq = _bits(signed.pdq[first, 0], signed.pdq[second, 0]) <= PDQ_DISTANCE
        print(f"{layout:26s}" + "".join(f"{verdict.mean() * 100:18.2f}" for verdict in (ours, alone, theirs, pdq)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/data/clothing/images"))
    parser.add_argument("--max-photos", type=int, default=900)
    parser.add_argument("--pages", type=int, default=30, help="pages of each layout")
    parser.add_argument("--near-distance", type=int, default=DedupConfig().near_distance)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.perf_counter()
    photos = [("photo", str(photo)) for photo in sorted(options.photos.glob("*.jpg"))[: options.max_photos]]
    if not photos:
        print(f"no photos in {options.photos}: pages only")
    sets = {"photos": photos}
    for name, layouts in (("pages and charts", LAYOUTS), ("pages with hardly anything on them", SPARSE_LAYOUTS)):
        sets[name] = [(layout, str(seed)) for layout, seed in itertools.product(layouts, range(options.pages))]
    for name, bases in sets.items():
        if bases:
            report(name, sign_bases(bases, options.processes), options.near_distance)
    altered = [(layout, str(seed)) for layout, seed in itertools.product(ALTERED_LAYOUTS, range(options.pages))]
    report_altered(sign_bases(altered, options.processes), options.near_distance)
    note = "measured" if pdqhash else "not installed: pip install pdqhash"
    print(f"\n{time.perf_counter() - started:.0f} s; pdqhash {note}")


if __name__ == "__main__":
    main()
