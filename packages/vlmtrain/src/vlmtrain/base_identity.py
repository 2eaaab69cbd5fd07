"""Which base model an adapter belongs to: told by commit on the hub, by a fingerprint of the weights in a folder.

An adapter on another base than its own loads without an error and answers worse, so a base that changed is said.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError, ResourceError
from vlmdata.manifest import write_json_atomically
from vlmtrain.hub import cached_commit
from vlmtrain.source import ModelSource

__all__ = ["describe_base_change", "identify_base", "pin_base", "require_same_base"]

_BLOCKS = 16
_BLOCK_BYTES = 1 << 16


def identify_base(source: ModelSource) -> dict[str, Any]:
    """What a base is told by later.

    Returns:
        `name`; `revision` as it was asked for and `commit` as the hub resolved it; `fingerprint` of a folder's
        weights: names and sizes of all weight files and 16 blocks of 64 KiB from each. Training or rounding changes
        nearly every value, so blocks are enough, and a folder of 100 GB is read in a moment.
    """
    identity: dict[str, Any] = {"name": source.name, "revision": source.revision, "commit": None, "fingerprint": None}
    if source.is_local:
        identity["fingerprint"] = _fingerprint(Path(source.name))
    else:
        identity["commit"] = cached_commit(source.name, source.revision)
    return identity


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    try:
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for block in range(_BLOCKS):
                    file.seek(block * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise ResourceError(f"{folder}: the base's weights cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def describe_base_change(source: ModelSource) -> str | None:
    """How the base differs from the recorded one that the adapter was trained on; None where nothing says so."""
    recorded = source.recorded_base
    if source.adapter is None or not recorded:
        return None
    now = identify_base(source)
    for key in ("commit", "fingerprint"):
        before, after = recorded.get(key), now[key]
        if before and after and before != after:
            return (
                f"{source.adapter}: its base model {source.name} is not the one it was trained on: "
                f"{key} {after[:12]} instead of {before[:12]}"
            )
    return None


def require_same_base(source: ModelSource) -> None:
    """Refuses an adapter whose base has changed.

    Raises:
        DataError: It has.
    """
    if change := describe_base_change(source):
        raise DataError(f"{change}; restore that base, or train again on this one")


def pin_base(folder: Path, identity: dict[str, Any]) -> None:
    """Writes the commit of a hub base into an adapter's config, so that it is loaded with just that base later.

    Args:
        folder: Holds adapter_config.json.
        identity: From `identify_base`.
    """
    if identity["commit"] is None:
        return
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json_atomically(path, config | {"revision": identity["commit"]})
