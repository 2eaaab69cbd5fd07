"""A model ready to answer, and answering: one request or many, left-padded, each stopped at its own end token."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError, ResourceError
from vlmtrain.backends import Backend, choose_backend
from vlmtrain.base_identity import describe_base_change
from vlmtrain.chat import ChatFormat
from vlmtrain.loaded import LoadedModel
from vlmtrain.precision import choose_precision
from vlmtrain.processors import load_chat_format, load_processor
from vlmtrain.source import ModelSource, find_model

__all__ = ["AnsweringModel", "Request", "load_answering_model", "load_source", "release_memory"]

_CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A conversation that ends with the user's turn."""

    messages: Sequence[dict[str, Any]]
    """`{role, content: [{type, text}]}`, the n-th image part showing `images[n]`."""
    images: Sequence[Any]
    """RGB PIL pictures."""


@dataclass(slots=True, kw_only=True)
class AnsweringModel:
    """A loaded model with its backend and chat format."""

    loaded: LoadedModel
    backend: Backend
    chat: ChatFormat

    def answer(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int,
        batch_size: int = 8,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """Answers requests in order.

        Args:
            requests: The conversations.
            max_new_tokens: Longest answer.
            batch_size: Requests in one forward pass; does not change greedy answers beyond rounding.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            seed: Of the drawing.

        Returns:
            One answer a request, without special tokens and surrounding white space.

        Raises:
            ResourceError: The GPU's memory ran out.
        """
        import torch
        from tqdm import tqdm

        torch.manual_seed(seed)
        answers: list[str] = []
        with tqdm(total=len(requests), desc="answering", unit="row", delay=2, disable=None) as progress:
            for start in range(0, len(requests), batch_size):
                group = requests[start : start + batch_size]
                try:
                    answers.extend(self._answer_batch(group, max_new_tokens, temperature))
                except torch.cuda.OutOfMemoryError as error:
                    raise ResourceError(
                        f"the GPU's memory ran out on {len(group)} requests at once; lower --batch-size"
                    ) from error
                progress.update(len(group))
        return answers

    def _answer_batch(self, requests: Sequence[Request], max_new_tokens: int, temperature: float) -> list[str]:
        import torch

        batch = self.encode(requests)
        # Models come with settings of their own for sampling (Qwen's keep the likeliest token, and mark repetition
        # down, which breaks "1000"); what was asked for here is the plain distribution.
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
        if temperature > 0:
            sampling |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        tokenizer = self.chat.processor.tokenizer
        with torch.inference_mode():
            output = self.loaded.model.generate(
                **batch, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
            )
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]

    def encode(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Requests as a left-padded batch on the model's device, ending where the assistant's answer begins."""
        processor = self.chat.processor
        processor.tokenizer.padding_side = "left"
        arguments: dict[str, Any] = {
            "text": [self.chat.render(request.messages, add_generation_prompt=True) for request in requests],
            "padding": True,
            "add_special_tokens": False,
            "return_tensors": "pt",
        }
        images = [list(request.images) for request in requests]
        if any(images):
            arguments["images"] = images
        batch = processor(**arguments)
        device = self.loaded.model.device
        return {
            name: value.to(device, self.loaded.dtype) if value.is_floating_point() else value.to(device)
            for name, value in batch.items()
        }


def load_answering_model(
    name: str,
    *,
    backend: str = "auto",
    load_in: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> AnsweringModel:
    """Loads a run, adapter, export or hub model for answering.

    Args:
        name: MODEL_OR_RUN.
        backend: `auto`, `unsloth` or `transformers`.
        load_in: Precision; `auto` takes that of the run's training, else what fits.
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run Python code that comes with the model.

    Raises:
        ToolkitError: It is not there, or does not fit.
    """
    source = find_model(name, revision=revision)
    chosen, _ = choose_backend(backend)
    return load_source(source, chosen, load_in=load_in, trust_remote_code=trust_remote_code)


def load_source(
    source: ModelSource, backend: Backend, *, load_in: str, trust_remote_code: bool = False
) -> AnsweringModel:
    """The same for a model that is already found, and a backend that is already chosen."""
    if change := describe_base_change(source):
        print(f"warning: {change}", file=sys.stderr, flush=True)
    processor = load_processor(source, trust_remote_code=trust_remote_code)
    chat = load_chat_format(source, processor)
    if load_in == "auto" and source.trained_in:
        load_in = source.trained_in
    precision = choose_precision(load_in, method="lora", config=source.config)
    if source.loftq and precision.load_in != "4bit":
        raise ConfigError(
            f"{source.run}: its adapters began by making up for 4-bit weights (--loftq) and fit no others, these being "
            f"held in {precision.load_in}: use it with --load-in 4bit, and its adapter on 4-bit weights"
        )
    loaded = backend.load_model(
        source,
        processor,
        load_in=precision.load_in,
        max_length=_CONTEXT_TOKENS,
        method="lora",
        checkpointing="off",
        trust_remote_code=trust_remote_code,
    )
    backend.prepare_inference(loaded)
    return AnsweringModel(loaded=loaded, backend=backend, chat=chat)


def release_memory() -> None:
    """Gives memory of deleted models back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
