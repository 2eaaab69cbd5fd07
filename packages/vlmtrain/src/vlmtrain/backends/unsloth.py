"""The fast backend: Unsloth's FastVisionModel. The only module that imports unsloth, and it does so first.

Unsloth patches transformers, trl and peft when it is imported, so nothing of these may have been loaded before this
module. What its defaults would do in silence (resize pictures, train on prompts, cut rows) is set here by hand.
"""

# The order of these statements matters: settings, then unsloth, then everything else.
# ruff: noqa: I001

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would connect out, and shorten every socket's timeout
os.environ.setdefault("UNSLOTH_DISABLE_LLM_COMPRESSOR_AUTOINSTALL", "1")  # exports never install packages
os.environ.setdefault("UNSLOTH_AUTO_INSTALL", "0")  # nor compile llama.cpp
# Flex attention, its choice for Gemma 3, is compiled anew for lengths: minutes on an H200. The reference has none.
os.environ.setdefault("UNSLOTH_ENABLE_FLEX_ATTENTION", "0")
os.environ.setdefault(  # else it writes a folder into the working directory
    "UNSLOTH_COMPILE_LOCATION", os.path.join(tempfile.gettempdir(), f"vlmtrain-unsloth-{os.getuid()}")
)

import unsloth

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.adapter_config import AdapterConfig
from vlmtrain.chat import ChatFormat
from vlmtrain.config import FitConfig
from vlmtrain.layers import adapter_targets, full_modules
from vlmtrain.loaded import LoadedModel, loading
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

NAME = "unsloth"
COMPILES = True

_CHECKPOINTING: dict[str, bool | str] = {"auto": "unsloth", "unsloth": "unsloth", "on": True, "off": False}


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

    full = method == "full"
    arguments: dict[str, Any] = {
        "model_name": str(source.adapter or source.name),
        "max_seq_length": max_length,
        "load_in_4bit": load_in == "4bit",
        "load_in_8bit": load_in == "8bit",
        "load_in_16bit": load_in == "16bit" and not full,
        "full_finetuning": full,
        "use_gradient_checkpointing": _CHECKPOINTING[checkpointing],
        "trust_remote_code": trust_remote_code,
    }
    if load_in == "32bit":
        arguments["dtype"] = torch.float32
        if full:
            # master weights in float32, products in bfloat16
            arguments |= {"dtype": None, "float32_mixed_precision": True}
    if source.revision is not None and source.adapter is None:
        arguments["revision"] = source.revision
    elif source.revision is not None:
        print(f"warning: unsloth loads an adapter's base {source.name} from its main branch, not {source.revision}")
    with loading(source, load_in):
        # Its own choice of processor falls back to a bare tokenizer in silence: ours is loaded before.
        model, _ = unsloth.FastVisionModel.from_pretrained(**arguments)
    if model.config._attn_implementation == "eager" and model._supports_sdpa:
        # what Unsloth is left with for Gemma 3; it would keep all attention scores, 106 GiB for 4 pictures
        model.set_attn_implementation(dict.fromkeys(model.config.sub_configs, "sdpa"))
        print("attention: torch's scaled_dot_product_attention (Unsloth would take its unfused one)")
    return LoadedModel(
        model=model, processor=processor, source=source, backend=NAME, load_in=load_in, dtype=model.dtype
    )


def add_adapter(loaded: LoadedModel, config: AdapterConfig, *, checkpointing: str, seed: int) -> None:
    """Puts fresh LoRA adapters on the chosen layers; see `vlmtrain.backends.Backend`."""
    from unsloth.models.vision import FastBaseModel

    arguments: dict[str, Any] = {
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "modules_to_save": full_modules(loaded.model, config) or None,
        "finetune_vision_layers": config.finetune_vision_layers,
        "finetune_language_layers": config.finetune_language_layers,
        "finetune_attention_modules": config.finetune_attention_modules,
        "finetune_mlp_modules": config.finetune_mlp_modules,
        "use_gradient_checkpointing": _CHECKPOINTING[checkpointing],
        "random_state": seed,
    }
    if config.connector != "frozen" or config.modules_to_save:
        # its flags never reach a connector; full names do
        arguments["target_modules"] = adapter_targets(loaded.model, config)
        arguments |= dict.fromkeys((name for name in arguments if name.startswith("finetune_")), True)
    elif config.targets == "all-linear":
        arguments["target_modules"] = "all-linear"
    _refuse_unknown(FastBaseModel.get_peft_model, arguments)
    loaded.model = unsloth.FastVisionModel.get_peft_model(loaded.model, **arguments)


