"""What is trained: the settings of adapters, and the presets that stand for several settings at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlmdata.errors import ConfigError

__all__ = ["PRESETS", "AdapterConfig", "PresetName", "describe_preset", "preset_values"]

PresetName = Literal[
    "full",
    "new-domain",
    "same-domain",
    "quick",
    "vision-only",
    "language-only",
    "minimal",
    "medical",
    "notebook",
]

_NO_VISION = {"finetune_vision_layers": False}
_ATTENTION_ONLY = {"finetune_mlp_modules": False}

PRESETS: dict[str, dict[str, Any]] = {
    # every layer, the rates of the design's defaults
    "full": {"r": 16, "alpha": 16, "lr": 1e-4},
    # pictures unlike those of the pretraining: the tower and what joins it to the text have to move
    "new-domain": {"r": 16, "alpha": 16, "lr": 1e-4, "connector": "lora", "connector_lr": 1e-4},
    # familiar pictures, another task: the tower sees well enough as it is
    "same-domain": {"r": 16, "alpha": 16, "lr": 1e-4, **_NO_VISION},
    "quick": {"r": 16, "alpha": 16, "lr": 2e-4, **_NO_VISION, **_ATTENTION_ONLY},
    # a pretrained tower forgets quickly
    "vision-only": {"r": 16, "alpha": 16, "lr": 5e-5, "finetune_language_layers": False},
    "language-only": {"r": 16, "alpha": 16, "lr": 2e-4, **_NO_VISION},
    "minimal": {"r": 8, "alpha": 8, "lr": 2e-4, **_NO_VISION, **_ATTENTION_ONLY},
    # fine differences in grey: more rank, slower in the tower
    "medical": {"r": 32, "alpha": 32, "lr": 1e-4, "vision_lr": 5e-5},
    # what Unsloth's vision notebooks set, to compare with them
    "notebook": {
        "r": 16,
        "alpha": 16,
        "lr": 2e-4,
        "load_in": "4bit",
        "batch_size": 2,
        "grad_accum": 4,
        "optimizer": "adamw_8bit",
        "schedule": "linear",
        # 5 of their 30 steps
        "warmup": 1 / 6,
        "weight_decay": 0.001,
        "max_grad_norm": 1.0,
        "seed": 3407,
    },
}
"""Settings by preset; flags that a preset does not name are on. Sources: the layer choices that guides name, with
learning rates from 2e-5 to 2e-4 as they vary there; the notebooks' own arguments."""


def preset_values(name: str | None) -> dict[str, Any]:
    """The settings that a preset stands for; none without a name.

    Raises:
        ConfigError: There is no such preset.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def describe_preset(name: str, values: Mapping[str, Any]) -> str:
    """One line: what a preset set, and what was given instead.

    Args:
        name: The preset's.
        values: The resolved settings of the run, by option name.
    """

    def written(option: str, value: Any) -> str:
        return f"{option} {value:.3g}" if isinstance(value, float) else f"{option} {value}"

    kept = [written(option, value) for option, value in PRESETS[name].items() if values[option] == value]
    own = [written(option, values[option]) for option, value in PRESETS[name].items() if values[option] != value]
    return f"preset {name}: {', '.join(kept)}" + (f"; given instead: {', '.join(own)}" if own else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What is trained: adapters on chosen layers, or all weights."""

    preset: PresetName | None = None
    """Layers, rank and learning rates for a purpose; any other option wins over it. full: all layers; new-domain: also
    the connector; same-domain, language-only: language model; quick, minimal: its attention; medical: all, r 32;
    notebook: the settings of Unsloth's notebooks."""
    method: Literal["lora", "full"] = "lora"
    """Train low-rank adapters, or all weights."""
    r: int = 16
    """Rank of the adapters."""
    alpha: int = 16
    """Scale of the adapters' output is alpha / r (alpha / sqrt(r) with --rslora)."""
    dropout: float = 0.0
    """Share of the adapters' input that is dropped in training."""
    rslora: bool = False
    """Scale by the square root of the rank (rank-stabilised LoRA)."""
    dora: bool = False
    """Learn each weight's magnitude apart from its direction (DoRA): slower, at times better at a low rank."""
    loftq: bool = False
    """Begin with adapters that make up for the rounding of 4-bit weights (LoftQ), instead of with none."""
    targets: Literal["flags", "all-linear"] = "flags"
    """Layers that get an adapter: those the finetune flags choose, or every linear layer but the output head."""
    finetune_vision_layers: bool = True
    """Adapt layers of the vision tower."""
    finetune_language_layers: bool = True
    """Adapt layers of the language model."""
    finetune_attention_modules: bool = True
    """Adapt attention projections."""
    finetune_mlp_modules: bool = True
    """Adapt MLP projections."""
    connector: Literal["frozen", "lora", "full"] = "frozen"
    """What carries pictures over to the language model (merger, projector): left as it is, adapted, or trained in all
    of its weights, which are saved with the adapter."""
    modules_to_save: tuple[str, ...] = ()
    """Further module to train in all of its weights and save with the adapter, by name or the end of its name; again
    for more."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range, or the flags leave nothing to train.
        """
        problems = []
        if self.r <= 0:
            problems.append(f"r must be positive, not {self.r!r}")
        if self.alpha <= 0:
            problems.append(f"alpha must be positive, not {self.alpha!r}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout must lie in [0, 1), not {self.dropout!r}")
        problems += self._problems_of_full() if self.method == "full" else self._problems_of_lora()
        if problems:
            raise ConfigError(problems)

    def _problems_of_full(self) -> list[str]:
        problems = []
        if self.preset is not None:
            problems.append(f"preset {self.preset!r} chooses adapters, and method 'full' trains all weights: drop one")
        chosen = [name for name in ("dora", "loftq", "rslora", "modules_to_save") if getattr(self, name)]
        chosen += ["connector"] if self.connector != "frozen" else []
        if chosen:
            problems.append(f"{', '.join(chosen)}: of adapters; method 'full' trains all weights anyway")
        return problems

    def _problems_of_lora(self) -> list[str]:
        problems = []
        if self.dora and self.loftq:
            problems.append("dora clashes with loftq: each sets in its own way what the adapters begin with")
        if self.targets == "flags" and self.connector != "lora":
            if not self.finetune_vision_layers and not self.finetune_language_layers:
                problems.append(
                    "finetune_vision_layers and finetune_language_layers are both off: nothing is left to train"
                )
            if not self.finetune_attention_modules and not self.finetune_mlp_modules:
                problems.append(
                    "finetune_attention_modules and finetune_mlp_modules are both off: nothing is left to train"
                )
        return problems
