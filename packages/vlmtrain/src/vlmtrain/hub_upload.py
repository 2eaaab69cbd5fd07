"""Uploading a finished export to the Hugging Face hub: private unless asked otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmdata.errors import ConfigError, ResourceError
from vlmtrain.source import EXPORT_FILE, RESULT_PATTERNS

__all__ = ["check_upload", "upload_export"]


def check_upload(repository: str, *, public: bool) -> None:
    """Asks the hub whether an upload would be taken, before hours are spent on making the export.

    Args:
        repository: OWNER/NAME.
        public: Whether a public repository is wanted.

    Raises:
        ConfigError: The name does not do, or the repository is public and that was not asked for.
        ResourceError: Nobody is logged in, or the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name:
        raise ConfigError(f"--push {repository!r}: not a repository of the form OWNER/NAME")
    api = HfApi(library_name="vlmtrain")
    with _hub_errors(repository):
        user = api.whoami()
        try:
            existing = api.repo_info(repository, repo_type="model")
        except RepositoryNotFoundError:
            existing = None
    print(f"push: as {user['name']} to {repository}", flush=True)
    if existing is not None and not existing.private and not public:
        raise ConfigError(f"--push {repository}: this repository is public; pass --public to upload to it")


def upload_export(folder: Path, repository: str, *, public: bool) -> str:
    """Uploads a finished export.

    export.json stays here: it names folders of this machine, and the card has its figures. So do answers and pages that
    `vlmtrain eval` left in the folder: they hold rows and pictures of the set.

    Args:
        folder: The export.
        repository: OWNER/NAME; made when it does not exist.
        public: Whether a new repository is public.

    Returns:
        The address of the commit.

    Raises:
        ResourceError: The hub did not take it; the export itself is whole.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="vlmtrain")
    with _hub_errors(repository, f"the export in {folder} is whole, and the same command with --push uploads it again"):
        api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            repo_type="model",
            commit_message="Upload the export",
            ignore_patterns=[EXPORT_FILE, *RESULT_PATTERNS],
        )
    return str(commit.commit_url)


@contextmanager
def _hub_errors(repository: str, advice: str = "") -> Iterator[None]:
    """Turns what the hub's library raises into one line.

    Raises:
        ConfigError: The name cannot be a repository's.
        ResourceError: Anything else.
    """
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    tail = f"; {advice}" if advice else ""
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"--push {repository!r}: {' '.join(str(error).split())}") from error
    except LocalTokenNotFoundError as error:
        raise ResourceError(f"--push {repository}: nobody is logged in on this machine: hf auth login{tail}") from error
    except OfflineModeIsEnabled as error:
        raise ResourceError(f"--push {repository}: HF_HUB_OFFLINE is set{tail}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = "the token is not accepted, or may not write there" if status in (401, 403) else f"status {status}"
        raise ResourceError(f"--push {repository}: the hub refuses ({reason}){tail}") from error
    except (httpx.HTTPError, OSError) as error:
        raise ResourceError(f"--push {repository}: the hub cannot be reached{tail}") from error
