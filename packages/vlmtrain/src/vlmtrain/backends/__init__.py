"""The two programs that train: Unsloth on a GPU, transformers with peft and trl everywhere.

Both modules have the same functions (`Backend`). `choose_backend` imports the one that was chosen, and nothing of
torch's ecosystem before it: Unsloth has to be imported first.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, cast

from vlmdata.errors import MissingDependencyError
from vlmtrain.adapter_config import AdapterConfig
from vlmtrain.chat import ChatFormat
from vlmtrain.config import FitConfig
from vlmtrain.loaded import LoadedModel
from vlmtrain.source import ModelSource

__all__ = ["Backend", "choose_backend"]


class Backend(Protocol):
    """What a backend module offers."""

    NAME: str
    COMPILES: bool
    """Whether it compiles layers by itself."""

    def load_model(
        self,
        source: ModelSource,
        processor: Any,
        *,
        load_in: str,
        max_length: int,
        method: str,
        checkpointing: str,
        trust_remote_code: bool,
    ) -> LoadedModel:
        """Loads the weights, and the adapter on them if there is one."""

    def add_adapter(self, loaded: LoadedModel, config: AdapterConfig, *, checkpointing: str, seed: int) -> None:
        """Puts fresh LoRA adapters on the layers that the config chooses."""

    def make_collator(
        self, loaded: LoadedModel, chat: ChatFormat, *, max_length: int, last_turn_only: bool
    ) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Makes what turns rows into a padded batch with labels."""

    def trainer_class(self) -> type:
        """The class of trl's SFTTrainer to derive from."""

    def checkpointing_arguments(self, config: FitConfig) -> dict[str, Any]:
        """Arguments of SFTConfig that switch gradient checkpointing."""

    def score_supervised(self, model: Any, inputs: dict[str, Any], positions: Any) -> tuple[Any, Any]:
        """A forward pass up to the output head.

        Args:
            model: As the trainer holds it.
            inputs: A batch without labels.
            positions: `(K,)` positions whose states are wanted.

        Returns:
            `(B, K, H)` last hidden states and the head, or `(B, K, V)` scores and the identity.
        """

    def make_traceable(self, classes: Iterable[type]) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Readies classes of modules for compilation.

        Args:
            classes: Of the modules that a compiled block consists of.

        Returns:
            What to enter around each call of a compiled block.
        """

    def prepare_inference(self, loaded: LoadedModel) -> None:
        """Switches the model to generation."""

    def prepare_training(self, loaded: LoadedModel) -> None:
        """Switches it back to training, with the gradient checkpointing that it was loaded with."""

    def save_merged(self, loaded: LoadedModel, out: Path) -> None:
        """Writes the whole model in 16 bit, adapters merged into the unquantised weights."""


def choose_backend(requested: str) -> tuple[Backend, str]:
    """Picks and imports a backend.

    Args:
        requested: `auto`, `unsloth` or `transformers`.

    Returns:
        The backend and the reason for it, in words.

    Raises:
        MissingDependencyError: Unsloth was asked for where there is no GPU for it, or is not installed.
    """
    name, reason = requested, "asked for"
    obstacle = _unsloth_obstacle() if requested != "transformers" else None
    if requested == "auto":
        name = "transformers" if obstacle else "unsloth"
        reason = obstacle or "a supported GPU is there"
    elif requested == "unsloth" and obstacle:
        raise MissingDependencyError(f"backend 'unsloth' was asked for, but {obstacle}; use --backend transformers")
    return cast(Backend, importlib.import_module(f"vlmtrain.backends.{name}")), reason


def _unsloth_obstacle() -> str | None:
    """Why Unsloth cannot run here, or None."""
    if importlib.util.find_spec("unsloth") is None:
        return "unsloth is not installed (pip install unsloth)"
    import torch

    if torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available()):
        return None
    return "no GPU is visible to torch"