def make_collator(
    loaded: LoadedModel, chat: ChatFormat, *, max_length: int, last_turn_only: bool
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """Makes Unsloth's collator without its resizing and with loss on answers only; see `vlmtrain.backends.Backend`."""
    from unsloth.trainer import UnslothVisionDataCollator

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]] = UnslothVisionDataCollator(
        loaded.model,
        loaded.processor,
        max_seq_length=max_length,
        resize="max",  # its name for leaving pictures as they are
        train_on_responses_only=True,
        instruction_part=chat.markers.instruction_part,
        response_part=chat.markers.response_part,
        last_response_only=last_turn_only,
    )
    return collator


def trainer_class() -> type:
    """Trl's SFTTrainer as Unsloth has patched it."""
    from trl import SFTTrainer

    trainer: type = SFTTrainer  # patched when unsloth was imported, above
    return trainer


def score_supervised(model: Any, inputs: dict[str, Any], positions: Any) -> tuple[Any, Any]:
    """Last hidden states at some positions, and the output head; see `vlmtrain.backends.Backend`."""
    import torch

    before = os.environ.get("UNSLOTH_RETURN_HIDDEN_STATES", "0")
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
    try:
        hidden = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    finally:
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = before
    base = model.module if hasattr(model, "module") else model
    head = base.get_output_embeddings()
    if hidden.shape[-1] == head.out_features:
        # a model whose forward Unsloth has not rewritten gives scores
        return hidden, torch.nn.Identity()
    return hidden.to(head.weight.dtype), head


def make_traceable(classes: Iterable[type]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Makes Unsloth's functions traceable as it does for its own blocks; see `vlmtrain.backends.Backend`."""
    from unsloth.models._block_compile import _rebind_class

    for each in classes:
        # torch looks a function's globals up by its module's name, where those of generated code are not
        _rebind_class(each)
    return _inlining


@contextlib.contextmanager
def _inlining() -> Iterator[None]:
    """Within, attention that Unsloth keeps from being compiled is traced."""
    from unsloth_zoo.temporary_patches.utils import UNSLOTH_DECODE_COMPILE

    [before] = UNSLOTH_DECODE_COMPILE
    UNSLOTH_DECODE_COMPILE[0] = True
    try:
        yield
    finally:
        UNSLOTH_DECODE_COMPILE[0] = before


def checkpointing_arguments(config: FitConfig) -> dict[str, Any]:
    """Arguments of SFTConfig; see `vlmtrain.backends.Backend`. The model was told its own way when it was loaded."""
    return {"gradient_checkpointing": config.optimizer.gradient_checkpointing != "off"}


def prepare_inference(loaded: LoadedModel) -> None:
    """Switches to Unsloth's generation mode; see `vlmtrain.backends.Backend`."""
    unsloth.FastVisionModel.for_inference(loaded.model)


def prepare_training(loaded: LoadedModel) -> None:
    """Switches back to Unsloth's training mode; see `vlmtrain.backends.Backend`."""
    unsloth.FastVisionModel.for_training(loaded.model)


def save_merged(loaded: LoadedModel, out: Path) -> None:
    """Writes the whole model in 16 bit; see `vlmtrain.backends.Backend`."""
    if loaded.source.adapter is None:
        import torch

        loaded.model.to(torch.bfloat16).save_pretrained(out)
        return
    loaded.model.save_pretrained_merged(str(out.resolve()), loaded.processor, save_method="merged_16bit")
    _cast_to_16bit(out)


def _cast_to_16bit(out: Path) -> None:
    """Unsloth merges in the precision that the base is stored in; a base of 32-bit files comes out in 32 bit."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in sorted(out.glob("*.safetensors")):
        tensors = load_file(path)
        wide = [name for name, tensor in tensors.items() if tensor.dtype == torch.float32]
        if wide:
            print(f"{path.name}: {len(wide)} tensors of the base are stored in 32 bit, written in bfloat16", flush=True)
            tensors |= {name: tensors[name].to(torch.bfloat16) for name in wide}
            save_file(tensors, path, metadata={"format": "pt"})


def _refuse_unknown(function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    # Unsloth ignores keyword arguments that it does not know; a renamed one must not pass unseen.
    # What it does not name itself it hands to peft.
    from peft import LoraConfig

    known = {*inspect.signature(function).parameters, *inspect.signature(LoraConfig).parameters}
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ConfigError(f"this version of unsloth does not know the arguments {', '.join(unknown)} of get_peft_model")
