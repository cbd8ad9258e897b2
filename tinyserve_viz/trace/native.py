"""Our own trace file (JSON, `tinyserve-viz/trace/1`): its schema, its reader and the bytes a trace is written as.

docs/trace-format.md describes it for users; docs/trace.schema.json is made from the structs
below by `python -m tinyserve_viz.trace.schema`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, NoReturn, get_type_hints

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from tinyserve_viz.core.config import MAX_LENGTH, ContentConfig, EngineConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.trace.decode import decode_document
from tinyserve_viz.trace.request import Request, Trace
from tinyserve_viz.trace.rows import MAX_HASH_ID, MAX_TIME_MS, MAX_TOKEN_ID
from tinyserve_viz.trace.source import Source, show

NAME = "json"
SCHEMA = "tinyserve-viz/trace/1"
MAX_SAMPLES = 65_536
MAX_PRIORITY = (1 << 31) - 1
MAX_SEED = (1 << 63) - 1

PERMILLE = "_permille"


def _bounds(low: float, high: float) -> Meta:
    """Limits for the published schema only: the reader checks them itself, to say what it expects in its own words."""
    return Meta(extra_json_schema={"minimum": low, "maximum": high})


def _section(name: str, config: type) -> type[msgspec.Struct]:
    """The struct of a file section: each field of `config`, optional, and for `x_permille` also the fraction `x`."""
    types = get_type_hints(config)
    columns: list[tuple[str, Any, Any]] = []
    for field in fields(config):
        columns.append((field.name, types[field.name] | UnsetType, UNSET))
        if field.name.endswith(PERMILLE):
            fraction = Annotated[float, _bounds(0, 1)]
            columns.append((field.name.removesuffix(PERMILLE), fraction | UnsetType, UNSET))
    return msgspec.defstruct(name, columns, forbid_unknown_fields=True, kw_only=True, module=__name__)


EngineSection = _section("EngineSection", EngineConfig)
ModelSection = _section("ModelSection", ModelConfig)
ContentSection = _section("ContentSection", ContentConfig)
_SECTIONS: tuple[tuple[str, type], ...] = (("engine", EngineConfig), ("model", ModelConfig), ("content", ContentConfig))

Milliseconds = Annotated[float, _bounds(0, MAX_TIME_MS)]
HashId = Annotated[int, _bounds(0, MAX_HASH_ID)]
TokenId = Annotated[int, _bounds(0, MAX_TOKEN_ID)]


class RequestRow(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True, gc=False):
    """One request of the file; times in ms, lengths in tokens."""

    id: str | None = None
    arrival_ms: Milliseconds = 0
    prompt_len: Annotated[int, _bounds(1, MAX_LENGTH)]
    output_len: Annotated[int, _bounds(0, MAX_LENGTH)]
    prefix_hash_ids: list[HashId] | None = None
    prompt_tokens: list[TokenId] | None = None
    output_tokens: list[TokenId] | None = None
    n: Annotated[int, _bounds(1, MAX_SAMPLES)] = 1
    parent: str | None = None
    fork_at: Annotated[int, _bounds(1, MAX_LENGTH)] | None = None
    cancel_at_ms: Milliseconds | None = None
    priority: Annotated[int, _bounds(-MAX_PRIORITY, MAX_PRIORITY)] = 0


class SchemaName(msgspec.Struct):
    """The file seen only far enough to know whether it is ours."""

    schema: str


class TraceFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    schema: Annotated[str, Meta(extra_json_schema={"const": SCHEMA})]
    name: str | None = None
    seed: Annotated[int, _bounds(0, MAX_SEED)] = 0
    hash_block: Annotated[int, _bounds(1, MAX_LENGTH)] | None = None
    engine: EngineSection = msgspec.field(default_factory=EngineSection)  # type: ignore[valid-type]
    model: ModelSection = msgspec.field(default_factory=ModelSection)  # type: ignore[valid-type]
    content: ContentSection = msgspec.field(default_factory=ContentSection)  # type: ignore[valid-type]
    requests: list[RequestRow]


def sniff(head: bytes, name: str) -> bool:
    """Whether it is a JSON object that names our schema or lies in a `.json` file."""
    text = head.lstrip()
    return text.startswith((b"{", b"[")) and (b"tinyserve-viz/trace/" in head or name.endswith((".json", ".json.gz")))


def read(source: Source, limit: int | None, max_len: int) -> Trace:
    """Read the file and keep its first `limit` requests; a missing `fork_at` becomes min(both prompt lengths)."""
    schema = decode_document(source, SchemaName).schema
    if schema != SCHEMA:
        raise source.error(f"$.schema is {show(schema)}, expected {show(SCHEMA)}")
    file = decode_document(source, TraceFile)
    if not 0 <= file.seed <= MAX_SEED:
        raise source.error(f"$.seed is {show(file.seed)}, expected 0 to {MAX_SEED}")
    settings = {name: _settings(source, name, config, getattr(file, name)) for name, config in _SECTIONS}
    hash_block = file.hash_block
    if hash_block is None:
        has_ids = any(row.prefix_hash_ids is not None for row in file.requests)
        hash_block = settings["engine"].get("block_size", 0) if has_ids else 0
    elif not 1 <= hash_block <= MAX_LENGTH:
        raise source.error(f"$.hash_block is {show(hash_block)}, expected 1 to {MAX_LENGTH}")
    if not file.requests:
        raise source.error("$.requests is empty, expected at least one request")
    earlier: dict[str, Request] = {}
    requests: list[Request] = []
    for index, row in enumerate(file.requests[:limit]):
        request = _Row(source, f"$.requests[{index}]", row).request(index, requests, earlier, hash_block, max_len)
        requests.append(request)
        earlier[request.id] = request
    name = source.name if file.name is None else file.name
    return Trace(name, NAME, tuple(requests), file.seed, hash_block, **settings)


class _Row:
    """The checks on one request, each error naming the path `where` of the request in the file."""

    def __init__(self, source: Source, where: str, row: RequestRow) -> None:
        self.source, self.where, self.row = source, where, row

    def request(
        self, index: int, before: list[Request], earlier: Mapping[str, Request], hash_block: int, max_len: int
    ) -> Request:
        row = self.row
        id_ = f"r{index}" if row.id is None else row.id
        if id_ in earlier:
            self.refuse("id", f"is {show(id_)}, which an earlier request has, expected ids to differ")
        arrival = self.micros("arrival_ms", row.arrival_ms)
        if before and arrival < before[-1].arrival_us:
            above = show(before[-1].arrival_us / 1000)
            self.refuse("arrival_ms", f"is {show(row.arrival_ms)}, expected order of arrival: at least {above}")
        self.whole("prompt_len", row.prompt_len, 1, max_len)
        self.whole("output_len", row.output_len, 0, max_len)
        self.whole("n", row.n, 1, MAX_SAMPLES)
        self.whole("priority", row.priority, -MAX_PRIORITY, MAX_PRIORITY)
        cancel = None
        if row.cancel_at_ms is not None:
            cancel = self.micros("cancel_at_ms", row.cancel_at_ms)
            if cancel < arrival:
                self.refuse(
                    "cancel_at_ms", f"is {show(row.cancel_at_ms)}, expected at least arrival_ms {show(row.arrival_ms)}"
                )
        return Request(
            id=id_,
            arrival_us=arrival,
            prompt_len=row.prompt_len,
            output_len=row.output_len,
            prefix_hash_ids=self.hash_ids(hash_block),
            prompt_tokens=self.tokens("prompt_tokens", row.prompt_tokens, row.prompt_len),
            output_tokens=self.tokens("output_tokens", row.output_tokens, row.output_len),
            n=row.n,
            parent=row.parent,
            fork_at=self.fork_at(earlier),
            cancel_at_us=cancel,
            priority=row.priority,
        )

    def fork_at(self, earlier: Mapping[str, Request]) -> int | None:
        row = self.row
        if row.parent is None:
            if row.fork_at is not None:
                self.refuse("fork_at", f"is {show(row.fork_at)} without a parent, expected both or neither")
            return None
        parent = earlier.get(row.parent)
        if parent is None:
            self.refuse("parent", f"is {show(row.parent)}, expected the id of an earlier request")
        if row.n > 1:
            self.refuse("n", f"is {row.n} in a request with a parent, expected 1")
        if row.fork_at is None:
            return min(row.prompt_len, parent.prompt_len)
        self.whole("fork_at", row.fork_at, 1, min(row.prompt_len, parent.prompt_len + parent.output_len))
        return row.fork_at

    def hash_ids(self, hash_block: int) -> NDArray[np.int64] | None:
        ids = self.row.prefix_hash_ids
        if ids is None:
            return None
        if hash_block and len(ids) > math.ceil(self.row.prompt_len / hash_block):
            most = f"ceil({self.row.prompt_len} / {hash_block}) = {math.ceil(self.row.prompt_len / hash_block)}"
            self.refuse("prefix_hash_ids", f"has length {len(ids)}, expected at most {most}")
        if len(set(ids)) != len(ids):
            repeated = next(id_ for index, id_ in enumerate(ids) if id_ in ids[:index])
            self.refuse("prefix_hash_ids", f"names {show(repeated)} twice, expected each id once in a request")
        return self.array("prefix_hash_ids", ids, MAX_HASH_ID).astype(np.int64)

    def tokens(self, name: str, tokens: list[int] | None, length: int) -> NDArray[np.int32] | None:
        if tokens is None:
            return None
        if len(tokens) != length:
            self.refuse(name, f"has length {len(tokens)}, expected {length}")
        return self.array(name, tokens, MAX_TOKEN_ID).astype(np.int32)

    def array(self, name: str, values: list[int], high: int) -> NDArray[np.int64]:
        if values and not (min(values) >= 0 and max(values) <= high):
            index, bad = next((i, value) for i, value in enumerate(values) if not 0 <= value <= high)
            self.refuse(f"{name}[{index}]", f"is {show(bad)}, expected 0 to {high}")
        return np.array(values, dtype=np.int64)

    def micros(self, name: str, value: float) -> int:
        if not 0 <= value <= MAX_TIME_MS:
            self.refuse(name, f"is {show(value)}, expected 0 to {MAX_TIME_MS:g}")
        return round(value * 1000)

    def whole(self, name: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            self.refuse(name, f"is {show(value)}, expected {low} to {high}")

    def refuse(self, name: str, problem: str) -> NoReturn:
        raise self.source.error(f"{self.where}.{name} {problem}")


def _settings(source: Source, name: str, config: type, section: Any) -> dict[str, Any]:
    """What a section sets, by the field names of `config` and checked by it; fractions become per mille."""
    found: dict[str, Any] = {}
    for key in section.__struct_fields__:
        value = getattr(section, key)
        if value is UNSET:
            continue
        field = key
        if key + PERMILLE in section.__struct_fields__:
            field = key + PERMILLE
            if getattr(section, field) is not UNSET:
                raise source.error(f"$.{name} sets {key} and {field}, expected one of them")
            if not 0 <= value <= 1:
                raise source.error(f"$.{name}.{key} is {show(value)}, expected 0 to 1")
            permille = round(value * 1000)
            if not math.isclose(permille, value * 1000, abs_tol=1e-6):
                raise source.error(f"$.{name}.{key} is {show(value)}, expected at most three decimal places")
            value = permille
        found[field] = value
    try:
        config(**found)
    except ConfigError as error:
        names_field = str(error).partition(" ")[0] in found
        raise source.error(f"$.{name}{'.' if names_field else ': '}{error}") from None
    return found


def encode(trace: Trace) -> bytes:
    """The file that reads back as `trace`, one request a line; the same trace gives the same bytes."""
    header: dict[str, Any] = {"schema": SCHEMA, "name": trace.name, "seed": trace.seed}
    if trace.hash_block:
        header["hash_block"] = trace.hash_block
    for name, config in _SECTIONS:
        section = getattr(trace, name)
        if section:
            header[name] = {field.name: section[field.name] for field in fields(config) if field.name in section}
    head = ",\n ".join(f'"{key}": {msgspec.json.encode(value).decode()}' for key, value in header.items())
    rows = ",\n  ".join(msgspec.json.encode(_row(request)).decode() for request in trace.requests)
    return f'{{{head},\n "requests": [\n  {rows}\n ]}}\n'.encode()


def _row(request: Request) -> RequestRow:
    def listed(values: NDArray[Any] | None) -> list[int] | None:
        return None if values is None else values.tolist()

    return RequestRow(
        id=request.id,
        arrival_ms=_milliseconds(request.arrival_us),
        prompt_len=request.prompt_len,
        output_len=request.output_len,
        prefix_hash_ids=listed(request.prefix_hash_ids),
        prompt_tokens=listed(request.prompt_tokens),
        output_tokens=listed(request.output_tokens),
        n=request.n,
        parent=request.parent,
        fork_at=request.fork_at,
        cancel_at_ms=None if request.cancel_at_us is None else _milliseconds(request.cancel_at_us),
        priority=request.priority,
    )


def _milliseconds(micros: int) -> float:
    return micros // 1000 if micros % 1000 == 0 else micros / 1000
