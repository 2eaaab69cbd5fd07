"""From evaluation sets to signatures of their pictures, which the build prepares as its own or reads as hashes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlmdata.build_config import BuildConfig
from vlmdata.config import ColumnConfig, ImageConfig, InputConfig, SplitConfig
from vlmdata.decontamination.evaluation_sets import EvaluationSet
from vlmdata.decontamination.hash_list import read_hash_list
from vlmdata.decontamination.pictures import PICTURE, TEXT
from vlmdata.dedup import UNVERIFIED_DISTANCE, EvaluationImages
from vlmdata.errors import DataError
from vlmdata.formats import plan_reading
from vlmdata.options import flatten
from vlmdata.pages.html import count_of
from vlmdata.pipeline import list_versions, prepare_inputs
from vlmdata.shards import Split
from vlmdata.sources.stamps import FileStamp
from vlmdata.stage import PartitionSummary, StagedFiles, gather_signatures, read_marker
from vlmdata.text_config import TextConfig

__all__ = ["Evaluation", "differing_options", "pixel_options", "prepare_evaluation"]

# Options that refuse images or set how they are encoded, and do not change the pixels of those that are kept.
_NOT_OF_PIXELS = frozenset(
    "strips pages max_pages salvage_truncated max_pixels max_image_bytes max_aspect_ratio smallest_side "
    "jpeg_quality".split()
)
# What decodes, resizes and hashes.
_PIXEL_MAKERS = ("vlmdata", "pillow", "pyvips-binary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What training rows are held against.

    Attributes:
        parts: the pictures of each set.
        described: for the manifest, each set with its kind, its images and a digest.
        stamps: the state of every image file that was looked for.
        staged: the folders of staged pictures, each with the names of the files in it that the next build can use.
    """

    parts: tuple[EvaluationImages, ...] = ()
    described: tuple[Mapping[str, Any], ...] = ()
    stamps: tuple[FileStamp, ...] = ()
    staged: Mapping[Path, frozenset[str]] = field(default_factory=dict)


def pixel_options(images: ImageConfig) -> dict[str, Any]:
    """Return the options that decide which pixels a picture comes to have, and so its pixel hash."""
    return {name: value for name, value in flatten(images).items() if name not in _NOT_OF_PIXELS}


def differing_options(theirs: Mapping[str, Any], images: ImageConfig) -> str:
    """Name the options, among those of `pixel_options`, in which others differ from `images`; empty where none does."""
    ours = pixel_options(images)
    return ", ".join(
        f"{name} {theirs.get(name)!r}, here {value!r}" for name, value in ours.items() if theirs.get(name) != value
    )


def prepare_evaluation(
    sets: Sequence[EvaluationSet],
    config: BuildConfig,
    stage: Path,
    *,
    image_root: str | None = None,
    on_partition: Callable[[PartitionSummary], None],
    on_note: Callable[[str], None],
) -> Evaluation:
    """Read the pictures of all sets, through the workers of a build.

    Args:
        sets: from `open_evaluation_sets`.
        config: of the build.
        stage: where folders for the staged pictures are made.
        image_root: folder that image paths are relative to; None for the folder of each set's own file.
        on_partition: called with each partition as it is done, in any order.
        on_note: called with a line on each set: what it is, and what of it cannot be compared.

    Raises:
        DataError: a set without readable pictures, which would keep nothing out.
        ResourceError: worker processes do not start or die without end.
    """
    lenient = _lenient(config, image_root)
    parts: list[EvaluationImages] = []
    described: list[Mapping[str, Any]] = []
    stamps: list[FileStamp] = []
    staged: dict[Path, frozenset[str]] = {}
    for number, each in enumerate(sets):
        remarks = list(each.remarks)
        if each.hash_list is not None:
            images, options, versions = read_hash_list(each.hash_list)
            remarks += _compare_pixels(options, versions, config.images)
        elif each.folder is not None and each.folder.manifest.config.get("size") is not None:
            # margins and cut edges are part of what is stored, and no part of the hashes
            images = _read_image_info(each)
            remarks += _compare_pixels(each.folder.manifest.config, each.folder.manifest.versions, config.images)
        else:
            folder = stage / f"against-{number}"
            images, staged[folder] = _stage_pictures(each, lenient, folder, on_partition, remarks, stamps)
        if images.thumbnail is None:
            remarks.append(
                f"hashes alone: nearly the same up to {UNVERIFIED_DISTANCE} of 256 bits, without a second look"
            )
        if not len(images):
            raise DataError(f"{each.path}: {'; '.join(remarks) or 'no images in it; --image names their column'}")
        on_note("; ".join([f"{each.path}: {each.kind}; {count_of(len(images), 'image')}", *remarks]))
        parts.append(images)
        described.append({"path": each.path, "kind": each.kind, "images": len(images), "digest": _digest(images)})
    return Evaluation(parts=tuple(parts), described=tuple(described), stamps=tuple(stamps), staged=staged)


