"""The reference backend: transformers, peft and trl as they are. Runs on a CPU too, and is the oracle for Unsloth's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vlmtrain.adapter_config import AdapterConfig
from vlmtrain.chat import ChatFormat
from vlmtrain.config import FitConfig
from vlmtrain.device import half_precision
from vlmtrain.layers import adapter_targets, full_modules
from vlmtrain.loaded import LoadedModel, loading
from vlmtrain.masks import IGNORE_INDEX
from vlmtrain.source import ModelSource

__all__ = [
    "COMPILES",
    "NAME",
    "add_adapter",
    "checkpointing_arguments",
    "load_model",
    "make_collator",
    "make_traceable",
    "prepare_inference",
    "prepare_training",
    "save_merged",
    "score_supervised",
    "trainer_class",
]

NAME = "transformers"
COMPILES = False

# Unsloth leaves the same parts unquantised, so that both backends train on the same weights. transformers takes these
# as regular expressions from the beginning of a module's full name.
_NOT_QUANTISED = [
    rf".*\b{part}\b"
    for part in ("lm_head", "visual", "vision_tower", "vision_model", "merger", "multi_modal_projector")
]


def load_model(
    source: ModelSource,
    processor: Any,
    *,
    load_in: str,
    max_length: int,
    method: str,
    checkpointing: str,
    trust_remote_code: bool,
) -> LoadedModel:
    """Loads the weights, and the adapter on them; see `vlmtrain.backends.Backend`."""
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    del max_length, method, checkpointing  # only Unsloth wants to know them when it loads
    on_gpu = torch.cuda.is_available()
    dtype = activation_dtype(load_in)
    arguments: dict[str, Any] = {"dtype": dtype, "revision": source.revision, "trust_remote_code": trust_remote_code}
    if load_in in ("4bit", "8bit") and "quantization_config" not in source.config:
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=load_in == "4bit",
            load_in_8bit=load_in == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=_NOT_QUANTISED,
        )
    if on_gpu:
        arguments["device_map"] = {"": torch.cuda.current_device()}
    with loading(source, load_in):
        model = AutoModelForImageTextToText.from_pretrained(source.name, **arguments)
        if source.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(source.adapter), is_trainable=True)
    return LoadedModel(model=model, processor=processor, source=source, backend=NAME, load_in=load_in, dtype=dtype)


def activation_dtype(load_in: str) -> Any:
    """The torch dtype that goes with a precision here: bfloat16 where the device has it, else float16."""
    import torch

    if load_in == "32bit":
        return torch.float32
    return half_precision()


def add_adapter(loaded: LoadedModel, config: AdapterConfig, *, checkpointing: str, seed: int) -> None:
    """Puts fresh LoRA adapters on the chosen layers; see `vlmtrain.backends.Backend`."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    del checkpointing
    set_seed(seed)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        target_modules=adapter_targets(loaded.model, config),
        modules_to_save=full_modules(loaded.model, config) or None,
        task_type="CAUSAL_LM",
    )
    loaded.model = get_peft_model(loaded.model, lora)


def make_collator(
    loaded: LoadedModel, chat: ChatFormat, *, max_length: int, last_turn_only: bool
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Makes the collator; see `vlmtrain.backends.Backend`. Rows above `max_length` never get here."""
    from vlmtrain.collator import VisionCollator

    del max_length
    return VisionCollator(chat, dtype=loaded.dtype, last_turn_only=last_turn_only)


def trainer_class() -> type:
    """Trl's SFTTrainer with the plain cross-entropy over supervised tokens."""
    import torch
    from transformers import Trainer
    from trl import SFTTrainer

    class ReferenceTrainer(SFTTrainer):  # type: ignore[misc]  # trl has no types
        """trl computes its loss with a Triton kernel, which a CPU cannot run, and as a mean of each forward pass.

        Here it is the mean over the supervised tokens of the whole global batch, whatever the accumulation.
        """

        def __init__(self, *args: Any, model: Any, **kwargs: Any) -> None:
            # trl rounds adapters on quantised weights to bfloat16, in which small updates vanish.
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            values = [parameter.data for parameter in trained]
            super().__init__(*args, model=model, **kwargs)
            for parameter, value in zip(trained, values, strict=True):
                parameter.data = value
            # makes transformers count the tokens of all forward passes of a step, and not divide a second time
            self.model_accepts_loss_kwargs = True

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The share of one forward pass in the step's loss; its own mean when it is evaluated alone."""
            labels = inputs["labels"]
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            targets = labels[:, 1:].flatten()
            logits = outputs.logits[:, :-1].flatten(0, 1).float()
            total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORE_INDEX)
            loss = total / (num_items_in_batch if num_items_in_batch is not None else (targets >= 0).sum())
            if num_items_in_batch is not None and self.args.average_tokens_across_devices:
                # gradients are averaged over processes, and the count is of all of them
                loss = loss * self.accelerator.num_processes
            return (loss, outputs) if return_outputs else loss

        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            """Transformers' own, which asks for the loss above."""
            return Trainer.prediction_step(self, *args, **kwargs)

    return ReferenceTrainer


def score_supervised(model: Any, inputs: dict[str, Any], positions: Any) -> tuple[Any, Any]:
    """Scores at some positions, and nothing to be done to them; see `vlmtrain.backends.Backend`."""
    import torch

    return model(**inputs, logits_to_keep=positions, use_cache=False).logits, torch.nn.Identity()


def make_traceable(classes: Iterable[type]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Has nothing to do; see `vlmtrain.backends.Backend`."""
    return contextlib.nullcontext


def checkpointing_arguments(config: FitConfig) -> dict[str, Any]:
    """Arguments of SFTConfig; see `vlmtrain.backends.Backend`."""
    import torch

    choice = config.optimizer.gradient_checkpointing
    on = choice == "on" or (choice == "auto" and torch.cuda.is_available())
    return {
        "gradient_checkpointing": on,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if on else None,
    }


def prepare_inference(loaded: LoadedModel) -> None:
    """Switches to evaluation mode; see `vlmtrain.backends.Backend`."""
    loaded.model.eval()


def prepare_training(loaded: LoadedModel) -> None:
    """Switches back to training mode; see `vlmtrain.backends.Backend`."""
    loaded.model.train()


def save_merged(loaded: LoadedModel, out: Path) -> None:
    """Writes the whole model in 16 bit; see `vlmtrain.backends.Backend`."""
    import torch

    model = loaded.model
    if loaded.source.adapter is not None:
        model = model.merge_and_unload(safe_merge=True)
    model.to(torch.bfloat16)
    model.save_pretrained(out)
