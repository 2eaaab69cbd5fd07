"""Inputs of every kind become streams of rows; formats and images are looked at later."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from vlmdata.config import InputConfig
from vlmdata.errors import ConfigError, DataError
from vlmdata.locations import explain_remote_errors, is_remote, kind_of, locator, open_location, relative_name
from vlmdata.sources.arrow_rows import read_arrow
from vlmdata.sources.coco import is_coco, read_coco
from vlmdata.sources.csv_rows import read_csv, tell_dialect
from vlmdata.sources.dataset_info import DATASET_INFO, find_description
from vlmdata.sources.folders import find_data_files, open_image_folder, open_saved_set, tell_folder
from vlmdata.sources.hub import open_hub_set
from vlmdata.sources.json_rows import read_json, tell_layout
from vlmdata.sources.rows import IndexedRow, Source, explain_gzip_errors
from vlmdata.sources.webdataset import read_webdataset

__all__ = ["IndexedRow", "Source", "open_sources"]

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_ARROW_SUFFIXES = (".parquet", ".arrow", ".feather")
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_TAR_SUFFIXES = (".tar", ".tgz")


def open_sources(inputs: Sequence[str], config: InputConfig) -> list[Source]:
    """Find out what each input is and open it.

    Raises:
        ConfigError: inputs that are not there, or of no known kind; all of them are named.
        DataError: an input that is there and cannot be read, or a URL where there is nothing.
        MissingDependencyError: the file system of a URL is not installed.
        ResourceError: the network or the credentials for a URL give out.
    """
    problems: list[str] = []
    sources: list[Source] = []
    paths = [open_location(text) for text in inputs]
    kinds = [kind_of(path) for path in paths]
    root = _common_root([path for path, kind in zip(paths, kinds, strict=True) if kind is not None])
    for text, path, kind in zip(inputs, paths, kinds, strict=True):
        try:
            with explain_remote_errors(path):
                if kind == "folder":
                    sources.extend(_open_folder(path, root, config))
                elif kind == "file":
                    sources.append(_open_file(path, _name_of(path, root), config))
                elif is_remote(path):
                    raise DataError(f"{locator(path)}: no such file, folder or bucket")
                elif _REPOSITORY.fullmatch(text):
                    sources.append(open_hub_set(text, config.source_split, config.source_config))
                else:
                    problems.append(f"{text}: no such file or folder")
        except ConfigError as error:
            problems.extend(error.problems)
    problems.extend(_find_bad_names(sources))
    if problems:
        raise ConfigError(problems)
    return sources


def _find_bad_names(sources: Sequence[Source]) -> Iterator[str]:
    """Name inputs that nothing could be written about: names in shards, manifests and stamps are UTF-8."""
    for path in dict.fromkeys(path for source in sources for path in source.files):
        try:
            locator(path if is_remote(path) else path.absolute()).encode()
        except UnicodeEncodeError:
            yield f"{str(path)!r}: its name is not UTF-8; rename the file or its folder"


def _common_root(paths: Sequence[Path]) -> list[str]:
    """The parts of the folder that names in rejected.jsonl and in the `source` column are relative to."""
    columns = zip(*(_parts(path)[:-1] for path in paths), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _parts(path: Path) -> list[str]:
    return (locator(path) if is_remote(path) else path.resolve().as_posix()).split("/")


def _name_of(path: Path, root: Sequence[str]) -> str:
    return "/".join(_parts(path)[len(root) :])


def _open_folder(folder: Path, root: Sequence[str], config: InputConfig) -> list[Source]:
    kind, name = tell_folder(folder), _name_of(folder, root)
    if kind == "saved set":
        return [open_saved_set(folder, name, config.source_split)]
    if kind == "image folder":
        return [open_image_folder(folder, name, config.source_split, lambda path: _read_file(path, config))]
    # by their names in the folder: where links in it lead to has no place under the inputs' root
    return [_open_file(path, f"{name}/{relative_name(path, folder)}", config) for path in find_data_files(folder)]


def _plain_suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _open_file(path: Path, name: str, config: InputConfig) -> Source:
    if config.source_split is not None:
        raise ConfigError(f"{path}: source_split is for Hugging Face sets and image folders, not for single files")
    if path.name == DATASET_INFO:
        raise DataError(f"{path}: describes sets and holds no rows; give the files that it names")
    description = find_description(path)
    with explain_gzip_errors(path):
        kind = _describe(path, config)
    return Source(
        name=name,
        kind=kind + (f", {description.name!r} of {DATASET_INFO}" if description else ""),
        image_base=path.parent,
        files=(path, description.file) if description else (path,),
        read=lambda: _read_file(path, config),
        description=description.entry if description else None,
    )


def _describe(path: Path, config: InputConfig) -> str:
    suffix = _plain_suffix(path)
    if suffix in (".csv", ".tsv"):
        delimiter, encoding = tell_dialect(path, config.encoding)
        mark = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}[delimiter]
        return f"{suffix[1:].upper()}, {mark}, {encoding}"
    if suffix in _JSON_SUFFIXES:
        return "COCO" if is_coco(path) else f"JSON {tell_layout(path)}"
    if suffix in _ARROW_SUFFIXES:
        return suffix[1:].capitalize()
    if suffix in _TAR_SUFFIXES:
        return "WebDataset tar"
    raise ConfigError(
        f"{path}: files of this kind are not read; known: .json .jsonl .csv .tsv .parquet .arrow .feather .tar"
    )


def _read_file(path: Path, config: InputConfig) -> Iterator[IndexedRow]:
    suffix = _plain_suffix(path)
    if suffix in _ARROW_SUFFIXES:
        return read_arrow(path)
    if suffix in _TAR_SUFFIXES:
        return read_webdataset(path, config.max_line_bytes)
    return _read_text(path, config)


def _read_text(path: Path, config: InputConfig) -> Iterator[IndexedRow]:
    with explain_gzip_errors(path):
        if _plain_suffix(path) in (".csv", ".tsv"):
            yield from read_csv(path, config.encoding, config.max_line_bytes)
        elif is_coco(path):
            yield from read_coco(path, config.max_line_bytes)
        else:
            yield from read_json(path, config.max_line_bytes)
