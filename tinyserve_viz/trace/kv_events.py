"""KV-event streams, as vLLM and servers like it publish them: which contents enter and leave the prefix cache.

Two kinds of file, plain or `.gz`, read batch by batch so that a stream may be larger than memory:

    frames      per batch 8 bytes sequence number, 4 bytes length, both big-endian, and the msgpack payload
    JSON lines  {"seq": 0, "ts": 1.5, "events": [...], "data_parallel_rank": 0}

A payload is the array [ts, events, rank] or a map with these keys. An event is a map with its name under `type`
(vLLM 0.33), or an array that begins with its name (older releases). Hashes are integers of 64 bits or bytes; of
longer ones the last 8 bytes count, as vLLM's own integers do. Formats: vLLM, `vllm/distributed/kv_events.py`.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.core.events import I64
from tinyserve_viz.trace.source import GZIP_MAGIC, show

NAME = "kv-events"
MAX_BATCH_BYTES = 1 << 28
MAX_BLOCK_TOKENS = 1024  # the largest block size that an engine may have here
_FRAME_HEAD = 12
_MAPS_AND_ARRAYS = (0x82, 0x83, 0x84, 0x92, 0x93, 0x94)  # first byte of a payload: a map or array of 2 to 4
_NAMES = (b"BlockStored", b"BlockRemoved", b"AllBlocksCleared")
_BATCH_FIELDS = ("ts", "events", "data_parallel_rank")
_STORED_FIELDS = (
    "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
    "extra_keys", "group_idx",
)  # fmt: skip
_REMOVED_FIELDS = ("type", "block_hashes", "medium", "group_idx")
_HEX = re.compile(r"(?:0x)?[0-9a-fA-F]{16,}")

Place = tuple[str, int]
"""Where a block lies: the medium (GPU where the stream names none) and the KV-cache group (0 likewise)."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Blocks with these `hashes` int64 [k] are cached at `place`, one prefix after `parent` (None: the start)."""

    place: Place
    hashes: I64
    parent: int | None
    block_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Removed:
    """One copy of each of `hashes` int64 [k] left `place`."""

    place: Place
    hashes: I64


@dataclass(frozen=True, slots=True)
class Cleared:
    """The whole prefix cache was given up."""


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type that this reader does not know."""

    name: str


StreamEvent = Stored | Removed | Cleared | UnknownEvent


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch: `where` it stands (file and place), its sequence number, the server's clock in s, its rank."""

    where: str
    sequence: int
    time_s: float
    rank: int | None
    events: tuple[StreamEvent, ...]


def _begins_a_stream(head: bytes) -> bool:
    if head.lstrip()[:1] == b"{":
        return b'"events"' in head and b'"ts"' in head and any(event in head for event in _NAMES)
    length = int.from_bytes(head[8:_FRAME_HEAD], "big")
    return len(head) > _FRAME_HEAD and head[_FRAME_HEAD] in _MAPS_AND_ARRAYS and 0 < length <= MAX_BATCH_BYTES


def is_stream(path: str | Path) -> bool:
    """Whether the file at `path` begins like a KV-event stream; False when it cannot be read."""
    try:
        with _opened(Path(path)) as (data, _):
            return _begins_a_stream(data.read(4096))
    except (OSError, EOFError, ValueError, zlib.error):  # a path with a null byte is a ValueError
        return False


class _opened:  # noqa: N801 - used as a function in `with`
    """The file unpacked, and how many of its bytes on disk were read so far."""

    def __init__(self, path: Path) -> None:
        self._raw = path.open("rb")
        packed = self._raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        self._raw.seek(0)
        self._data: IO[bytes] = gzip.GzipFile(fileobj=self._raw) if packed else self._raw  # type: ignore[assignment]

    def __enter__(self) -> tuple[IO[bytes], Callable[[], int]]:
        return self._data, self._raw.tell

    def __exit__(self, *_: object) -> None:
        self._data.close()
        self._raw.close()


