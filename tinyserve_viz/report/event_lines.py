"""A recording as JSON Lines: a header, then one object an event, under a schema with a version (docs/events.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import msgspec
import numpy as np

from tinyserve_viz.analysis.sentences import sentence
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.config import as_dict
from tinyserve_viz.core.events import EVENT_TYPES
from tinyserve_viz.core.workload import MISS_CAUSES
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.timeline import Timeline

SCHEMA = "tinyserve-viz/events/1"

_TYPES = {
    "int": "integer",
    "str": "string",
    "float": "number",
    "I8": "integers (int8)",
    "U8": "integers (uint8)",
    "I32": "integers (int32)",
    "I64": "integers (int64)",
    "F32": "numbers (float32)",
    "F64": "numbers (float64)",
}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"events hold integers, strings and vectors, found {type(value).__name__}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def event_lines(timeline: Timeline, with_sentences: bool = False) -> Iterator[bytes]:
    """The header line, then a line for every event; with sentences each has a `text` that says what and why."""
    yield _encode(_header(timeline)) + b"\n"
    state = timeline.header.empty_state()
    for index, (step, event) in enumerate(timeline.events()):
        line: dict[str, Any] = {"index": index, "step": step, "kind": type(event).__name__}
        if with_sentences:
            line["text"] = sentence(event, state)
            with timeline.reading():
                apply(state, event)
        yield _encode(line | {field.name: getattr(event, field.name) for field in fields(event)}) + b"\n"


def _header(timeline: Timeline) -> dict[str, Any]:
    header: Header = timeline.header
    w = header.workload
    return {
        "schema": SCHEMA,
        **header.origin,
        "engine": as_dict(header.engine),
        "rules": as_dict(header.rules),
        "model": as_dict(header.model),
        "content": as_dict(header.content),
        "request_ids": w.request_ids,
        "request_of_seq": w.request_of_seq,
        "events": timeline.num_events,
        "complete": timeline.complete,
        "digest": timeline.digest,
    }


def reference() -> str:
    """docs/events.md: every kind of event with its fields, written from core/events.py."""
    lines = [
        "# Events",
        "",
        *_wrapped(
            f"Schema `{SCHEMA}`, written from `tinyserve_viz/core/events.py` by "
            "`python -m tinyserve_viz.report.event_lines > docs/events.md` (a test compares). A field that changes its "
            "meaning or its type, or goes away, makes a new version; new kinds and new fields do not, so readers skip "
            "what they do not know."
        ),
        "",
        *_wrapped(
            "`tinyserve-viz export run.rec --format jsonl` writes UTF-8 JSON Lines. The first line is the header: "
            "`schema`, where the recording comes from (`trace`, `profile`, `arrivals`, `backend`, `device`, "
            "`kernels_run`, `tool` …), `engine`, `rules`, `model`, `content`, `request_ids` (by request number), "
            "`request_of_seq` (request number by sequence number), `events`, `complete`, `digest`. Every other line "
            "is an event: `index` (from 0), `step`, `kind`, with `--sentences` a `text`, and the fields below. Times "
            "are in µs of simulated time, lengths in tokens, block ids physical unless called logical, −1 means none. "
            "Fields marked *observed* were measured or derived by looking; they are not part of the digest."
        ),
        "",
        f"Causes of misses by number: {', '.join(f'{n} {cause}' for n, cause in enumerate(MISS_CAUSES))}.",
    ]
    for event_type in EVENT_TYPES:
        text = " ".join((event_type.__doc__ or "").split())
        lines += ["", f"## {event_type.__name__}", "", *_wrapped(text)]
        own = fields(event_type)
        lines += ["", "| field | type |", "| --- | --- |"] if own else []
        for field in own:
            seen = ", *observed*" if field.name in event_type.OBSERVED else ""
            lines.append(f"| `{field.name}` | {_TYPES[str(field.type)]}{seen} |")
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(reference(), end="")
