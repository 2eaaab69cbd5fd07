"""Folders as input: a saved Hugging Face set, an ImageFolder with or without metadata, or data files side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from vlmdata.errors import DataError, ResourceError
from vlmdata.locations import is_remote, relative_name, remote_files
from vlmdata.manifest import MANIFEST_NAME, STAGE_NAME
from vlmdata.sample import Problem
from vlmdata.sources.arrow_rows import count_rows, read_arrow
from vlmdata.sources.rows import IndexedRow, Source
from vlmdata.sources.split_choice import choose_split, slice_rows

__all__ = [
    "DATA_SUFFIXES",
    "IMAGE_SUFFIXES",
    "find_data_files",
    "list_images",
    "list_splits",
    "open_image_folder",
    "open_saved_set",
    "tell_folder",
]

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".tar", ".tgz")
IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .j2k .jp2 .jpeg .jpg .jfif .png .pgm .pnm .ppm .tga .tif .tiff .webp".split()
)
_METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLIT_NAMES = frozenset(("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"))
# Files that describe a set and hold no rows.
_NO_ROWS = frozenset(("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "manifest.json"))


def tell_folder(folder: Path) -> str:
    """Tell what a folder is: a `saved set`, an `image folder`, or a place with `data files`.

    Raises:
        DataError: it is none of these, or a build that did not finish.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "saved set"
    if (folder / STAGE_NAME).is_dir() and not (folder / MANIFEST_NAME).is_file():
        raise DataError(f"{folder}: an unfinished build, not a set; build into it again, and it goes on")
    candidates = [folder, *(sub for sub in _subfolders(folder) if sub.name in _SPLIT_NAMES)]
    if any((candidate / name).is_file() for candidate in candidates for name in _METADATA_NAMES):
        return "image folder"
    if find_data_files(folder):
        return "data files"
    if next(list_images(folder), None) is not None:
        return "image folder"
    raise DataError(f"{folder}: a folder without data files ({' '.join(DATA_SUFFIXES)}) and without images")


def find_data_files(folder: Path) -> list[Path]:
    """Return the files of a folder, at any depth, that can hold rows, in order of their names; hidden ones are not."""
    return [
        path
        for path in _list_files(folder)
        if path.name.removesuffix(".gz").endswith(DATA_SUFFIXES)
        and path.name not in _NO_ROWS
        and not path.name.startswith((".", "_"))
    ]


