"""What `--against` and `vlmdata hash` are given: pictures, folders of them, sets, built folders and hash lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmdata.config import InputConfig
from vlmdata.decontamination.hash_list import is_hash_list
from vlmdata.decontamination.pictures import PICTURE, TEXT, parse_templates, read_pictures
from vlmdata.errors import ConfigError
from vlmdata.locations import explain_remote_errors, is_remote, kind_of, open_location, relative_name
from vlmdata.manifest import MANIFEST_NAME, is_built
from vlmdata.remote_folder import fetch_folder
from vlmdata.shards import BuiltFolder, Split, open_folder
from vlmdata.sources import IndexedRow, Source, open_sources
from vlmdata.sources.folders import IMAGE_SUFFIXES, list_images, list_splits, open_saved_set, tell_folder

__all__ = ["EvaluationSet", "open_evaluation_sets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """One path that was given.

    Attributes:
        path: as it was given.
        kind: what it was taken for, in words.
        files: whose change means that the set has changed.
        sources: of rows that hold one picture each, from `read_pictures`; none where hashes are read instead.
        hash_list: the file of hashes, where it is one.
        folder: the built folder, where it is one.
        splits: of the built folder, by the name of the source that reads them.
        remarks: for the eye, on how its pictures are found.
    """

    path: str
    kind: str
    files: tuple[Path, ...]
    sources: tuple[Source, ...] = ()
    hash_list: Path | None = None
    folder: BuiltFolder | None = None
    splits: tuple[Split, ...] = ()
    remarks: tuple[str, ...] = ()


def open_evaluation_sets(paths: Sequence[str], image: Sequence[str], config: InputConfig) -> list[EvaluationSet]:
    """Find out what each path is and open it.

    Args:
        paths: files, folders, or hub ids with a split, as `owner/name@test`.
        image: columns or templates that name images, for sets that have the columns.
        config: where images may lie; their root is the folder of each set's own file.

    Raises:
        ConfigError: paths that are not there, or of no known kind; all of them are named.
        DataError: one that is there and cannot be read.
    """
    problems: list[str] = []
    sets: list[EvaluationSet] = []
    for text in paths:
        try:
            sets.append(_open(text, image, config))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return sets


def _open(text: str, image: Sequence[str], config: InputConfig) -> EvaluationSet:
    path = fetch_folder(text) if is_remote(text) and is_built(text) else open_location(text)
    with explain_remote_errors(path):
        kind = kind_of(path)
        if kind == "file" and is_hash_list(path):
            return EvaluationSet(path=text, kind="hash list", files=(path,), hash_list=path)
        if kind == "file" and path.suffix.lower() in IMAGE_SUFFIXES:
            return _of_files(text, "image", path.parent, [path], (path,))
        if kind == "folder" and (path / MANIFEST_NAME).is_file():
            return _of_built_folder(text, path)
        if kind == "folder" and tell_folder(path) == "image folder":
            images = sorted(list_images(path))
            folders = sorted({path, *(each.parent for each in images)})
            return _of_files(text, "folder of images", path, images, tuple(folders))
        sources = _open_rows(text, path, kind, config)
    remarks: list[str] = []
    return EvaluationSet(
        path=text,
        kind=", ".join(dict.fromkeys(source.kind for source in sources)),
        files=tuple(file for source in sources for file in source.files),
        sources=tuple(_with_pictures(source, image, remarks) for source in sources),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _open_rows(text: str, path: Path, kind: str | None, config: InputConfig) -> list[Source]:
    plain = replace(config, source_split=None, where=None)
    if kind == "folder" and tell_folder(path) == "saved set" and (path / "dataset_dict.json").is_file():
        return [open_saved_set(path, path.name, split) for split in list_splits(path)]
    if kind is None and not is_remote(text) and "@" in text:
        repository, _, split = text.rpartition("@")
        return open_sources([repository], replace(plain, source_split=split))
    return open_sources([text], plain)


def _with_pictures(source: Source, image: Sequence[str], remarks: list[str]) -> Source:
    try:
        templates = parse_templates(source, image)
    except ConfigError as error:  # a set of another form than the one that is built
        templates = []
        remarks.append(f"{error.problems[0]}; its pictures are taken from where pictures usually are")
    return replace(source, read=lambda: read_pictures(source, templates), description=None)


def _of_files(text: str, kind: str, root: Path, images: Sequence[Path], files: tuple[Path, ...]) -> EvaluationSet:
    name = root.name or root.resolve().name

    def read() -> Iterator[IndexedRow]:
        for number, path in enumerate(images):
            relative = relative_name(path, root)
            yield number, {"id": f"{name}/{relative}", PICTURE: relative, TEXT: "a picture"}

    source = Source(name=name, kind=kind, image_base=root, files=files, read=read)
    return EvaluationSet(path=text, kind=kind, files=files, sources=(source,))


def _of_built_folder(text: str, path: Path) -> EvaluationSet:
    folder = open_folder(path)
    splits = [split for split in folder.splits.values() if split.num_rows]
    name = path.resolve().name
    sources = [
        Source(
            name=f"{name}/{split.name}",
            kind="built folder",
            image_base=path,
            files=split.paths,
            read=_stored_pictures(split, f"{name}/{split.name}"),
        )
        for split in splits
    ]
    files = (path / MANIFEST_NAME, *(file for split in splits for file in split.paths))
    return EvaluationSet(
        path=text, kind="built folder", files=files, sources=tuple(sources), folder=folder, splits=tuple(splits)
    )


def _stored_pictures(split: Split, name: str) -> Callable[[], Iterator[IndexedRow]]:
    def read() -> Iterator[IndexedRow]:
        number = 0
        for row in split.iterate(["id", "images"]):
            for position, stored in enumerate(row["images"]):
                which = f", image {position + 1}" if len(row["images"]) > 1 else ""
                picture: dict[str, Any] = {"bytes": stored["bytes"], "path": None}
                yield number, {"id": f"{name}: {row['id']}{which}", PICTURE: picture, TEXT: "a picture"}
                number += 1

    return read
