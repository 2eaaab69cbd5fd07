"""The few questions that are asked of the Hugging Face hub before weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, ResourceError
from vlmdata.families import find_hub_hint
from vlmtrain.json_files import read_object

__all__ = ["cached_commit", "fetch_model_config"]


def fetch_model_config(model_id: str, revision: str | None) -> dict[str, Any]:
    """config.json of a model on the hub, or of its local cache.

    Raises:
        ConfigError: It cannot be a hub id.
        DataError: The file is broken.
        ResourceError: There is no such model, it needs a login, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    meant = find_hub_hint(model_id)
    hint = f"; did you mean {meant}?" if meant else ""
    try:
        path = hf_hub_download(model_id, "config.json", revision=revision)
    except RepositoryNotFoundError as error:
        raise ResourceError(
            f"{model_id}: no such folder here, and the hub has no such model or wants a login (`hf auth login`)" + hint
        ) from error
    except HFValidationError as error:
        raise ConfigError(f"{model_id}: no such model folder, and not a hub id: {error}") from error
    except RevisionNotFoundError as error:
        raise ResourceError(f"{model_id}: the hub has no revision {revision!r} of this model") from error
    except RemoteEntryNotFoundError as error:
        raise ResourceError(
            f"{model_id}: the hub's repository has no config.json, so it is no transformers model"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ResourceError(f"{model_id}: no such folder here, and the hub cannot be reached{hint}") from error
    return read_object(Path(path))


def cached_commit(model_id: str, revision: str | None) -> str | None:
    """The commit that a revision stood for when the model's config was last fetched; None where that is not known."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model_id, "config.json", revision=revision)
    # …/models--OWNER--NAME/snapshots/COMMIT/config.json
    return Path(path).parent.name if isinstance(path, str) else None
