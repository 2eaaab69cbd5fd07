"""The expressions of `--where`: comparisons over columns, parsed with `ast` and walked here, never run as Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from typing import Any

from vlmdata.errors import ConfigError
from vlmdata.formats.templates import list_columns
from vlmdata.sample import Problem, RawRow

__all__ = ["RowFilter"]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"len": len, "float": float, "int": int, "str": str}
_MAX_CHARS = 2000
_HELP = "understood: columns (row['name with spaces']), texts, numbers, == != < > in, and or not, len float int str"


class RowFilter:
    """A condition on a row, such as `label != "Skip" and float(score) > 0.5`.

    A name is a column; columns whose names are no Python names are written `row["the name"]`. A column that a row lacks
    is None.

    Args:
        text: the expression.

    Raises:
        ConfigError: it is not an expression, or uses more than the few things that are understood.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _MAX_CHARS:
            raise ConfigError(f"where: the expression has {len(text)} characters, more than {_MAX_CHARS}")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"where {text!r}: not an expression: {error}; {_HELP}") from None
        names: list[str] = []
        self._check(self._tree, names)
        self.columns = tuple(dict.fromkeys(names))

    def __repr__(self) -> str:
        return f"RowFilter({self.text!r})"

    def __reduce__(self) -> tuple[type[RowFilter], tuple[str]]:
        return RowFilter, (self.text,)

    def require_columns(self, columns: Sequence[str]) -> None:
        """Make sure that the columns are there.

        Raises:
            ConfigError: one is not; the message lists those that are.
        """
        if unknown := [name for name in self.columns if name not in columns]:
            raise ConfigError(
                f"where {self.text!r}: no column {', '.join(map(repr, unknown))}; {list_columns(columns)}"
            )

    def keeps(self, row: RawRow) -> bool | Problem:
        """Tell whether a row is wanted, or why that cannot be told."""
        try:
            return bool(self._value(self._tree, row))
        except (TypeError, ValueError, OverflowError) as error:
            return Problem("where_failed", f"{self.text!r}: {error}")

    def _check(self, node: ast.expr, names: list[str]) -> None:
        children: list[ast.expr] = []
        match node:
            case ast.Constant():
                pass
            case ast.Name():
                names.append(node.id)
            case ast.Subscript(value=ast.Name(id="row"), slice=ast.Constant(value=str(column))):
                names.append(column)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
                children = [argument]
            case ast.Compare() if all(type(each) in _COMPARISONS for each in node.ops):
                children = [node.left, *node.comparators]
            case ast.BoolOp():
                children = node.values
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                children = [node.operand]
            case ast.List() | ast.Tuple() | ast.Set():
                children = node.elts
            case _:
                raise ConfigError(f"where: {ast.unparse(node)!r} is not understood; {_HELP}")
        for child in children:
            self._check(child, names)

    def _value(self, node: ast.expr, row: RawRow) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return row.get(node.id)
            case ast.Subscript(slice=ast.Constant(value=column)):
                return row.get(str(column))
            case ast.Call(func=ast.Name(id=name)):
                return _FUNCTIONS[name](self._value(node.args[0], row))
            case ast.Compare():
                return self._compare(node, row)
            case ast.BoolOp(op=ast.And()):
                return all(self._value(each, row) for each in node.values)
            case ast.BoolOp():
                return any(self._value(each, row) for each in node.values)
            case ast.UnaryOp(op=ast.Not()):
                return not self._value(node.operand, row)
            case ast.UnaryOp():
                return -self._value(node.operand, row)
            case ast.List() | ast.Tuple() | ast.Set():
                return [self._value(each, row) for each in node.elts]
        raise AssertionError(f"{ast.dump(node)} passed the check")

    def _compare(self, node: ast.Compare, row: RawRow) -> bool:
        left = self._value(node.left, row)
        for operation, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node, row)
            if not _COMPARISONS[type(operation)](left, right):
                return False
            left = right
        return True
