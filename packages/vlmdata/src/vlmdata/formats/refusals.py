"""Files that are no training set, told by their columns, so that the error can say what they are."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["find_preferences", "name_other_kind"]


def find_preferences(columns: Collection[str]) -> str | None:
    """Say that rows hold preference pairs, where they do."""
    for pair in (("chosen", "rejected"), ("response", "rejected_response")):
        if set(pair) <= set(columns):
            return f"holds preference pairs ({' and '.join(pair)}), not conversations to train on"
    return None


def name_other_kind(columns: Collection[str]) -> str | None:
    """Say what kind of file this is, if it is a known one in which there is nothing to train on."""
    names = set(columns)
    if {"question_id", "text"} <= names:
        return "a file of questions without answers" if "image" in names else "a file of answers without questions"
    if names & {"response", "text", "content"} and not names & {"messages", "conversations"} and len(names) == 1:
        return "texts for pretraining, without questions"
    if {"formatting", "file_name"} & names and "columns" in names:
        return "a description of sets"
    return None
