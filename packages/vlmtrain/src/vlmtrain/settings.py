"""Settings of the commands other than `fit`; their attribute docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vlmdata.errors import ConfigError
from vlmtrain.config import BackendName, LoadIn
from vlmtrain.value_checks import not_positive, not_seed, split_names

__all__ = ["EvalConfig", "ExportConfig", "GenerateConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """What to evaluate on, and against what."""

    data: Path | None = None
    """Folder that `vlmdata build` made. Unset: that of the run."""
    split: str = "val"
    """Split to answer."""
    metrics: tuple[str, ...] = ("exact_match", "cer", "wer")
    """Names with commas between, or the option again for more: exact_match, exact_match_casefold, cer, wer, anls,
    relaxed_accuracy, vqa_accuracy, token_f1, json_fields, rouge_l, chrf, macro_f1."""
    rows: int | None = None
    """Most rows, drawn once by the seed. Unset: all."""
    batch_size: int = 8
    """Rows answered at once."""
    max_new_tokens: int | None = None
    """Longest answer in tokens. Unset: the longest reference and some more."""
    backend: BackendName = "auto"
    """Program that answers: Unsloth where a supported GPU is there, else transformers."""
    load_in: LoadIn = "auto"
    """Precision of the weights. auto: that of the run's training."""
    compare: str | None = None
    """Another model or run that answers the same rows; differences are paired, with intervals."""
    precision: tuple[str, ...] = ()
    """Precisions to answer in, one after another, as in 4bit,8bit,16bit: each against the widest, paired."""
    swap_images: bool = False
    """Answer once more with each row's pictures taken from another row: does the model look?"""
    rank: bool = False
    """Instead of answering, rank the rows by the loss of their own answers: wrong labels come first."""
    top: int = 20
    """Rows of the ranking that are printed; the file has all."""
    out: Path | None = None
    """File for the result. Unset: eval-SPLIT.json in the run's or model's folder."""
    seed: int = 0
    """Of the choice of rows and the bootstrap."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        object.__setattr__(self, "metrics", split_names(self.metrics))
        problems = not_positive(self, "rows", "batch_size", "max_new_tokens", "top") + not_seed(self)
        known = get_args(LoadIn)[1:]
        problems += [
            f"precision: {name!r} is not one of {', '.join(known)}" for name in self._named() if name not in known
        ]
        if self.precision and self.load_in != "auto":
            problems.append("--precision and --load-in both say how the weights are held: pass one of them")
        if self.rank and (self.compare or self.precision or self.swap_images):
            problems.append("--rank asks for no answers: --compare, --precision and --swap-images do not go with it")
        beside = {".jsonl": "predictions go", ".html": "page goes"}
        if self.out is not None and self.out.suffix in beside and not self.rank:
            what = beside[self.out.suffix]
            problems.append(f"out: {str(self.out)!r} is where the {what}; name a .json file for the scores")
        if problems:
            raise ConfigError(problems)

    def _named(self) -> list[str]:
        return [part.strip() for each in self.precision for part in each.split(",") if part.strip()]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of --precision, the widest first, each once."""
        return tuple(sorted(set(self._named()), key=lambda name: -int(name.removesuffix("bit"))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to write, and on what to check it."""

    out: Path
    """Folder to write."""
    format: Literal["adapter", "merged_16bit", "merged_4bit", "gguf"] = "merged_16bit"
    """adapter: the adapter with its processor, to be put on its base. merged_16bit: a whole model without adapter.
    merged_4bit: the same with its language model rounded to 4 bit once more. gguf: the model and its vision
    projector for llama.cpp."""
    gguf_type: Literal["bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = "bf16"
    """How --format gguf stores the language model; the projector is stored in bf16 or f16."""
    llama_cpp: Path | None = None
    """Folder of llama.cpp, with convert_hf_to_gguf.py. Unset: $UNSLOTH_LLAMA_CPP_PATH; never downloaded."""
    data: Path | None = None
    """Folder whose rows the export is checked on. Unset: that of the run."""
    check_rows: int = 8
    """Rows to check on."""
    drift_rows: int = 64
    """Rows that export and run both answer, where the run was trained in another precision than it is exported in."""
    metrics: tuple[str, ...] = ("exact_match", "cer")
    """Metrics of these answers: names with commas between, or the option again for more."""
    license: str | None = None
    """Licence of the export as the hub names it (apache-2.0). Unset: that of the base's own card."""
    push: str | None = None
    """Repository OWNER/NAME on the hub to upload the finished export to; a new one is private."""
    public: bool = False
    """Let --push make a public repository, or upload to one."""
    backend: BackendName = "auto"
    """Program that merges: Unsloth where a supported GPU is there, else peft."""
    overwrite: bool = False
    """Replace an earlier export."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range.
        """
        object.__setattr__(self, "metrics", split_names(self.metrics))
        problems = not_positive(self, "check_rows", "drift_rows")
        if self.public and not self.push:
            problems.append("--public goes with --push")
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateConfig:
    """What to ask."""

    prompt: str | None = None
    """The question."""
    image: tuple[Path, ...] = ()
    """Picture file; again for more pictures in one request."""
    system: str | None = None
    """Text of a system turn."""
    batch: Path | None = None
    """JSON-lines file of requests {"prompt": …, "image": FILE}; the answers come as JSON lines."""
    batch_size: int = 8
    """Requests answered at once."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above, tokens are drawn."""
    seed: int = 0
    """Of the drawing."""
    backend: BackendName = "auto"
    """Program that answers: Unsloth where a supported GPU is there, else transformers."""
    load_in: LoadIn = "auto"
    """Precision of the weights. auto: that of the run's training."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: A value is out of range, or there is nothing to ask.
        """
        problems = not_positive(self, "batch_size", "max_new_tokens") + not_seed(self)
        if self.temperature < 0:
            problems.append(f"temperature must not be negative, as {self.temperature!r} is")
        if (self.prompt is None) == (self.batch is None):
            problems.append("pass either --prompt (with --image) or --batch")
        if self.batch is not None and self.image:
            problems.append("--image goes with --prompt; the lines of --batch name their own pictures")
        if problems:
            raise ConfigError(problems)
