"""One source for options: frozen dataclasses become command-line options, config-file keys and their help texts.

A section is a dataclass of plain fields; the docstring under a field is its help text. Sections of one command share
one flat namespace, so that `max_side` is `--max-side` on the command line and `max_side:` in the YAML file.
Neither click nor yaml is imported before a function here needs it.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vlmdata.errors import ConfigError

__all__ = ["add_options", "build_section", "field_help", "flatten", "read_yaml", "unknown_name"]

Section = TypeVar("Section")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@functools.cache
def field_help(section: type) -> dict[str, str]:
    """The docstring that stands under each field of a dataclass, in one line each."""
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{section!r} is not a class")
    helps: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            helps[statement.target.id] = " ".join(str(following.value.value).split())
    return helps


def add_options(*sections: type, skip: Iterable[str] = ()) -> Callable[[Decorated], Decorated]:
    """A decorator that gives a click command one option for each field of the sections.

    An option that was not given arrives as None (an empty tuple for repeatable ones), so that a config file and the
    dataclass's own default can stand behind it.

    Args:
        sections: Frozen dataclasses with disjoint field names.
        skip: Fields that the command declares by itself.
    """
    import click

    def decorate(command: Decorated) -> Decorated:
        for section in reversed(sections):
            hints = typing.get_type_hints(section)
            for field in reversed(dataclasses.fields(section)):
                if field.name in skip:
                    continue
                command = click.option(*_declaration(field, hints[field.name]), **_arguments(section, field, hints))(
                    command
                )
        return command

    return decorate


def read_yaml(path: Path, sections: Sequence[type]) -> dict[str, Any]:
    """A config file as a flat dictionary of field values.

    Raises:
        ConfigError: The file cannot be read, is not a mapping, or has unknown keys (all named, with the nearest
            known one) or values of a wrong type.
    """
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config file: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path}: the config file must map option names to values, not hold a {type(loaded).__name__}"
        )
    hints = _all_hints(sections)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        # a field that a keyword of Python would collide with ends with an underscore, and its option does not
        name = f"{name}_" if f"{name}_" in hints else name
        if name not in hints:
            problems.append(f"{path}: {unknown_name('key', str(key), hints)}")
            continue
        try:
            values[name] = _coerce(value, hints[name])
        except (TypeError, ValueError):
            problems.append(f"{path}: {key}: {value!r} is not {_describe(hints[name])}")
    if problems:
        raise ConfigError(problems)
    return values


def build_section(section: type[Section], values: Mapping[str, Any], problems: list[str]) -> Section | None:
    """Makes one section from the flat values; what its own checks find is added to `problems`.

    Args:
        section: The dataclass to make.
        values: Flat values of all sections; None and missing ones leave the field's default.
        problems: Collects the messages of every section, so that all are shown at once.
    """
    names = [field.name for field in dataclasses.fields(section)]  # type: ignore[arg-type]  # as above
    written = {name: name if name in values else name.rstrip("_") for name in names}
    given = {name: values[key] for name, key in written.items() if values.get(key) not in (None, ())}
    try:
        return section(**given)
    except ConfigError as error:
        problems.extend(error.problems)
    return None


def flatten(*sections: Any) -> dict[str, Any]:
    """The values of section instances as one flat dictionary that YAML and JSON can hold."""
    flat: dict[str, Any] = {}
    for section in sections:
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            flat[field.name.rstrip("_")] = (
                list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            )
    return flat


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Words for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _all_hints(sections: Sequence[type]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for section in sections:
        own = typing.get_type_hints(section)
        hints.update({field.name: own[field.name] for field in dataclasses.fields(section)})
    return hints


def _plain(hint: Any) -> Any:
    """`X` of `X | None`, anything else as it is."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _declaration(field: dataclasses.Field[Any], hint: Any) -> tuple[str, ...]:
    dashed = field.name.replace("_", "-").rstrip("-")
    if _plain(hint) is bool:
        return (f"--{dashed}/--no-{dashed}", field.name)
    return (f"--{dashed}", field.name)


def _arguments(section: type, field: dataclasses.Field[Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    import click

    hint = _plain(hints[field.name])
    text = field_help(section).get(field.name, "")
    default = field.default
    if default is not dataclasses.MISSING and default not in (None, (), ""):
        shown = ("yes" if default else "no") if isinstance(default, bool) else default
        shown = ", ".join(map(str, shown)) if isinstance(shown, tuple) else shown
        text = f"{text} [default: {shown}]"
    arguments: dict[str, Any] = {"default": None, "help": text}
    if typing.get_origin(hint) is typing.Literal:
        arguments["type"] = click.Choice([str(choice) for choice in typing.get_args(hint)])
    elif typing.get_origin(hint) is tuple:
        arguments |= {"multiple": True, "type": typing.get_args(hint)[0]}
    elif hint is Path:
        arguments["type"] = click.Path(path_type=Path)
    elif hint is not bool:
        arguments["type"] = hint
    return arguments


def _coerce(value: Any, hint: Any) -> Any:
    plain = _plain(hint)
    if value is None:
        return None
    origin = typing.get_origin(plain)
    if origin is typing.Literal:
        if str(value) not in [str(choice) for choice in typing.get_args(plain)]:
            raise ValueError
        return str(value)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_coerce(item, typing.get_args(plain)[0]) for item in items)
    if plain is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        # YAML 1.1 reads `1e-4`, without a point, as text.
        return float(value)
    if plain is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
        return value
    raise TypeError


def _describe(hint: Any) -> str:
    plain = _plain(hint)
    if typing.get_origin(plain) is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(plain))
    if typing.get_origin(plain) is tuple:
        return "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return names.get(plain, f"a {plain}")
