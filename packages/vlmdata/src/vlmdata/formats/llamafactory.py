"""Files that a `dataset_info.json` of LLaMA-Factory describes: its names of columns and roles, not the usual ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmdata.config import ColumnConfig
from vlmdata.errors import ConfigError
from vlmdata.formats import alpaca
from vlmdata.formats.conversation import Draft, plan_conversation
from vlmdata.formats.pairs import read_system
from vlmdata.formats.parts import attach_images, read_messages
from vlmdata.formats.reading import Reading
from vlmdata.formats.templates import list_columns
from vlmdata.sample import Problem, RawRow

__all__ = ["NAME", "Names", "convert", "plan_described"]

NAME = "llamafactory"

# Column names where an entry says nothing, by LLaMA-Factory's own word for each.
_COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "sharegpt": {"messages": "conversations"},
}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
_UNSUPPORTED = ("videos", "audios", "tools")


@dataclass(frozen=True, slots=True)
class Names:
    """The names of an entry of `dataset_info.json`.

    Attributes:
        is_alpaca: whether rows are instruction, input and output; else they are lists of turns.
        columns: pairs of LLaMA-Factory's word and the column.
        tags: pairs of the tag's kind and the tag.
    """

    is_alpaca: bool
    columns: tuple[tuple[str, str], ...]
    tags: tuple[tuple[str, str], ...]


def plan_described(columns: Sequence[str], config: ColumnConfig, entry: Mapping[str, Any]) -> Reading:
    """Read a file as its entry says.

    Raises:
        ConfigError: the entry is of a kind that is not trained on, or names columns that are not there.
    """
    formatting = entry.get("formatting", "alpaca")
    kind = {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "sharegpt"}.get(str(formatting))
    if kind is None:
        raise ConfigError(f"dataset_info.json: formatting {formatting!r:.60} is not alpaca, sharegpt or openai")
    if entry.get("ranking"):
        raise ConfigError("dataset_info.json says ranking: preference pairs are no conversations to train on")
    given, tags = _texts(entry.get("columns")), _texts(entry.get("tags"))
    if formatting == "openai":
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", **tags}
    named = {**_COLUMNS[kind], **given}
    chosen = ("prompt", "response") if kind == "alpaca" else ("messages",)
    # the others may be absent from rows that have no use for them
    if missing := sorted({named[word] for word in chosen} - set(columns)):
        raise ConfigError(f"dataset_info.json: no column {', '.join(map(repr, missing))}; {list_columns(columns)}")
    images = (named["images"],) if "images" in named else ("images", "image")
    reading = plan_conversation(NAME, " + ".join(named[word] for word in chosen), images, columns, config)
    return replace(reading, names=Names(kind == "alpaca", tuple(named.items()), tuple({**_TAGS, **tags}.items())))


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {str(key): each for key, each in value.items() if isinstance(each, str)}


def convert(row: RawRow, reading: Reading) -> Draft | Problem:
    """Give the columns and roles of a row their usual names, and read it."""
    assert isinstance(reading.names, Names)
    named = dict(reading.names.columns)
    for word in _UNSUPPORTED:
        if word in named and row.get(named[word]):
            return Problem("unsupported_part", f"{named[word]!r}: only text and images are trained on")
    system = row.get(named["system"]) if "system" in named else None
    if reading.names.is_alpaca:
        usual = {_COLUMNS["alpaca"][word]: row.get(named[word]) for word in _COLUMNS["alpaca"]}
        return alpaca.convert({**row, **usual, "system": system}, reading)
    draft = read_messages(_rename(row.get(named["messages"]), dict(reading.names.tags)), named["messages"])
    if isinstance(draft, Problem):
        return draft
    if draft.messages[0].role != "system":
        before = read_system(system)
        if isinstance(before, Problem):
            return before
        draft.messages[:0] = before
    return attach_images(draft, row, reading)


def _rename(turns: Any, tags: Mapping[str, str]) -> Any:
    """Return turns as role and content; what is no turn stays as it is, for the reader to refuse."""
    if not isinstance(turns, list):
        return turns
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
    renamed: list[Any] = []
    for turn in turns:
        if isinstance(turn, dict):
            role = turn.get(tags["role_tag"])
            role = roles.get(role, role) if isinstance(role, str) else role
            renamed.append({"role": role, "content": turn.get(tags["content_tag"])})
        else:
            renamed.append(turn)
    return renamed