def _stage_pictures(
    each: EvaluationSet,
    config: BuildConfig,
    stage: Path,
    on_partition: Callable[[PartitionSummary], None],
    remarks: list[str],
    stamps: list[FileStamp],
) -> tuple[EvaluationImages, frozenset[str]]:
    stage.mkdir(exist_ok=True)
    columns = ColumnConfig(image=(PICTURE,), instruction=TEXT, response=TEXT, id="id", template_tokens="escape")
    head = [{"id": "", PICTURE: "", TEXT: ""}]
    reading = plan_reading(head, InputConfig(format="columns"), columns, None, texts=TextConfig())
    inputs = [(source, reading) for source in each.sources]
    prepared = prepare_inputs(inputs, config, stage, keep_rows=False, on_partition=on_partition)
    staged = gather_signatures(stage, prepared.partitions)
    lost = Counter[str]()
    example = ""
    for partition in prepared.partitions:
        lost.update(partition.rejected)
        marker = read_marker(StagedFiles(stage, partition.number))
        if marker is None:
            raise DataError(f"{stage}: staged partition {partition.number} changed while the build was running")
        stamps += marker.stamps
        for rejection in marker.rejections[:1]:
            example = example or f"{rejection.id or partition.source}: {rejection.detail}"
    if lost:
        reasons = ", ".join(f"{reason} {count}" for reason, count in lost.most_common(5))
        remarks.append(f"{lost.total()} cannot be read ({reasons}), such as {example}")
    signatures = staged.signatures
    owner = np.repeat(np.arange(len(signatures.text_hash)), np.diff(signatures.row_offsets))
    names = pa.chunked_array([batch.column("id") for batch in staged.names], pa.string())
    images = EvaluationImages(
        name=names.take(cast(Any, pa.array(owner))),
        pixel_hash=signatures.pixel_hash,
        phash=signatures.phash,
        is_flat=signatures.is_flat,
        thumbnail=signatures.thumbnail,
    )
    files = frozenset(path.name for part in prepared.partitions for path in StagedFiles(stage, part.number).paths)
    if each.folder is None:
        return images, files
    # What is stored may have been resized and encoded anew; its row knows the hashes from before that.
    remarks += _compare_pixels(each.folder.manifest.config, each.folder.manifest.versions, config.images)
    known = _read_image_info(each)
    starts = np.cumsum([0, *map(_count_images, each.splits)])
    first_image = {source.name: start for source, start in zip(each.sources, starts, strict=False)}
    rows = [
        np.asarray(batch.column("row")) + first_image[partition.source]
        for batch, partition in zip(staged.names, prepared.partitions, strict=True)
    ]
    place = np.concatenate([np.empty(0, np.int64), *rows])
    return replace(images, pixel_hash=known.pixel_hash[place], phash=known.phash[place]), files


def _lenient(config: BuildConfig, image_root: str | None) -> BuildConfig:
    """The build's config for pictures alone: what it may refuse to train on is still to be kept out."""
    return replace(
        config,
        input=replace(config.input, format="columns", image_root=image_root, where=None, source_split=None),
        columns=ColumnConfig(),
        texts=TextConfig(),
        images=replace(
            config.images,
            small="upscale" if config.images.small == "reject" else config.images.small,
            strips="shrink",
            pages="all",
            salvage_truncated=True,
        ),
        split=SplitConfig(),
    )


def _count_images(split: Split) -> int:
    lengths = (cast(Any, batch.column(0)).value_lengths() for batch in split.iterate_batches(["image_info"]))
    return sum(int(np.asarray(each).sum()) for each in lengths)


def _read_image_info(each: EvaluationSet) -> EvaluationImages:
    """The pictures of a built folder by the hashes in their rows, without decoding any."""
    names: list[str] = []
    hashes: dict[str, list[bytes]] = {"pixel_hash": [], "phash": []}
    for split, source in zip(each.splits, each.sources, strict=True):
        for row in split.iterate(["id", "image_info"]):
            for info in row["image_info"]:
                names.append(f"{source.name}: {row['id']}")
                for name, found in hashes.items():
                    found.append(bytes.fromhex(info[name]))
    return EvaluationImages(
        name=pa.chunked_array([pa.array(names, pa.string())]),
        pixel_hash=np.frombuffer(b"".join(hashes["pixel_hash"]), np.uint8).reshape(len(names), -1),
        phash=np.frombuffer(b"".join(hashes["phash"]), np.uint8).reshape(len(names), -1),
        is_flat=np.zeros(len(names), np.bool_),
        thumbnail=None,
    )


def _compare_pixels(theirs: Mapping[str, Any], versions: Mapping[str, str], images: ImageConfig) -> list[str]:
    """Say where equal pixels may not be told, because those of the set were made or hashed in another way."""
    ours = list_versions()
    other = [
        f"{name} {versions.get(name)}, here {ours[name]}" for name in _PIXEL_MAKERS if versions.get(name) != ours[name]
    ]
    other = list(filter(None, [differing_options(theirs, images), *other]))
    if not other:
        return []
    return [
        f"its pixels were hashed under other options or versions ({', '.join(other)}): pictures are told by their "
        "perceptual hash, and flat ones (blank pages) where their pixels come out the same"
    ]


def _digest(images: EvaluationImages) -> str:
    digest = hashlib.blake2b(digest_size=16)
    signals: list[npt.NDArray[Any]] = [images.pixel_hash, images.phash, images.is_flat]
    for signal in signals if images.thumbnail is None else [*signals, images.thumbnail]:
        digest.update(np.ascontiguousarray(signal).data)
    return digest.hexdigest()
