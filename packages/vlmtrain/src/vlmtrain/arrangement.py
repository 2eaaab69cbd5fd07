"""From the settings of speed, the model and the lengths of the rows to the way a run's steps are done.

Whatever is chosen here leaves the global batch and what is learned as they are; every choice is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vlmdata.errors import ConfigError
from vlmtrain.backends import Backend
from vlmtrain.config import FitConfig
from vlmtrain.idle_layers import why_layers_may_idle
from vlmtrain.loaded import LoadedModel
from vlmtrain.preflight import CheckedSplit
from vlmtrain.processes import process_count
from vlmtrain.speed.attention import kernel_obstacle, takes_any_size, use_varlen_vision, vision_gains, window_tokens
from vlmtrain.speed.batches import BatchPlan
from vlmtrain.speed.compiled_blocks import CompiledBlocks, compile_vision_blocks, keep_if_faster
from vlmtrain.speed.compiler_race import race_of
from vlmtrain.speed.frozen_vision import skip_frozen_vision
from vlmtrain.speed.memory import fit_to_memory
from vlmtrain.speed.packing import PackedCollator, can_pack
from vlmtrain.speed.patch_products import embed_patches_by_products
from vlmtrain.speed.rounding import prefers_cudnn
from vlmtrain.speed.trainer import Arrangement
from vlmtrain.speed.trials import TrialPass, keep_compiled_if_right
from vlmtrain.speed.vision_inputs import VisionInputs
from vlmtrain.speed.window_attention import window_obstacle

__all__ = ["arrange", "choose_batching", "plans_memory"]

# Padding below this share is not worth another order of rows.
_WORTHWHILE_PADDING = 0.03
# Compiling takes as long as a hundred or more steps; what it then saves of each is a tenth of a second at best.
_WORTHWHILE_STEPS = 200

Collator = Callable[[list[dict[str, Any]]], dict[str, Any]]
Say = Callable[[str], None]


def plans_memory(config: FitConfig) -> bool:
    """Whether layers to recompute and rows of a pass are chosen by the GPU's memory."""
    import torch

    return torch.cuda.is_available() and config.optimizer.gradient_checkpointing == "auto"


def arrange(
    config: FitConfig,
    train: CheckedSplit,
    backend: Backend,
    loaded: LoadedModel,
    collate: Collator,
    say: Say,
) -> Arrangement:
    """Chooses attention, the order and packing of rows, where loss is computed, and what is recomputed.

    Args:
        config: The run's settings.
        train: The rows with their lengths.
        backend: The program that trains.
        loaded: The model, with what is to be trained.
        collate: Rows to a padded batch, its length rounded up where torch prefers cuDNN's attention.
        say: Prints a line.

    Raises:
        ConfigError: Something was asked for that this model or device does not have.
        ResourceError: Not even one row fits in the GPU's memory.
    """
    has_kernel = _choose_attention(config, loaded, say)
    if embed_patches_by_products(loaded.model):
        say("vision tower: patches are embedded by a matrix product")
    frozen = skip_frozen_vision(loaded.model)
    if frozen:
        say(f"vision tower: frozen, its {len(frozen)} blocks go without a backward pass")
    model_type = loaded.model.config.model_type
    rounded = prefers_cudnn(next(loaded.model.parameters()).device)
    plan = choose_batching(config, train.lengths.tokens, model_type, say, has_kernel=has_kernel, rounded=rounded)
    steps = config.optimizer.count_steps(plan.steps)
    compiles, blocks = _choose_compilation(config, backend, loaded, steps, say, frozen=bool(frozen))
    if compiles or blocks is not None:
        from vlmtrain.speed.product_sums import add_products_in_place

        if add_products_in_place():
            say("compiled layers: products are added in place")
    arrangement = Arrangement(plan=plan, frozen=frozen)
    if config.speed.loss_on == "supervised" or (config.speed.loss_on == "auto" and backend.NAME == "unsloth"):
        arrangement.score = backend.score_supervised
    arrangement.collate = collate
    if plan.packed:
        arrangement.collate = PackedCollator(arrangement.collate, loaded.model)
    vision_config = getattr(loaded.model.config, "vision_config", None)
    if can_pack(model_type):
        arrangement.collate = vision_inputs = VisionInputs(arrangement.collate, vision_config)
        arrangement.add_vision_inputs = vision_inputs.add
    if process_count() > 1:
        reason = why_layers_may_idle(loaded.model, loaded.source.family, config.adapter, train.lengths)
        arrangement.layers_may_idle = reason is not None
        if reason:
            say(f"processes: each looks in every step for layers without a gradient, which takes time ({reason})")
    if plans_memory(config):
        fit_to_memory(config, train, loaded, arrangement, say)

    _try_compiled(config, train, loaded, arrangement, say, compiles=compiles, blocks=blocks)
    return arrangement


def _choose_attention(config: FitConfig, loaded: LoadedModel, say: Say) -> bool:
    """Switches the vision tower if it gains; returns whether the device has the kernel."""
    device = next(loaded.model.parameters()).device
    obstacle = kernel_obstacle(device, loaded.dtype)
    wanted = config.speed.attention
    gains = vision_gains(loaded.model)
    if wanted == "varlen" and not gains:
        raise ConfigError("attention 'varlen': this model's vision tower attends to one picture at a time in any case")
    if wanted == "varlen" or (wanted == "auto" and gains and obstacle is None):
        in_windows, windows = _choose_windows(loaded) if wanted == "auto" else (False, "")
        use_varlen_vision(loaded.model, in_windows=in_windows)
        slow = f", sequence by sequence: {obstacle}" if obstacle else ""
        calls = (
            "all pictures in one call" if takes_any_size(loaded.model) else "all pictures in two calls, without a mask"
        )
        say(f"vision attention: variable-length, {calls}{slow}{windows}")
    elif gains:
        say(f"vision attention: transformers' own ({'asked for' if wanted == 'loop' else obstacle})")
    return obstacle is None


