"""vlmdata: raw image and text sets in, validated and deduplicated Arrow shards out.

The names below are loaded when they are first used, so that `import vlmdata` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmdata.build import build_folder
    from vlmdata.build_config import BuildConfig
    from vlmdata.errors import ConfigError, DataError, MissingDependencyError, ResourceError, ToolkitError
    from vlmdata.inline import InlineRows, inline_row
    from vlmdata.manifest import Manifest, read_manifest, verify_folder
    from vlmdata.shards import BuiltFolder, Split, open_folder

__all__ = [
    "BuildConfig",
    "BuiltFolder",
    "ConfigError",
    "DataError",
    "InlineRows",
    "Manifest",
    "MissingDependencyError",
    "ResourceError",
    "Split",
    "ToolkitError",
    "__version__",
    "build_folder",
    "inline_row",
    "open_folder",
    "read_manifest",
    "verify_folder",
]

__version__ = "0.1.0"

_HOMES = {
    "BuildConfig": "vlmdata.build_config",
    "BuiltFolder": "vlmdata.shards",
    "ConfigError": "vlmdata.errors",
    "DataError": "vlmdata.errors",
    "InlineRows": "vlmdata.inline",
    "Manifest": "vlmdata.manifest",
    "MissingDependencyError": "vlmdata.errors",
    "ResourceError": "vlmdata.errors",
    "Split": "vlmdata.shards",
    "ToolkitError": "vlmdata.errors",
    "build_folder": "vlmdata.build",
    "inline_row": "vlmdata.inline",
    "open_folder": "vlmdata.shards",
    "read_manifest": "vlmdata.manifest",
    "verify_folder": "vlmdata.manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlmdata' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
