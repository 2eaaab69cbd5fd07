"""How the rows of one input are read: its format, the columns that were found, and the options that apply."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmdata.formats.filters import RowFilter
from vlmdata.formats.templates import Template
from vlmdata.text_config import TextConfig

__all__ = ["Reading"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The decisions that turn a raw row into a sample; made once per input, and sent to the workers.

    Attributes:
        format: the name of the format's module.
        image: where the images come from, in the order they are shown.
        other_images: usual columns that are looked at in rows where `image` gives nothing, of conversation formats.
        instruction: what the user says, of column sets.
        response: what the assistant says, of column sets.
        system: the system text, put before conversations that have none of their own.
        messages: the column that holds the conversation, of conversation formats.
        id: the column with the row's id.
        keep: columns carried into `meta`.
        group_by: the column whose equal values stay in one split.
        where: which rows are wanted.
        escape_tokens: break template tokens up instead of rejecting the row.
        choices: the column with the choices of a question.
        names: the columns and roles that a `dataset_info.json` names, of the format that has one.
        unused_options: why options that name columns do not fit, where the rows are read without them.
        has_objects: whether there is a column with boxes.
        has_text_boxes: whether texts of the first rows show boxes.
        texts: what texts must be, and which answers count.
    """

    format: str
    image: tuple[Template, ...] = ()
    other_images: tuple[str, ...] = ()
    instruction: Template | None = None
    response: Template | None = None
    system: Template | None = None
    messages: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()
    group_by: str | None = None
    where: RowFilter | None = None
    escape_tokens: bool = False
    choices: str | None = None
    names: object = None
    unused_options: tuple[str, ...] = ()
    has_objects: bool = False
    has_text_boxes: bool = False
    texts: TextConfig = field(default_factory=TextConfig)

    def describe(self) -> str:
        """Return, in one line, what was chosen, for the summary of a build."""
        chosen = {
            "image": ", ".join(template.text for template in self.image) or None,
            "instruction": self.instruction and self.instruction.text,
            "choices": self.choices,
            "response": self.response and self.response.text,
            "system": self.system and self.system.text,
            "messages": self.messages,
            "id": self.id,
        }
        named = ", ".join(f"{name} {text!r}" for name, text in chosen.items() if text)
        images = "" if self.image or self.messages else "; no image column in the first rows"
        unused = "; without --image, --instruction and --response" if self.unused_options else ""
        return f"{self.format} ({named}{images}{self._describe_boxes()}{unused})"

    def _describe_boxes(self) -> str:
        if self.texts.box_format is not None:
            shown = " in texts" if self.has_text_boxes and not self.has_objects else ""
            return f"; boxes{shown} as {self.texts.box_format}" if self.has_objects or self.has_text_boxes else ""
        left_out = "; boxes left out: no --box-format" if self.has_objects else ""
        stale = "; boxes in texts do not follow their images: no --box-format" if self.has_text_boxes else ""
        return left_out + stale
