"""A plan as text: the table of `vlmtrain plan`, and what to change when nothing fits."""

from __future__ import annotations

from collections.abc import Iterator

from vlmtrain.memory import Checkpointing, MemoryEstimate, StepLoad, trainable_parameters
from vlmtrain.plan import Plan
from vlmtrain.precision import MEMORY_SHARE

__all__ = ["describe_plan"]

PRECISIONS = ("16bit", "8bit", "4bit")
_GIB = 2**30
_REACHED_SHARE = 0.3
"""Of the rate of matrix products, what a training step of a vision-language model reaches; measured 0.25 to 0.4."""


def describe_plan(plan: Plan) -> str:
    """The plan as text: parts, a table of precisions and checkpointing, steps, time, and what to change."""
    load, trained = plan.workload, trainable_parameters(plan.shape, plan.adapter)
    parts = ", ".join(f"{part} {_count(count)}" for part, count in sorted(plan.shape.parameters.items()))
    step = load.step
    lines = [
        f"model: {_count(plan.shape.total)} parameters ({parts}); {trained / 1e6:.1f} M of them are trained",
        f"rows: {load.words}; an average row takes {load.tokens:.0f} tokens, {load.image_tokens:.0f} of them for "
        f"images, and {load.patches:.0f} patches in the vision tower",
        f"longest micro-batch: {step.rows} rows, {step.tokens} tokens, {step.patches} patches",
        "",
        "GiB at the peak  weights  adapters  optimizer  activations  total   with CUDA and slack",
    ]
    for load_in in PRECISIONS if plan.adapter.method == "lora" else PRECISIONS[:1]:
        for checkpointing in ("off", "selective", "full"):
            lines.append(_row(plan, load_in, checkpointing))
    lines += _compilation_words(plan)
    batch = plan.optimizer.batch_size * plan.optimizer.grad_accum
    lines += ["", f"{plan.steps} optimizer steps of {batch} rows{_time_words(plan, batch)}"]
    return "\n".join([*lines, *_advice(plan)])


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.1f} M"


def _row(plan: Plan, load_in: str, checkpointing: Checkpointing) -> str:
    found = plan.estimate(load_in, checkpointing)
    activations = found.vision_activations + found.language_activations + found.transient
    numbers = [found.weights, found.adapters, found.optimizer, activations, found.peak, found.device]
    widths = (7, 8, 9, 11, 6, 20)
    cells = "  ".join(f"{number / _GIB:{width}.1f}" for number, width in zip(numbers, widths, strict=True))
    verdict = ""
    if plan.limit_bytes is not None:
        verdict = "  fits" if found.device <= plan.limit_bytes else "  does not fit"
    return f"{load_in:>5} {checkpointing:<9}  {cells}{verdict}"


def _compilation_words(plan: Plan) -> list[str]:
    """What it would take with the vision tower's blocks compiled or not, whichever the table does not show."""
    compiled, plain = (plan.estimate("16bit", "off", compiled=compiled).peak for compiled in (True, False))
    if compiled == plain:
        return []
    if plan.compiles == "on":
        return [
            f"blocks of the vision tower: compiled; as they are, 16bit off takes {plain / _GIB:.1f} GiB instead of "
            f"{compiled / _GIB:.1f}"
        ]
    chosen = ", if fit chooses so" if plan.compiles == "auto" else ""
    return [
        f"blocks of the vision tower: as they are; compiled{chosen}, 16bit off takes {compiled / _GIB:.1f} GiB "
        f"instead of {plain / _GIB:.1f}"
    ]


def _time_words(plan: Plan, batch: int) -> str:
    if plan.tflops is None:
        return "; for an estimate of the time pass --tflops"
    seconds = plan.flops_of_row(recomputed=False) * batch / (plan.tflops * 1e12 * _REACHED_SHARE)
    slower = plan.flops_of_row(recomputed=True) / plan.flops_of_row(recomputed=False)
    return (
        f", about {seconds:.2f} s each and {_span(seconds * plan.steps)} in all without checkpointing, {slower:.1f} "
        f"times that with; at {_REACHED_SHARE:.0%} of {plan.tflops:.0f} TFLOP/s, evaluation and saving apart"
    )


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _advice(plan: Plan) -> list[str]:
    """What to change, each alone and measured, when 16 bit with full checkpointing does not fit."""
    if plan.limit_bytes is None:
        return ["no GPU here: pass --gpu-memory-gb to see what fits"]
    limit = plan.limit_bytes
    words = f"the GPU gives {limit / _GIB:.1f} GiB ({MEMORY_SHARE:.0%} of its memory)"
    load_ins = PRECISIONS if plan.adapter.method == "lora" else PRECISIONS[:1]
    fitting = [
        (load_in, checkpointing)
        for load_in in load_ins
        for checkpointing in ("off", "selective", "full")
        if plan.estimate(load_in, checkpointing).device <= limit
    ]
    if fitting:
        return [f"{words}: take {fitting[0][0]} with checkpointing {fitting[0][1]}"]
    lines = [f"{words}: nothing above fits. With {load_ins[-1]} and full checkpointing,"]
    for change, found in _changes(plan, load_ins[-1]):
        lines.append(f"  {change}: {found.device / _GIB:.1f} GiB" + (", fits" if found.device <= limit else ""))
    return lines


def _changes(plan: Plan, load_in: str) -> Iterator[tuple[str, MemoryEstimate]]:
    yield "as it is", plan.estimate(load_in, "full")
    step, optimizer = plan.workload.step, plan.optimizer
    size = step.rows
    while size > 1:
        size //= 2
        smaller = StepLoad(rows=size, tokens=step.tokens * size // step.rows, patches=step.patches * size // step.rows)
        accumulation = optimizer.batch_size * optimizer.grad_accum // size
        yield (
            f"--batch-size {size} --grad-accum {accumulation}",
            plan.estimate(load_in, "full", step=smaller),
        )
    halved = StepLoad(rows=step.rows, tokens=step.tokens // 2, patches=step.patches // 2)
    yield (
        "pictures and texts of half the size (build with a smaller --max-side)",
        plan.estimate(load_in, "full", step=halved),
    )
    if plan.adapter.method == "full":
        yield "--method lora", plan.estimate(load_in, "full", method="lora")
    elif plan.adapter.finetune_vision_layers and plan.adapter.finetune_language_layers:
        yield "--no-finetune-vision-layers", plan.estimate(load_in, "full", finetune_vision_layers=False)
