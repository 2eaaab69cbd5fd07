"""The sizes of a tiny model."""

from __future__ import annotations

from dataclasses import dataclass

from vlmdata.errors import ConfigError

__all__ = ["HEAD_SIZE", "TinyOptions"]

HEAD_SIZE = 32
"""Channels of an attention head, in every tower of every tiny model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyOptions:
    """Sizes of a tiny model; what is left out is the family's default."""

    hidden_size: int = 160
    """Width of the language model, a multiple of 32."""
    layers: int = 4
    """Layers of the language model."""
    vision_hidden_size: int = 128
    """Width of the vision tower, a multiple of 32."""
    vision_layers: int = 4
    """Layers of the vision tower."""
    patch_size: int | None = None
    """Side of a patch in pixels. Unset: the family's own."""
    vocab_size: int = 1024
    """Tokens of the text vocabulary, special tokens not counted; at least 256, one for each byte."""
    seed: int = 0
    """Seed of the random weights."""

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have, all of them at once.

        Raises:
            ConfigError: A size is out of range.
        """
        problems = [
            f"{name} must be a positive multiple of {HEAD_SIZE}, not {value!r}"
            for name, value in (("hidden_size", self.hidden_size), ("vision_hidden_size", self.vision_hidden_size))
            if value <= 0 or value % HEAD_SIZE
        ]
        problems += [
            f"{name} must be at least {least}, not {value!r}"
            for name, value, least in (
                ("layers", self.layers, 1),
                ("vision_layers", self.vision_layers, 1),
                ("vocab_size", self.vocab_size, 256),
                ("patch_size", 14 if self.patch_size is None else self.patch_size, 1),
                ("seed", self.seed, 0),
            )
            if value < least
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def heads(self) -> int:
        """Attention heads of the language model."""
        return self.hidden_size // HEAD_SIZE

    @property
    def kv_heads(self) -> int:
        """Key and value heads of the language model: two query heads share one where their number is even."""
        return self.heads // 2 if self.heads % 2 == 0 else self.heads

    @property
    def vision_heads(self) -> int:
        """Attention heads of the vision tower."""
        return self.vision_hidden_size // HEAD_SIZE