def _list_files(folder: Path) -> list[Path]:
    """All files below a folder, but those in hidden folders, in the order of their parts."""
    if is_remote(folder):
        places = ((name, f"/{name}".rpartition("/")[0]) for name in remote_files(folder))
        names = (name for name, place in places if "/." not in place)
        return sorted((folder / name for name in names), key=lambda path: path.parts)
    return sorted(path for place, names in _walk(folder) for name in names if (path := Path(place, name)).is_file())


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each local folder at any depth, links followed and hidden ones left out, with the names of its files.

    Raises:
        ResourceError: one cannot be listed; left to itself, `os.walk` would pass it over.
    """
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _leads_back(place, name))
        yield place, sorted(names)


def _refuse(error: OSError) -> None:
    raise ResourceError(f"{error.filename}: the folder cannot be listed: {error.strerror}") from error


def _leads_back(place: str, name: str) -> bool:
    """Tell whether a folder is a link to one that it lies in; following it would never end."""
    path = os.path.join(place, name)
    if not os.path.islink(path):
        return False
    return (os.path.realpath(place) + os.sep).startswith(os.path.realpath(path).rstrip(os.sep) + os.sep)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.name,
    )


def open_saved_set(folder: Path, name: str, source_split: str | None) -> Source:
    """Open a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk` (a built folder is one too).

    Raises:
        ConfigError: no such split.
        DataError: the folder's own files are broken.
    """
    if (folder / "state.json").is_file():
        splits = {"train": folder}
    else:
        splits = {split: folder / split for split in list_splits(folder)}
    chosen, begin, end = choose_split(source_split, list(splits), str(folder))
    place = splits[chosen]
    names = _read_names(place / "state.json", lambda state: [entry["filename"] for entry in state["_data_files"]])
    files = tuple(place / each for each in names)

    def read() -> Iterator[IndexedRow]:
        numbers = count()
        rows = ((next(numbers), row) for file in files for _, row in read_arrow(file))
        return slice_rows(rows, begin, end, sum(map(count_rows, files)))

    return Source(
        name=f"{name}/{chosen}" if place != folder else name,
        kind=f"Hugging Face set, split {chosen!r}",
        image_base=place,
        files=files,
        read=read,
    )


def list_splits(folder: Path) -> list[str]:
    """Return the splits of a folder written by `DatasetDict.save_to_disk`.

    Raises:
        DataError: its dataset_dict.json is broken.
    """
    return _read_names(folder / "dataset_dict.json", lambda value: value["splits"])


def _read_names(path: Path, pick: Callable[[Any], Any]) -> list[str]:
    """Return the names that a file of a saved set lists; each is of something beside it, not elsewhere."""
    try:
        names = list(pick(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not what save_to_disk of datasets writes: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name:
            raise DataError(f"{path}: {name!r:.100} is not the name of something beside it")
    return names


def open_image_folder(
    folder: Path,
    name: str,
    source_split: str | None,
    read_file: Callable[[Path], Iterator[IndexedRow]],
) -> Source:
    """Open an ImageFolder: images with a metadata file beside them, or sorted into one folder for each label.

    Rows of a metadata file get an `image` column, made from `file_name` relative to that file. Without metadata a row
    is an `image` and, from the folder it lies in, a `label`.

    Args:
        folder: it, or a folder of splits that each are one.
        name: for `Source.name`.
        source_split: which split, and which slice of it.
        read_file: reads a CSV, JSON or Parquet file.

    Raises:
        ConfigError: no such split.
    """
    subfolders = {sub.name: sub for sub in _subfolders(folder)}
    splits = {"train": folder}
    if (
        subfolders
        and set(subfolders) <= _SPLIT_NAMES
        and not any((folder / each).is_file() for each in _METADATA_NAMES)
    ):
        splits = subfolders
    chosen, begin, end = choose_split(source_split, list(splits), str(folder))
    place = splits[chosen]
    metadata = [place / each for each in _METADATA_NAMES if (place / each).is_file()]
    files: tuple[Path, ...]
    if metadata:
        files, kind = (metadata[0],), f"image folder with {metadata[0].name}"
        rows = _with_image(read_file, metadata[0])
    else:
        images = sorted(list_images(place), key=lambda path: path.parts)
        folders = sorted({place, *(image.parent for image in images)}, key=lambda path: path.parts)
        files, kind = tuple(folders), "image folder, labels from the folders' names"
        rows = _labelled(images, place)

    def read() -> Iterator[IndexedRow]:
        if begin is None and end is None:
            return rows()
        return slice_rows(rows(), begin, end, sum(1 for _ in rows()))

    return Source(
        name=f"{name}/{chosen}" if place != folder else name, kind=kind, image_base=place, files=files, read=read
    )


def _with_image(
    read_file: Callable[[Path], Iterator[IndexedRow]], metadata: Path
) -> Callable[[], Iterator[IndexedRow]]:
    def rows() -> Iterator[IndexedRow]:
        for index, row in read_file(metadata):
            if not isinstance(row, Problem) and "image" not in row:
                if row.get("file_name"):
                    row["image"] = row["file_name"]
                elif row.get("file_names"):
                    row["images"] = row["file_names"]
            yield index, row

    return rows


def list_images(folder: Path) -> Iterator[Path]:
    """Yield the image files of a folder, at any depth, told by their names; hidden folders are left out."""
    if is_remote(folder):
        yield from (path for path in _list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
        return
    for place, names in _walk(folder):
        for name in names:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(place, name)


def _labelled(images: Sequence[Path], folder: Path) -> Callable[[], Iterator[IndexedRow]]:
    def rows() -> Iterator[IndexedRow]:
        for index, path in enumerate(images):
            name = relative_name(path, folder)
            label = {"label": path.parent.name} if "/" in name else {}
            yield index, {"id": name, "image": name, "file_name": path.name, **label}

    return rows
