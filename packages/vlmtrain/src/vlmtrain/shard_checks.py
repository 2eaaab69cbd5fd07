"""Shards against the checksums of their manifest, once: what was found is remembered by size and time of change."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlmdata.errors import DataError
from vlmdata.manifest import ShardEntry, hash_file, write_json_atomically
from vlmdata.shards import BuiltFolder
from vlmtrain.wording import list_some

__all__ = ["check_shards", "memory_file"]

_THREADS = 2


def check_shards(folder: BuiltFolder) -> str:
    """Hashes the shards that have not been hashed since they last changed; sizes were compared when it was opened.

    Args:
        folder: A built folder.

    Returns:
        What was done, for the run's output.

    Raises:
        DataError: A shard is not the one that was built.
    """
    shards = [shard for split in folder.manifest.splits.values() for shard in split.shards]
    known = _read_memory()
    states = {shard.file: _state(folder.path / shard.file) for shard in shards}
    new = [shard for shard in shards if known.get(_name(folder, shard)) != [*states[shard.file], shard.sha256]]
    # hashlib lets go of the interpreter while it hashes
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(lambda shard: hash_file(folder.path / shard.file), new))
    wrong = [shard.file for shard, digest in zip(new, digests, strict=True) if digest != shard.sha256]
    if wrong:
        raise DataError(
            f"{folder.path}: {len(wrong)} of {len(shards)} shards are not those that were built ({list_some(wrong)}: "
            "their SHA-256 differs from the manifest's); copy the folder again, or build it anew"
        )
    known |= {_name(folder, shard): [*states[shard.file], shard.sha256] for shard in new}
    # folders that are gone are forgotten
    kept = _write_memory({name: state for name, state in known.items() if Path(name).exists()}) if new else ""
    size = f" ({sum(each.bytes for each in new) / 1e6:,.1f} MB)" if new else ""
    return f"shards: {len(new)} of {len(shards)} hashed{size}, {len(shards) - len(new)} known from before{kept}"


def memory_file() -> Path:
    """Where what was found is remembered."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "vlmtrain" / "shards.json"


def _name(folder: BuiltFolder, shard: ShardEntry) -> str:
    return str((folder.path / shard.file).resolve())


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _read_memory() -> dict[str, list[int | str]]:
    try:
        loaded = json.loads(memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # nothing is remembered yet, or not in a form to be trusted: the shards are hashed
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _write_memory(known: dict[str, list[int | str]]) -> str:
    path = memory_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, known, durable=False)
    except OSError as error:
        return f"; {path} cannot be written ({error.strerror}): they will be hashed again"
    return ""
