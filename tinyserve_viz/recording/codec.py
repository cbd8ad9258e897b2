"""Events as bytes: canonical msgpack, the same on every machine, for the file and for the digest.

An event is the array of its fields in the order of their definition. A NumPy vector is an extension value whose type
number names its dtype and whose bytes are little-endian; so a payload tells its own types.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np
from msgspec.msgpack import Ext

from tinyserve_viz.core.events import EVENT_TYPES, KIND_OF, Event

_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("int8"),
    2: np.dtype("uint8"),
    3: np.dtype("<i4"),
    4: np.dtype("<i8"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<u4"),
}
_CODE_OF = {dtype: code for code, dtype in _DTYPES.items()}
_CODE_OF_ANNOTATION = {"I8": 1, "U8": 2, "I32": 3, "I64": 4, "F32": 5, "F64": 6}

if sys.byteorder != "little":  # every machine that NumPy, CUDA and SQLite run our work on is little-endian
    raise ImportError("tinyserve-viz records little-endian arrays and does not convert them on a big-endian machine")


def _array_to_ext(value: object) -> Ext:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in _CODE_OF:
        return Ext(_CODE_OF[value.dtype], value.tobytes())
    shape = f"array of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise TypeError(f"events hold Python integers, strings and vectors, found {shape}")


def _ext_to_array(code: int, data: memoryview) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype=_DTYPES[code])


encode_value = _encode = msgspec.msgpack.Encoder(enc_hook=_array_to_ext).encode
decode_value = _decode = msgspec.msgpack.Decoder(ext_hook=_ext_to_array).decode

Getter = Callable[[Any], tuple[Any, ...]]


def _getter(event_type: type[Event], names: tuple[str, ...]) -> Getter:
    """A function from an event to the values to encode, written out for the fields of its type.

    The encoder could find the arrays itself, by a call back into Python for each: that took a third of the time of
    recording. Here the dtype comes from the field's annotation; `check_types` compares it with the array's.
    """
    annotations = {field.name: str(field.type) for field in fields(event_type)}
    values = [
        f"Ext({_CODE_OF_ANNOTATION[annotations[name]]}, e.{name}.tobytes())"
        if annotations[name] in _CODE_OF_ANNOTATION
        else f"e.{name}"
        for name in names
    ]
    getter: Getter = eval(f"lambda e: ({''.join(v + ',' for v in values)})", {"Ext": Ext})
    return getter


def _decided(event_type: type[Event]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(event_type) if f.name not in event_type.OBSERVED)


_NAMES = [(_decided(event_type), event_type.OBSERVED) for event_type in EVENT_TYPES]
_GETTERS: dict[type[Event], tuple[int, Getter, Getter | None, bool]] = {
    t: (
        KIND_OF[t],
        _getter(t, _decided(t)),
        _getter(t, t.OBSERVED) if t.OBSERVED else None,
        any(field.name == "request" for field in fields(t)),
    )
    for t in EVENT_TYPES
}


def encode_event(event: Event) -> tuple[int, int, bytes, bytes | None]:
    """Kind number, the request it is about (-1: none), the decision fields, the observed fields if its type has any."""
    kind, decided, observed, about_one = _GETTERS[type(event)]
    request: int = event.request if about_one else -1  # type: ignore[attr-defined]
    return kind, request, _encode(decided(event)), None if observed is None else _encode(observed(event))


def decode_event(kind: int, payload: bytes, observed: bytes | None) -> Event:
    """The event that `encode_event` was given; its arrays are read-only views of the payload."""
    event_type = EVENT_TYPES[kind]
    values = _decode(payload)
    if not event_type.OBSERVED:
        return event_type(*values)
    decided, looked_at = _NAMES[kind]
    named = dict(zip(decided, values, strict=True))
    # A recording of an older version ends earlier: what was not looked at then takes the field's default.
    named.update(zip(looked_at, _decode(observed or b"\x90"), strict=False))
    return event_type(**named)


decode_row: Callable[[bytes], list[Any]] = msgspec.msgpack.Decoder().decode
"""The fields of an event as a plain list, arrays left as bytes for `array_of`: a third of the time of `decode_event`,
for who reads one column of a whole recording."""


def array_of(value: Ext) -> np.ndarray[Any, Any]:
    """The array of a field that `decode_row` left as bytes."""
    return _ext_to_array(value.code, memoryview(value.data))


def check_types(event: Event) -> None:
    """Raise TypeError when a field of `event` is not of its annotated type: a bug that would garble a recording."""
    for field in fields(event):
        value, annotation = getattr(event, field.name), str(field.type)
        code = _CODE_OF_ANNOTATION.get(annotation)
        if code is not None:
            if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype != _DTYPES[code]:
                raise TypeError(
                    f"{type(event).__name__}.{field.name} is {value!r}, expected a vector of {_DTYPES[code]}"
                )
        elif type(value).__name__ != annotation:
            raise TypeError(f"{type(event).__name__}.{field.name} is {value!r}, expected {annotation}")


def digest_header(index: int, step: int, kind: int, request: int) -> bytes:
    """What stands before an event's decision fields in the digest."""
    return _encode((index, step, kind, request))
