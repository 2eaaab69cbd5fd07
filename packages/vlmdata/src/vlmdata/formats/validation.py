"""What every conversation must be, whatever format it came from."""

from __future__ import annotations

import re

from vlmdata.formats.text_boxes import BOX_TAG
from vlmdata.sample import Message, Problem
from vlmdata.text_config import TextConfig

__all__ = [
    "check_messages",
    "check_references",
    "check_text",
    "escape_tokens",
    "find_token",
    "measure_repetition",
    "remove_control",
]

# Tokens that chat templates and processors of vision-language models give a meaning to: `<|im_end|>` and its kin,
# Gemma's turns, Mistral's brackets, sentence marks, and the places of images.
_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,64}\|>"
    r"|</?(?:s|bos|eos|pad|unk|mask|image|video|audio|img|image_soft_token|image_pad|start_of_image|end_of_image"
    r"|start_of_turn|end_of_turn|unused\d+|image_start|image_end|im_patch|im_start|im_end)>"
    r"|\[/?(?:INST|IMG|IMG_BREAK|IMG_END|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\]"
    r"|<</?SYS>>"
)
_BOX_TOKENS = ("<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>")
# Everything below a space but tab and line breaks, and delete.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# Texts are compared with themselves in windows of this many characters; short ones repeat by chance.
_WINDOW_CHARS = 16
_MEASURED_CHARS_MIN = 256
_MEASURED_CHARS_MAX = 100_000


def remove_control(text: str) -> str:
    """Take out control characters; form feeds and vertical tabs, which part lines, become line breaks."""
    return _CONTROL.sub(lambda match: "\n" if match[0] in "\x0b\x0c" else "", text)


def measure_repetition(text: str) -> float:
    """Return the share of a text's windows of 16 characters that stand earlier in it too; 0 for short texts.

    Characters are compared, not words, so that it means the same in every language.
    """
    text = text[:_MEASURED_CHARS_MAX]
    if len(text) < _MEASURED_CHARS_MIN:
        return 0.0
    windows = len(text) - _WINDOW_CHARS + 1
    return 1 - len({text[i : i + _WINDOW_CHARS] for i in range(windows)}) / windows


def find_token(text: str) -> str | None:
    """Return the first chat-template token that stands in a text."""
    match = _TOKEN.search(text)
    return match[0] if match else None


def escape_tokens(text: str) -> str:
    """Break every chat-template token up with a space, so that no tokenizer takes it for one."""
    while (escaped := _TOKEN.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = escaped
    return text


def check_text(text: str, *, allow_boxes: bool = False) -> Problem | None:
    """Return what makes a text unfit: control characters, half characters, or a template's own token.

    Args:
        text: of a turn.
        allow_boxes: whether box tags, which are tokens of Qwen's, may stand in it.
    """
    if control := _CONTROL.search(text):
        return Problem("control_character", f"character {ord(control[0]):#04x} at position {control.start()}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Problem("bad_encoding", f"half a surrogate pair at position {error.start}")
    if token := find_token(BOX_TAG.sub(" ", text) if allow_boxes else text):
        is_box = not allow_boxes and token in _BOX_TOKENS
        way = "--box-format says how such boxes are written, and keeps" if is_box else "--template-tokens escape keeps"
        return Problem("template_token", f"{token!r} stands in the text ({way} such rows)")
    return None


def check_messages(messages: list[Message], limits: TextConfig) -> Problem | None:
    """Return what is wrong with a conversation: its turns, an empty text, or a text that is unfit."""
    if problem := _check_turns([message.role for message in messages]):
        return problem
    total, allow_boxes = 0, limits.box_format is not None
    for message in messages:
        texts = [part.text or "" for part in message.content if part.type == "text"]
        shows_image = any(part.type == "image" for part in message.content)
        if not any(text.strip() for text in texts) and not shows_image:
            return Problem("empty_text", f"a turn of the {message.role} says nothing")
        total += sum(map(len, texts))
        for text in texts:
            if problem := check_text(text, allow_boxes=allow_boxes) or _check_repetition(text, limits.max_repetition):
                return problem
    if total > limits.max_chars:
        return Problem("text_too_long", f"{total} characters, more than --max-chars {limits.max_chars}")
    return None


def check_references(references: list[str]) -> Problem | None:
    """Return what makes an accepted answer unfit to be written down; tokens in it are never rendered."""
    for text in references:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Problem("bad_encoding", f"half a surrogate pair at position {error.start} of an accepted answer")
    return None


def _check_repetition(text: str, limit: float) -> Problem | None:
    if limit < 1 and (share := measure_repetition(text)) > limit:
        return Problem("repetitive_text", f"{share:.0%} of a text repeats itself, more than --max-repetition {limit:g}")
    return None


def _check_turns(roles: list[str]) -> Problem | None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "system" in turns:
        return Problem("role_order", "a system turn that is not the first")
    if not turns:
        return Problem("no_messages", "no turn of a user")
    expected = ["user", "assistant"] * ((len(turns) + 1) // 2)
    if turns != expected[: len(turns)]:
        return Problem("role_order", f"turns are not user and assistant in turn: {', '.join(turns)[:100]}")
    if turns[-1] != "assistant":
        return Problem("no_answer", "the conversation ends with the user")
    return None
