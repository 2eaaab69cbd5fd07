"""Conversations through a model's own chat template, and the marks by which its turns are told apart.

A row's messages go through the processor's template as they are; what differs between families is only the form in
which a template takes an assistant's text (a list of parts, or one string), which is found out by rendering a probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import ConfigError, DataError
from vlmtrain.masks import MaskRules
from vlmtrain.template_probe import PROBE_ANSWER, PROBE_QUESTION, apply_template, probe_conversation, takes_only_text

__all__ = ["ChatFormat", "Markers", "image_token_ids", "read_chat_format"]

Message = Mapping[str, Any]

# Tokens that stand for an image in one family or another; those that a tokenizer does not have are left out.
_IMAGE_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image|>",
    "<image>",
    "<image_soft_token>",
    "<start_of_image>",
    "<end_of_image>",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """The text with which a template opens a turn."""

    instruction_part: str
    """Opens a user's turn, such as `<|im_start|>user` and a line break."""
    response_part: str
    """Opens an assistant's turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """How one processor writes a conversation, and which of its tokens carry loss."""

    processor: Any
    """A transformers processor with an image processor, a tokenizer and a chat template."""
    markers: Markers
    """The texts that open the turns."""
    rules: MaskRules
    """The same and the special tokens, as token ids."""
    stop_ids: frozenset[int]
    """At these ids the model's generation stops."""
    assistant_text_only: bool
    """The template takes an assistant's content as one string, not as a list of parts."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, with the processor's placeholder for each image.

        Raises:
            DataError: The template refuses it, such as a system turn beside an image.
        """
        from jinja2 import TemplateError

        cleaned = clean_messages(messages, assistant_text_only=self.assistant_text_only)
        try:
            return apply_template(self.processor, cleaned, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise DataError(f"the model's chat template refuses a conversation: {error}") from error


def image_token_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that stand for images, or open and close them."""
    vocabulary = tokenizer.get_vocab()
    image_tokens = [*_IMAGE_TOKENS, getattr(tokenizer, "image_token", None)]
    return frozenset(vocabulary[token] for token in image_tokens if token in vocabulary)


def clean_messages(messages: Sequence[Message], *, assistant_text_only: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them: no null fields that Arrow's unified structs brought in.

    Args:
        messages: `{role, content: [{type, text}]}` as stored in the shards.
        assistant_text_only: Join an assistant's text parts into one string.
    """
    cleaned: list[dict[str, Any]] = []
    for message in messages:
        parts = [{k: v for k, v in part.items() if v is not None} for part in message["content"]]
        content: Any = parts
        if assistant_text_only and message["role"] == "assistant":
            content = "".join(part.get("text", "") for part in parts)
        cleaned.append({"role": message["role"], "content": content})
    return cleaned


def read_chat_format(
    processor: Any,
    *,
    family_markers: Markers | None,
    instruction_part: str | None = None,
    response_part: str | None = None,
    generation_stop_ids: Sequence[int] = (),
) -> ChatFormat:
    """Finds out how `processor` writes a conversation, and checks the markers on a rendered one.

    Args:
        processor: A transformers processor.
        family_markers: The markers of the model's family, if it is a known one.
        instruction_part: The user's words for the user marker; wins over the family's.
        response_part: The same for the assistant's marker.
        generation_stop_ids: `eos_token_id` of the model's generation config.

    Raises:
        ConfigError: The processor has no image processor or template, or the markers are unknown or do not
            occur, as text and as tokens, in what it renders.
    """
    _check_processor(processor)
    text_only = takes_only_text(processor)
    markers = _choose_markers(processor, family_markers, instruction_part, response_part, text_only=text_only)
    conversation = probe_conversation(text_only=text_only)
    text = apply_template(processor, conversation, add_generation_prompt=False)
    problems = [
        f"the {role}'s marker {marker!r} does not occur in the text that the model's template renders: {text!r}; "
        f"pass --{option}"
        for role, marker, option in (
            ("user", markers.instruction_part, "instruction-part"),
            ("assistant", markers.response_part, "response-part"),
        )
        if text.count(marker) < 2
    ]
    if problems:
        raise ConfigError(problems)
    tokenizer = processor.tokenizer
    markers = _find_tokens(tokenizer, text, markers)
    stop_ids = frozenset(generation_stop_ids) or frozenset(i for i in (tokenizer.eos_token_id,) if i is not None)
    return ChatFormat(
        processor=processor,
        markers=markers,
        rules=_mask_rules(tokenizer, markers),
        stop_ids=stop_ids,
        assistant_text_only=text_only,
    )


def _check_processor(processor: Any) -> None:
    if getattr(processor, "image_processor", None) is None:
        raise ConfigError(
            "the model's folder has no image processor (preprocessor_config.json or processor_config.json): "
            "a bare tokenizer cannot take pictures"
        )
    if getattr(processor, "chat_template", None) is None:
        raise ConfigError("the model's processor has no chat template; use the instruction-tuned variant of the model")


def _choose_markers(
    processor: Any, family: Markers | None, instruction_part: str | None, response_part: str | None, *, text_only: bool
) -> Markers:
    if instruction_part and response_part:
        return Markers(instruction_part=_unescape(instruction_part), response_part=_unescape(response_part))
    if instruction_part or response_part:
        raise ConfigError("--instruction-part and --response-part go together: pass both or neither")
    return family or _derive_markers(processor, text_only=text_only)


def _derive_markers(processor: Any, *, text_only: bool) -> Markers:
    """The markers of a template that no family description names, read off what it renders."""
    turns = probe_conversation(text_only=text_only)
    whole = apply_template(processor, turns, add_generation_prompt=False)
    question = apply_template(processor, turns[:1], add_generation_prompt=False)
    prompted = apply_template(processor, turns[:1], add_generation_prompt=True)
    before_question = question.partition(PROBE_QUESTION)[0]
    after_answer = whole.split(PROBE_ANSWER)[1].partition(PROBE_QUESTION)[0]
    # In front stands the beginning of the sequence, or a system turn that ends as an answer does; only what follows
    # opens the user's turn.
    for token in (processor.tokenizer.bos_token, processor.tokenizer.eos_token):
        if token:
            before_question, after_answer = before_question.rpartition(token)[2], after_answer.rpartition(token)[2]
    shared = _common_end(before_question, after_answer)
    instruction_part = shared.lstrip().rstrip(" ")
    # Where what ends the user's turn opens the assistant's, asking for an answer adds nothing.
    added = prompted.removeprefix(question) or question.rpartition(PROBE_QUESTION)[2]
    response_part = added.strip(" ")
    if not instruction_part or not response_part or added == prompted:
        raise ConfigError(
            "the model's family is unknown and its template does not show how it opens a turn: pass --instruction-part "
            "and --response-part, the texts with which it opens a user's and an assistant's turn"
        )
    return Markers(instruction_part=instruction_part, response_part=response_part)


def _find_tokens(tokenizer: Any, text: str, markers: Markers) -> Markers:
    """The markers in the form in which their tokens stand in a rendered conversation.

    A marker of plain text melts with the blank before it, `[/INST]` in LLaVA 1.6 for one; the blank then belongs to it.

    Raises:
        ConfigError: A marker's tokens are others in the conversation than alone.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    def places(candidate: str) -> list[int]:
        tokens = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        return [i for i in range(len(ids) - len(tokens) + 1) if ids[i : i + len(tokens)] == tokens]

    def find(option: str, marker: str, count: int, start: int = 0) -> str:
        for candidate in (marker, f" {marker}", f"\n{marker}"):
            if sum(place >= start for place in places(candidate)) >= count:
                return candidate
        raise ConfigError(
            f"the marker {marker!r} occurs in what the model's template renders, but as other tokens than alone: "
            f"pass --{option} with the characters around it, as in {text!r}"
        )

    response_part = find("response-part", markers.response_part, 2)
    # An answer ends where the user's next turn begins, so that the marker has to be found behind one.
    first_answer = places(response_part)[0]
    instruction_part = find("instruction-part", markers.instruction_part, 1, first_answer)
    return Markers(instruction_part=instruction_part, response_part=response_part)


def _common_end(left: str, right: str) -> str:
    length = 0
    while length < min(len(left), len(right)) and left[-1 - length] == right[-1 - length]:
        length += 1
    return left[len(left) - length :]


def _unescape(marker: str) -> str:
    # A shell passes backslash-n as two characters, and nearly every marker ends in a line break.
    return marker.replace("\\n", "\n")


def _mask_rules(tokenizer: Any, markers: Markers) -> MaskRules:
    def token_ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    instruction_ids = token_ids(markers.instruction_part)
    response_ids = token_ids(markers.response_part)
    special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    shared: list[int] = []
    for left, right in zip(instruction_ids, response_ids, strict=False):
        # Plain text that both markers begin with could stand in an answer; a special token cannot.
        if left != right or left not in special_ids:
            break
        shared.append(left)
    never_ids = set(image_token_ids(tokenizer))
    if tokenizer.pad_token_id is not None:
        never_ids.add(tokenizer.pad_token_id)
    return MaskRules(
        response_ids=response_ids,
        instruction_ids=instruction_ids,
        stop_ids=frozenset(i for i in (tokenizer.eos_token_id,) if i is not None),
        turn_ids=tuple(shared),
        never_ids=frozenset(never_ids),
        bos_id=tokenizer.bos_token_id,
    )
