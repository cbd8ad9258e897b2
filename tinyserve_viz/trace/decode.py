"""Typed JSON decoding whose errors say which field was found to be what, in words that msgspec does not use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec

from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.trace.source import Source, show

Row = TypeVar("Row")

_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a finite number",
    "str": "a string",
    "bool": "true or false",
    "object": "an object",
    "array": "an array",
    "null": "null",
}
_NOT_NUMBERS = re.compile(rb"-?(NaN|Infinity|nan|inf)")


def decode_document(source: Source, type_: type[Row]) -> Row:
    """The whole file as one JSON value of `type_`; errors name the line (syntax) or the path `$.…` (content)."""
    return _decode(source, msgspec.json.Decoder(type_), source.data, None)


def decode_lines(source: Source, type_: type[Row], limit: int | None) -> Iterator[tuple[int, Row]]:
    """The first `limit` JSON lines as (line from 1, row); blank lines are skipped."""
    decoder = msgspec.json.Decoder(type_)
    decode = decoder.decode
    filled = ((number, line) for number, line in enumerate(source.data.splitlines(), 1) if line and not line.isspace())
    for number, line in islice(filled, limit):
        try:
            yield number, decode(line)
        except (msgspec.DecodeError, RecursionError):
            _decode(source, decoder, line, number)  # raises


def _decode(source: Source, decoder: msgspec.json.Decoder[Row], data: bytes, line: int | None) -> Row:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise source.error(_explain(str(error), data, decoder.type, in_line=line is not None), line) from None
    except msgspec.DecodeError as error:
        raise _syntax_error(source, str(error), data, line) from None
    except RecursionError:
        raise source.error("JSON nested too deeply, expected a trace", line) from None


def _syntax_error(source: Source, message: str, data: bytes, line: int | None) -> TraceError:
    if "truncated" in message:
        return source.error("JSON that ends too early, expected a complete object", line or data.count(b"\n") + 1)
    found = re.search(r"\(byte (\d+)\)", message)
    position = int(found[1]) if found else 0
    where = line or data.count(b"\n", 0, position) + 1
    start = position - 1 if data[position - 1 : position] == b"-" else position
    if constant := _NOT_NUMBERS.match(data, start):
        return source.error(f"{constant[0].decode()} is not a JSON number, expected a finite number", where)
    what = re.sub(r"^JSON is malformed: | \(byte \d+\)$", "", message)
    column = position - data.rfind(b"\n", 0, position)
    return source.error(f"not JSON at column {column} ({what}), expected a JSON object", where)


def _explain(message: str, data: bytes, type_: Any, *, in_line: bool) -> str:
    """Rewrite a msgspec ValidationError as `name is value, expected …`; in JSON lines `$.` is left out."""
    problem, _, path = message.partition(" - at `")
    path = path.removesuffix("`") or "$"
    name = path.removeprefix("$.") if in_line else path
    if match := re.fullmatch(r"Object missing required field `(.*)`", problem):
        return f"{_inside(path, in_line)}{match[1]} is missing, expected a value"
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", problem):
        known = ", ".join(_fields_at(type_, path))
        return f"{_inside(path, in_line)}{show(match[1])[1:-1]} is an unknown field, expected {known}"
    value = _value_at(data, path)
    if path == "$" and in_line:
        name = "the line"
    if match := re.fullmatch(r"Expected `(.*?)`, got `.*`", problem):
        words = " or ".join(_TYPE_WORDS.get(word.strip(), word.strip()) for word in match[1].split("|"))
        return f"{name} is {value}, expected {words}"
    if problem == "Number out of range":
        return f"{name} is out of range, expected a finite number"
    return f"{name} is {value}, {problem[:1].lower()}{problem[1:]}".replace("`", "")


def _inside(path: str, in_line: bool) -> str:
    if in_line:
        path = path.removeprefix("$").removeprefix(".")
    return f"{path}." if path else ""


def _fields_at(type_: Any, path: str) -> list[str]:
    """The field names of the object that `type_` describes at a msgspec path."""
    here: Any = msgspec.inspect.type_info(type_)
    for key in re.findall(r"\.([^.\[]+)", path):
        here = next(field.type for field in here.fields if field.encode_name == key)
        while isinstance(here, msgspec.inspect.ListType):
            here = here.item_type
    return [field.encode_name for field in here.fields]


def _value_at(data: bytes, path: str) -> str:
    """The value at a msgspec path such as `$.requests[3].id`, shown for an error."""
    try:
        value: Any = msgspec.json.decode(data)
        for key, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
            value = value[key] if key else value[int(index)]
    except (msgspec.DecodeError, RecursionError, LookupError, TypeError):
        return "of another type"
    return show(value)
