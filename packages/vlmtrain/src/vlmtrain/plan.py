"""`vlmtrain plan`: what a run would take, before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError, DataError
from vlmdata.families import Family, ImageGrid, find_family, read_grid
from vlmdata.shards import open_folder
from vlmtrain.config import AdapterConfig, OptimizerConfig
from vlmtrain.image_tokens import vision_positions
from vlmtrain.json_files import read_object
from vlmtrain.lengths import heaviest_step, measure_lengths
from vlmtrain.memory import Checkpointing, MemoryEstimate, StepLoad, estimate_memory
from vlmtrain.model_shape import ModelShape, read_shape
from vlmtrain.plan_config import PlanConfig
from vlmtrain.precision import MEMORY_SHARE
from vlmtrain.processors import load_chat_format, load_processor
from vlmtrain.source import find_model

__all__ = ["Plan", "make_plan"]

_GIB = 2**30
# Dense 16-bit matrix products in 10^12 operations a second, by the makers' data sheets.
_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "L40": 181,
    "L4": 121,
    "A10": 125,
    "4090": 165,
    "3090": 71,
    "V100": 125,
    "T4": 65,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What there is to learn from."""

    rows: int
    """Training rows."""
    tokens: float
    """Of an average row, image tokens included."""
    image_tokens: float
    """Of an average row."""
    patches: float
    """Of an average row."""
    step: StepLoad
    """The micro-batch of the longest rows."""
    words: str
    """Where the numbers come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was worked out."""

    shape: ModelShape
    workload: Workload
    adapter: AdapterConfig
    optimizer: OptimizerConfig
    fused: bool
    offloaded: bool
    compiles: Literal["auto", "on", "off"]
    """Whether the vision tower's blocks are compiled, as asked for."""
    window_kernels: bool
    """Whether attention within windows goes through the kernels for it: assumed, unless the GPU here is too old."""
    limit_bytes: int | None
    """What the GPU gives, or None where that is not known."""
    tflops: float | None
    """What the GPU computes, or None where that is not known."""

    def estimate(
        self,
        load_in: str,
        checkpointing: Checkpointing,
        *,
        step: StepLoad | None = None,
        compiled: bool | None = None,
        **changes: Any,
    ) -> MemoryEstimate:
        """The memory of a training step, with other settings where they are given."""
        return estimate_memory(
            self.shape,
            step or self.workload.step,
            adapter=dataclasses.replace(self.adapter, **changes),
            load_in="16bit" if self.adapter.method == "full" else load_in,
            checkpointing=checkpointing,
            fused=self.fused,
            offloaded=self.offloaded and checkpointing == "full",
            optimizer=self.optimizer.resolve_optimizer(self.adapter.method, on_gpu=True),
            compiled_vision=self.compiles == "on" if compiled is None else compiled,
            window_kernels=self.window_kernels,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        batch = self.optimizer.batch_size * self.optimizer.grad_accum
        per_epoch = max(1, math.ceil(self.workload.rows / batch))
        return self.optimizer.count_steps(per_epoch)

    def flops_of_row(self, *, recomputed: bool) -> float:
        """Operations for forward and backward pass over an average row.

        4 for each weight and position, 6 where weights are trained, 2 more where activations are computed again;
        attention by its pairs of positions.
        """
        language, tokens = self.shape.parameters.get("language", 0), self.workload.tokens
        vision, patches = self.shape.parameters.get("vision", 0), self.workload.patches
        passes = (6 if self.adapter.method == "full" else 4) + (2 if recomputed else 0)
        products = passes * (language * tokens + vision * patches)
        stacks = (("language", tokens, tokens / 2), ("vision", patches, patches))
        pairs: float = sum(
            4 * count * span * block.width
            for part, count, span in stacks
            for block in self.shape.blocks
            if block.part == part
        )
        return products + pairs * passes / 2


def make_plan(config: PlanConfig, adapter: AdapterConfig, optimizer: OptimizerConfig) -> Plan:
    """Reads the model's config and the set's sizes; no weight is read or made.

    Raises:
        ToolkitError: The model or the set is not there, or not of a known kind.
    """
    model_config = _read_config(config.model)
    shape = read_shape(model_config)
    family = find_family(model_config)
    if config.data is not None:
        workload = _measure_set(config, config.data, optimizer.batch_size)
    else:
        workload = _assume_rows(config, family, optimizer.batch_size)
    limit, tflops = _gpu(config)
    unsloth = config.backend == "unsloth"
    return Plan(
        shape=shape,
        workload=workload,
        adapter=adapter,
        optimizer=optimizer,
        fused=unsloth,
        offloaded=unsloth and optimizer.gradient_checkpointing == "unsloth",
        compiles=config.compile_vision,
        window_kernels=_has_window_kernels(),
        limit_bytes=limit,
        tflops=tflops,
    )


def _read_config(model: str) -> dict[str, Any]:
    """config.json of a model whose weights need not be there."""
    path = Path(model).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.is_file() and not (path / "run.json").is_file():
        loaded = read_object(file)
        if "model_type" not in loaded:
            raise ConfigError(f"{file}: not the config.json of a model (no model_type)")
        return loaded
    return find_model(model).config


def _measure_set(config: PlanConfig, data: Path, batch_size: int) -> Workload:
    path = Path(config.model).expanduser()
    source = find_model(str(path.parent) if path.is_file() else config.model, weights_needed=False)
    chat = load_chat_format(source, load_processor(source))
    split = open_folder(data).split(config.train_split)
    if not split.num_rows:
        raise DataError(f"{data}: split {config.train_split!r} has no rows to plan for")
    lengths = measure_lengths(split, chat, source.family)
    return Workload(
        rows=len(lengths.tokens),
        tokens=float(lengths.tokens.mean()),
        image_tokens=float(lengths.image_tokens.mean()),
        patches=float(lengths.patches.mean()),
        step=heaviest_step(lengths, batch_size),
        words=f"{len(lengths.tokens)} of {data}",
    )


def _assume_rows(config: PlanConfig, family: Family | None, batch_size: int) -> Workload:
    if family is None:
        raise ConfigError("the model's family is unknown, so that the tokens of a picture are too: pass --data")
    grid = _read_grid(config.model, family)
    image_tokens = sum(grid.image_tokens(*size) for size in config.sizes)
    patches = sum(vision_positions(grid, *size) for size in config.sizes)
    tokens = image_tokens + config.text_tokens
    shown = ", ".join(f"{width}x{height}" for width, height in config.sizes)
    return Workload(
        rows=config.rows,
        tokens=tokens,
        image_tokens=image_tokens,
        patches=patches,
        step=StepLoad(rows=batch_size, tokens=batch_size * tokens, patches=batch_size * patches),
        words=f"{config.rows} assumed, each with {config.text_tokens} tokens of text and pictures of {shown} px",
    )


def _read_grid(model: str, family: Family) -> ImageGrid:
    """The grid of the processor beside the config, else that of the family's hub models."""
    path = Path(model).expanduser()
    folder = path if path.is_dir() else path.parent
    files = [folder / "processor_config.json", folder / "preprocessor_config.json"]
    found = [read_object(file) if file.is_file() else {} for file in files]
    return read_grid(family, *found) if any(found) else family.grid


def _has_window_kernels() -> bool:
    import torch

    from vlmtrain.speed.attention import kernel_obstacle

    return not torch.cuda.is_available() or kernel_obstacle(torch.device("cuda"), torch.bfloat16) is None


def _gpu(config: PlanConfig) -> tuple[int | None, float | None]:
    import torch

    limit = config.gpu_memory_gb * _GIB if config.gpu_memory_gb else None
    tflops = config.tflops
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        limit = limit or device.total_memory
        tflops = tflops or next((value for name, value in _TFLOPS.items() if name in device.name), None)
    return (int(limit * MEMORY_SHARE) if limit else None), tflops
