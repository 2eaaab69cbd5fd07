"""The notebooks' script through Unsloth's code on a CPU: `recipe_batches.py BATCH SCRIPT ARGUMENT…`.

SCRIPT runs as it is, in 32 bit; the tensors of the last batch that its trainer is given go to BATCH.
"""

from __future__ import annotations

import functools
import runpy
import sys
from typing import Any

import unsloth_on_cpu


def main(batch_file: str, script: str, *arguments: str) -> None:
    """Makes a CPU do for the GPU that the script asks for, and runs it."""
    unsloth_on_cpu.patch_trainer()
    import torch
    import transformers
    import trl
    import unsloth
    from safetensors.torch import save_file

    configure, step = trl.SFTConfig, transformers.Trainer.training_step

    def step_to_file(trainer: Any, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        tensors = {name: value.contiguous() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        save_file(tensors, batch_file)
        return step(trainer, model, inputs, *rest, **more)

    def use(function: Any, **instead: Any) -> Any:
        return functools.wraps(function)(lambda *args, **options: function(*args, **options | instead))

    torch.cuda.max_memory_allocated = lambda: 0
    transformers.Trainer.training_step = step_to_file
    trl.SFTConfig = use(configure, optim="adamw_torch", use_cpu=True, bf16=False)
    # Unsloth's own recomputation wants a GPU
    model, plain = unsloth.FastVisionModel, {"use_gradient_checkpointing": True}
    model.from_pretrained = use(model.from_pretrained, **plain, dtype=torch.float32, load_in_16bit=False)
    model.get_peft_model = use(model.get_peft_model, **plain)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
