"""HTML that escapes by default: a `str` is text of the data, only `Html` is markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

__all__ = ["Child", "Html", "count_of", "cut", "escape_text", "join", "tag"]

_VOID = frozenset(("img", "meta", "br"))
# Control characters are shown as their symbols: a browser would drop them or call the page broken. So are those that
# turn the direction of a text around, and make it look like another one than the model is given.
_CONTROLS: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
_CONTROLS |= {0x7F: 0x2421} | {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


class Html(str):
    """Markup that is safe to write as it is."""

    __slots__ = ()


Child: TypeAlias = "str | int | Iterable[Child] | None"


def escape_text(value: str) -> Html:
    """Return text as markup that shows it, letter by letter; markup stays as it is."""
    return value if isinstance(value, Html) else Html(escape(value.translate(_CONTROLS)))


def join(*children: Child) -> Html:
    """Return several pieces, and lists of pieces, as one; None leaves nothing."""
    return Html("".join(_flatten(children)))


def tag(name: str, /, *children: Child, **attributes: str | int | float | None) -> Html:
    """Return an element; of attribute names a last `_` is dropped and others become `-`; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape_text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>" + ("" if name in _VOID else f"{join(*children)}</{name}>"))


def count_of(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number with what is counted, as in `1 row` and `2,000 rows`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def cut(text: str, most_chars: int) -> str:
    """Return a text up to a length, and say how much was left out."""
    left_out = len(text) - most_chars
    return text if left_out <= 0 else f"{text[:most_chars]}… ({left_out} more characters)"


def _flatten(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, str):
            yield escape_text(child)
        elif isinstance(child, int):
            yield str(child)
        elif child is not None:
            yield from _flatten(child)
