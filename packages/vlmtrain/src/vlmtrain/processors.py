"""The processor of a model, loaded apart from its weights so that a set can be checked before they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError
from vlmtrain.chat import ChatFormat, Markers, read_chat_format
from vlmtrain.source import ModelSource
from vlmtrain.template_completion import complete_template

__all__ = ["load_chat_format", "load_processor", "save_processor"]


def load_processor(source: ModelSource, *, trust_remote_code: bool = False) -> Any:
    """Loads tokenizer, image processor and chat template, which is completed where it leaves out a sequence's ends.

    Raises:
        ConfigError: The folder has no usable processor, or its template drops answers.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            source.processor, revision=source.revision or "main", trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{source.processor}: no usable processor: {' '.join(str(error).split())}") from error
    complete_template(processor)
    return processor


def save_processor(source: ModelSource, out: Path, *, trust_remote_code: bool = False) -> None:
    """Writes the processor as the model came with it, its template completed.

    A fast tokenizer remembers the padding and truncation of its last call and saves them: one that has trained with a
    limit would cut the texts of whoever loads it.
    """
    load_processor(source, trust_remote_code=trust_remote_code).save_pretrained(out)


def load_chat_format(
    source: ModelSource, processor: Any, *, instruction_part: str | None = None, response_part: str | None = None
) -> ChatFormat:
    """How the model writes conversations, from its processor, family and generation config.

    Args:
        source: The model.
        processor: Its processor.
        instruction_part: The user's words for the user marker; wins over the family's.
        response_part: The same for the assistant's marker.

    Raises:
        ConfigError: The processor or the markers do not do.
    """
    family = source.family
    markers = Markers(instruction_part=family.instruction_part, response_part=family.response_part) if family else None
    return read_chat_format(
        processor,
        family_markers=markers,
        instruction_part=instruction_part,
        response_part=response_part,
        generation_stop_ids=_generation_stop_ids(source),
    )


def _generation_stop_ids(source: ModelSource) -> tuple[int, ...]:
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(source.name, revision=source.revision).eos_token_id
    except OSError:
        # Not every model has the file; its config then names the token.
        eos = source.config.get("eos_token_id") or source.config.get("text_config", {}).get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
