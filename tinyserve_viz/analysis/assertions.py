"""Assertions about a replay: comparisons over the names of its summary, read with a small grammar of our own.

Allowed are dotted names, numbers, texts, `null`, `true`, `false`, `+ - * /`, comparisons (chained too), `and`, `or`,
`not`, parentheses and `abs`, `min`, `max`. The text is parsed by Python's parser and walked here; nothing is ever run.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyserve_viz.core.errors import TinyserveError

_MOST_CHARS = 1000
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max}
_CONSTANTS = {"null": None, "true": True, "false": False}


class AssertionSyntax(TinyserveError):  # noqa: N818 - names what is wrong
    """The text is no assertion, or names something that the summary does not have."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether `text` holds, and the summary's values that it names; `why` says more where it could not be decided."""

    text: str
    passed: bool
    values: dict[str, Any]
    why: str = ""


class _UndecidedError(Exception):
    """A value is null, or two values cannot be compared: the assertion fails, and the message says which."""


def judge(text: str, values: Mapping[str, Any]) -> Verdict:
    """Evaluate an assertion over `values`, the summary flattened to dotted names.

    Raises:
        AssertionSyntax: it is not in the grammar, or a name is unknown.
    """
    tree = _parsed(text)
    named: dict[str, Any] = {}
    _check(text, tree, values, named)
    try:
        found = _value(tree, values)
    except _UndecidedError as error:
        return Verdict(text, False, named, str(error))
    if not isinstance(found, bool):
        raise AssertionSyntax(f"{text!r} is a value, expected a comparison such as {text.strip()} > 0")
    return Verdict(text, found, named)


def expect_assertion(text: str) -> None:
    """What can be said of an assertion before there are values.

    Raises:
        AssertionSyntax: it is not in the grammar.
    """
    _check(text, _parsed(text), None, {})


def _parsed(text: str) -> ast.expr:
    if len(text) > _MOST_CHARS:
        raise AssertionSyntax(f"assertion of {len(text):,} characters, expected at most {_MOST_CHARS:,}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        example = "prefix.token_hit_rate >= 0.5"
        raise AssertionSyntax(f"{text!r} cannot be read: {reason}; expected e.g. {example}") from None


def _check(text: str, node: ast.expr, values: Mapping[str, Any] | None, named: dict[str, Any]) -> None:
    """Every part is in the grammar and every name is in `values` (if there are), also where `and` would never look."""
    match node:
        case ast.Constant(value=bool() | None) | ast.Constant(value=int() | float() | str()):
            return
        case ast.Name() | ast.Attribute():
            name = _dotted(text, node)
            if name not in _CONSTANTS and values is not None:
                if name not in values:
                    raise AssertionSyntax(f"{text!r}: {_unknown(name, values)}")
                named[name] = values[name]
            return
        case ast.BoolOp(values=parts):
            inner = list(parts)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=operand):
            inner = [operand]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            inner = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            inner = [left, *others]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS and arguments:
            if (name == "abs") != (len(arguments) == 1):
                raise AssertionSyntax(f"{text!r}: abs takes one value, min and max two or more")
            inner = list(arguments)
        case _:
            part = ast.unparse(node)
            raise AssertionSyntax(
                f"{text!r}: {part!r} is not allowed; names, numbers, + - * /, comparisons, and, or, not, abs, min and "
                "max are"
            )
    for part_ in inner:
        _check(text, part_, values, named)


def _dotted(text: str, node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(text, node.value)}.{node.attr}"
    raise AssertionSyntax(f"{text!r}: {ast.unparse(node)!r} is no name")


def _unknown(name: str, values: Mapping[str, Any]) -> str:
    inside = [key for key in values if key.startswith(f"{name}.")]
    if inside:
        return f"{name!r} is a section, expected one of its values: {', '.join(inside[:6])}"
    near = difflib.get_close_matches(name, values, 3, 0.5)
    hint = f"near: {', '.join(near)}" if near else "`replay --headless --json` shows all"
    return f"unknown name {name!r}; {hint}"


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name() | ast.Attribute():
            name = _dotted("", node)
            return _CONSTANTS[name] if name in _CONSTANTS else values[name]
        case ast.BoolOp(op=op, values=parts):
            wanted = isinstance(op, ast.Or)
            return wanted if any(_truth(part, values) is wanted for part in parts) else not wanted
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _truth(operand, values)
        case ast.UnaryOp(op=op, operand=operand):
            number = _number(operand, values)
            return -number if isinstance(op, ast.USub) else number
        case ast.BinOp(op=op, left=left, right=right):
            try:
                return _ARITHMETIC[type(op)](_number(left, values), _number(right, values))
            except ZeroDivisionError:
                raise _UndecidedError(f"{ast.unparse(right)} is 0, and was divided by") from None
            except OverflowError:
                raise _UndecidedError(f"{ast.unparse(node)} is too large") from None
        case ast.Compare(left=left, ops=ops, comparators=others):
            operands = [left, *others]
            pairs = zip(operands, ops, others, strict=False)
            return all(_compare(first, op, second, values) for first, op, second in pairs)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_number(argument, values) for argument in arguments))
        case _:
            raise AssertionError(ast.dump(node))


def _truth(node: ast.expr, values: Mapping[str, Any]) -> bool:
    found = _value(node, values)
    if not isinstance(found, bool):
        raise _UndecidedError(f"{ast.unparse(node)} is {found!r}, expected true or false")
    return found


def _number(node: ast.expr, values: Mapping[str, Any]) -> int | float:
    found = _value(node, values)
    if found is None:
        raise _UndecidedError(f"{ast.unparse(node)} is null: there was nothing to measure")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _UndecidedError(f"{ast.unparse(node)} is {found!r}, expected a number")
    return found


def _compare(first: ast.expr, op: ast.cmpop, second: ast.expr, values: Mapping[str, Any]) -> bool:
    a, b = _value(first, values), _value(second, values)
    if isinstance(op, ast.Eq | ast.NotEq):
        return _COMPARISONS[type(op)](a, b)
    for node, found in ((first, a), (second, b)):
        if found is None:
            raise _UndecidedError(f"{ast.unparse(node)} is null: there was nothing to measure")
    if isinstance(a, str) is not isinstance(b, str):
        raise _UndecidedError(f"{ast.unparse(first)} is {a!r} and {ast.unparse(second)} is {b!r}: they have no order")
    return _COMPARISONS[type(op)](a, b)
