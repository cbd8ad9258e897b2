"""Events as bytes: canonical msgpack, the same on every machine, for the file and for the digest.

An event is the array of its fields in the order of their definition. A NumPy array is an extension value whose type
number names its dtype and whose bytes are little-endian; so a payload tells its own types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

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


def _array_to_ext(value: object) -> msgspec.msgpack.Ext:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype in _CODE_OF:
        return msgspec.msgpack.Ext(_CODE_OF[value.dtype], value.tobytes())
    shape = f"array of {value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
    raise TypeError(f"events hold Python integers, strings and vectors, found {shape}")


def _ext_to_array(code: int, data: memoryview) -> np.ndarray[Any, Any]:
    return np.frombuffer(data, dtype=_DTYPES[code])


def _decided(event_type: type[Event]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(event_type) if f.name not in event_type.OBSERVED)


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) == 1:
        only = attrgetter(names[0])
        return lambda event: (only(event),)
    return attrgetter(*names)


_encode = msgspec.msgpack.Encoder(enc_hook=_array_to_ext).encode
_decode = msgspec.msgpack.Decoder(ext_hook=_ext_to_array).decode
_GET_DECIDED = {event_type: _getter(_decided(event_type)) for event_type in EVENT_TYPES}
_GET_OBSERVED = {t: _getter(t.OBSERVED) for t in EVENT_TYPES if t.OBSERVED}
_NAMES = [(_decided(event_type), event_type.OBSERVED) for event_type in EVENT_TYPES]


def encode_event(event: Event) -> tuple[int, bytes, bytes | None]:
    """Kind number, the decision fields, and the observed fields if the event type has any."""
    event_type = type(event)
    observed = _GET_OBSERVED.get(event_type)
    return KIND_OF[event_type], _encode(_GET_DECIDED[event_type](event)), observed and _encode(observed(event))


def decode_event(kind: int, payload: bytes, observed: bytes | None) -> Event:
    """The event that `encode_event` was given; its arrays are read-only views of the payload."""
    event_type = EVENT_TYPES[kind]
    values = _decode(payload)
    if not event_type.OBSERVED:
        return event_type(*values)
    decided, looked_at = _NAMES[kind]
    named = dict(zip(decided, values, strict=True))
    named.update(zip(looked_at, _decode(observed or b"\x90"), strict=True))
    return event_type(**named)


def digest_header(index: int, step: int, kind: int, request: int) -> bytes:
    """What stands before an event's decision fields in the digest."""
    return _encode((index, step, kind, request))


encode_value = _encode
decode_value = _decode