def read_batches(path: str, progress: Callable[[int], None] | None = None) -> Iterator[Batch]:
    """The batches of the stream at `path`, one after the other; `progress` hears how many bytes of the file are read.

    Raises:
        TraceError: it cannot be read, ends within a batch, or has something in it that is no batch.
    """
    try:
        with _opened(Path(path)) as (data, position):
            start = data.read(1)
            while start.isspace():  # before JSON; a frame begins with the upper byte of a number
                start = data.read(1)
            if not start:
                raise TraceError(f"{path}: the file is empty, expected a KV-event stream")
            batches = _json_lines(path, data, start) if start == b"{" else _frames(path, data, start)
            for batch in batches:
                yield batch
                if progress is not None:
                    progress(position())
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file, expected a KV-event stream") from None
    except IsADirectoryError:
        raise TraceError(f"{path}: is a directory, expected a KV-event stream") from None
    except PermissionError:
        raise TraceError(f"{path}: no permission to read it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise TraceError(f"{path}: broken gzip data, expected a complete .gz file") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from None


def _frames(path: str, data: IO[bytes], start: bytes) -> Iterator[Batch]:
    decode = msgspec.msgpack.Decoder().decode
    offset, number = 0, 0
    while head := start + data.read(_FRAME_HEAD - len(start)):
        start = b""
        where = f"{path}: byte {offset:,}, frame {number:,}"
        if len(head) < _FRAME_HEAD:
            raise TraceError(f"{where}: cut after {len(head)} bytes, expected {_FRAME_HEAD} of its head")
        sequence, length = int.from_bytes(head[:8], "big"), int.from_bytes(head[8:], "big")
        if not 0 < length <= MAX_BATCH_BYTES:
            raise TraceError(f"{where}: its length is {length:,}, expected 1 to {MAX_BATCH_BYTES:,} bytes")
        payload = data.read(length)
        if len(payload) < length:
            raise TraceError(f"{where}: cut after {len(payload):,} of {length:,} bytes of its payload")
        try:
            content = decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise TraceError(f"{where}: no msgpack ({error}), expected a batch of events") from None
        yield _Reader(where).batch(content, sequence)
        offset += _FRAME_HEAD + length
        number += 1


def _json_lines(path: str, data: IO[bytes], start: bytes) -> Iterator[Batch]:
    decode = msgspec.json.Decoder().decode
    number = 0
    while line := start + data.readline(MAX_BATCH_BYTES):
        start, number = b"", number + 1
        if line.isspace():
            continue
        where = f"{path}:{number}"
        if len(line) >= MAX_BATCH_BYTES:
            raise TraceError(f"{where}: longer than {MAX_BATCH_BYTES:,} bytes, expected one batch a line")
        try:
            content = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            ends = "JSON that ends too early" if "truncated" in str(error) else f"no JSON ({error})"
            raise TraceError(f"{where}: {ends}, expected a batch of events") from None
        if not isinstance(content, dict) or "seq" not in content:
            found = "no seq" if isinstance(content, dict) else show(content)
            raise TraceError(f"{where}: {found}, expected an object with seq, ts and events")
        yield _Reader(where).batch(content, content["seq"])


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns the decoded content of one batch into a `Batch`; its errors name the place."""

    where: str

    def _error(self, problem: str) -> TraceError:
        return TraceError(f"{self.where}: {problem}")

    def batch(self, content: Any, sequence: Any) -> Batch:
        found = show(content)
        if isinstance(content, list):
            content = dict(zip(_BATCH_FIELDS, content, strict=False))
        if not isinstance(content, dict) or "ts" not in content or not isinstance(content.get("events"), list):
            raise self._error(f"the batch is {found}, expected an array or object with ts and an array of events")
        time_s, rank = content["ts"], content.get("data_parallel_rank")
        if isinstance(time_s, bool) or not isinstance(time_s, int | float) or not math.isfinite(time_s):
            raise self._error(f"ts is {show(time_s)}, expected seconds as a finite number")
        if isinstance(sequence, bool) or not isinstance(sequence, int) or not 0 <= sequence < 1 << 63:
            raise self._error(f"the sequence number is {show(sequence)}, expected a whole number from 0 to 2^63 - 1")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
            raise self._error(f"data_parallel_rank is {show(rank)}, expected a whole number or null")
        events = tuple(self._event(number, event) for number, event in enumerate(content["events"]))
        return Batch(self.where, sequence, float(time_s), rank, events)

    def _event(self, number: int, event: Any) -> StreamEvent:
        name = event.get("type") if isinstance(event, dict) else event[0] if isinstance(event, list) and event else None
        if not isinstance(name, str):
            raise self._error(f"event {number} is {show(event)}, expected an object with type or an array [type, …]")
        if name == "AllBlocksCleared":
            return Cleared()
        if name not in ("BlockStored", "BlockRemoved"):
            return UnknownEvent(name)
        names = _STORED_FIELDS if name == "BlockStored" else _REMOVED_FIELDS
        fields = event if isinstance(event, dict) else dict(zip(names, event, strict=False))
        hashes = fields.get("block_hashes")
        if not isinstance(hashes, list):
            raise self._error(f"event {number} ({name}): block_hashes is {show(hashes)}, expected an array of hashes")
        contents = np.array([self._hash(number, name, value) for value in hashes], dtype=np.int64)
        place = self._place(number, name, fields)
        if name == "BlockRemoved":
            return Removed(place, contents)
        size, parent = fields.get("block_size"), fields.get("parent_block_hash")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_BLOCK_TOKENS:
            raise self._error(
                f"event {number} ({name}): block_size is {show(size)}, expected 1 to {MAX_BLOCK_TOKENS} tokens"
            )
        return Stored(place, contents, None if parent is None else self._hash(number, name, parent), size)

    def _hash(self, number: int, name: str, value: Any) -> int:
        """The low 64 bits as a signed integer, which is what arrays and recordings hold."""
        if isinstance(value, str):
            value = self._bytes_of(value)
        if isinstance(value, bytes) and value:
            value = int.from_bytes(value[-8:], "big")
        if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64:
            raise self._error(
                f"event {number} ({name}): a block hash is {show(value)}, expected 64 bits as an integer, or bytes"
            )
        return value - (1 << 64) if value >= 1 << 63 else value

    @staticmethod
    def _bytes_of(text: str) -> Any:
        """Bytes that stand in JSON as hexadecimal or base64; `text` itself when it is neither."""
        try:
            if _HEX.fullmatch(text):
                digits = text.removeprefix("0x")
                return bytes.fromhex(digits if len(digits) % 2 == 0 else f"0{digits}")
            return base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            return text

    def _place(self, number: int, name: str, fields: dict[str, Any]) -> Place:
        medium, group = fields.get("medium"), fields.get("group_idx")
        if not isinstance(medium, str | None) or isinstance(group, bool) or not isinstance(group, int | None):
            raise self._error(
                f"event {number} ({name}): medium is {show(medium)} and group_idx {show(group)}, "
                "expected a string and a whole number, or null"
            )
        return (medium.upper() if medium else "GPU", group or 0)