def _choose_windows(loaded: LoadedModel) -> tuple[bool, str]:
    """Whether blocks that attend within windows get kernels of their own, and what to say of it."""
    tokens = window_tokens(loaded.model)
    if not tokens:
        return False, ""
    vision = loaded.model.config.vision_config
    device = next(loaded.model.parameters()).device
    obstacle = window_obstacle(device, loaded.dtype, tokens, vision.hidden_size // vision.num_heads)
    if obstacle:
        return False, f", windows like pictures: {obstacle}"
    return True, f"; within windows of {tokens} patches by kernels that rotate and attend in one"


def _choose_compilation(
    config: FitConfig, backend: Backend, loaded: LoadedModel, steps: int, say: Say, *, frozen: bool
) -> tuple[bool, CompiledBlocks | None]:
    """Whether the backend compiles language layers, and the blocks of the vision tower, compiled where that can pay."""
    import torch

    on_gpu = next(loaded.model.parameters()).device.type == "cuda"
    compiles = backend.COMPILES and on_gpu
    if compiles and (race := race_of(loaded.model)):
        torch.compiler.set_stance("force_eager")
        say(f"compiled layers: none in this run, as {race} (docs/speed.md)")
        return False, None
    wanted = config.speed.compile_vision
    if wanted == "off" or (wanted == "auto" and (frozen or not on_gpu)):
        return compiles, None
    if wanted == "auto" and steps < _WORTHWHILE_STEPS:
        say(f"vision tower: not compiled for {steps} steps; tried from {_WORTHWHILE_STEPS} on (--compile-vision on)")
        return compiles, None
    blocks = compile_vision_blocks(loaded.model, say, make_traceable=backend.make_traceable)
    if not blocks.count:
        return compiles, None
    say(f"vision tower: {blocks.count} blocks are compiled before the first step")
    return compiles, blocks


def _try_compiled(
    config: FitConfig,
    train: CheckedSplit,
    loaded: LoadedModel,
    arrangement: Arrangement,
    say: Say,
    *,
    compiles: bool,
    blocks: CompiledBlocks | None,
) -> None:
    """Keeps the vision blocks compiled where that is faster, and all that is compiled where it is right."""
    import torch

    def first_pass() -> TrialPass:
        return TrialPass([train.rows[row] for row in arrangement.plan.arrange(0)[0]], loaded, arrangement)

    if blocks is not None and blocks.enabled and config.speed.compile_vision == "auto":
        keep_if_faster(blocks, first_pass().run, torch.cuda.synchronize, say)
        if not blocks.enabled and plans_memory(config):
            # blocks as they were keep more
            fit_to_memory(config, train, loaded, arrangement, say)
    compiles |= blocks is not None and blocks.enabled
    if compiles and not keep_compiled_if_right(first_pass(), say) and plans_memory(config):
        fit_to_memory(config, train, loaded, arrangement, say)


def choose_batching(
    config: FitConfig,
    lengths: npt.NDArray[np.int64],
    model_type: str,
    say: Say,
    *,
    has_kernel: bool,
    rounded: bool = False,
) -> BatchPlan:
    """Chooses which rows go through the model together.

    Args:
        config: The run's settings.
        lengths: `(N,)` tokens of each row.
        model_type: Of the model's config.
        say: Prints a line.
        has_kernel: Whether the device has the variable-length kernel.
        rounded: Whether lengths of padded batches are rounded up.

    Raises:
        ConfigError: Something was asked for that this model does not have.
    """
    speed = config.speed
    packable = can_pack(model_type)
    if speed.batching == "packed" and not packable:
        raise ConfigError(f"batching 'packed': rows of a {model_type} model cannot be packed; use 'length'")
    rows, passes = _rows_and_passes(config)

    def plan(**how: Any) -> BatchPlan:
        seed = config.optimizer.seed
        return BatchPlan(lengths=lengths, rows=rows, passes=passes, processes=process_count(), seed=seed, **how)

    plain = plan().padding()
    choice: str = speed.batching
    if choice == "auto":
        if packable and has_kernel:
            choice = "packed"
        elif speed.batch_tokens is not None or (has_kernel and plain > _WORTHWHILE_PADDING):
            choice = "length"
        else:
            choice = "plain"
    rounded = rounded and choice != "packed"
    up = ", lengths rounded up" if rounded else ""
    if choice == "plain":
        chosen = plan(rounded=rounded)
        say(f"rows in random order{up}, {chosen.padding():.1%} of the tokens are padding")
        return chosen
    chosen = plan(tokens=speed.batch_tokens, by_length=choice == "length", packed=choice == "packed", rounded=rounded)
    how = "one after the other" if choice == "packed" else "beside rows of like length"
    say(f"rows {how}{up}: {chosen.padding():.1%} of the tokens are padding (in plain random order {plain:.1%})")
    return chosen


def _rows_and_passes(config: FitConfig) -> tuple[int, int]:
    """Rows of a forward pass and passes of a step on one device, as asked for."""
    rows, passes = config.optimizer.batch_size, config.optimizer.grad_accum
    asked = config.speed.micro_batch
    if asked is None:
        return rows, passes
    whole = rows * passes
    if whole % asked:
        raise ConfigError(f"micro_batch {asked} does not divide the global batch of {whole} rows on each device")
    return asked, whole // asked
