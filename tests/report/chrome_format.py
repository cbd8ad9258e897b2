"""A validator of Chrome's trace-event JSON, written from the document "Trace Event Format" and Perfetto's rules for it.

Phases that we use: `M` metadata, `X` complete, `C` counter, `i` instant. Slices of one thread must nest or be apart.
"""

from __future__ import annotations

import json
from collections import defaultdict
from decimal import Decimal
from typing import Any

_METADATA = {"process_name": "name", "process_sort_index": "sort_index", "thread_name": "name",
             "thread_sort_index": "sort_index"}  # fmt: skip
_ALLOWED = {
    "M": {"ph", "name", "pid", "tid", "args"},
    "X": {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"},
    "C": {"ph", "name", "pid", "tid", "ts", "args"},
    "i": {"ph", "name", "cat", "pid", "tid", "ts", "s", "args"},
}
_REQUIRED = {"M": {"ph", "name", "pid", "tid", "args"}, "X": {"ph", "name", "pid", "tid", "ts", "dur"},
             "C": {"ph", "name", "pid", "ts", "args"}, "i": {"ph", "name", "pid", "tid", "ts", "s"}}  # fmt: skip


def checked(data: bytes) -> list[dict[str, Any]]:
    """The events of a trace file; AssertionError names the first that breaks the format."""
    trace = json.loads(data, parse_float=Decimal)
    assert isinstance(trace, dict)
    assert trace.get("displayTimeUnit") in ("ms", "ns")
    events: list[dict[str, Any]] = trace["traceEvents"]
    named: set[tuple[int, int]] = set()
    slices: dict[tuple[int, int], list[tuple[Decimal, Decimal, str]]] = defaultdict(list)
    counters: dict[tuple[int, str], Any] = {}
    for event in events:
        phase = event.get("ph")
        assert phase in _ALLOWED, event
        assert _REQUIRED[phase] <= set(event) <= _ALLOWED[phase], event
        assert isinstance(event["name"], str), event
        assert event["name"], event
        assert all(isinstance(event[key], int) for key in ("pid", "tid") if key in event), event
        assert isinstance(event.get("args", {}), dict), event
        if "ts" in event:
            assert event["ts"] >= 0, event
            assert Decimal(event["ts"]) * 1000 % 1 == 0, event  # whole nanoseconds, so that sums are exact
        thread = (event["pid"], event.get("tid", 0))
        if phase == "M":
            assert _METADATA[event["name"]] in event["args"], event
            if event["name"] == "thread_name":
                named.add(thread)
        elif phase == "X":
            assert thread in named, event
            assert event["dur"] >= 0, event
            slices[thread].append((Decimal(event["ts"]), Decimal(event["ts"]) + Decimal(event["dur"]), event["name"]))
        elif phase == "C":
            assert event["args"], event
            assert all(isinstance(value, int | Decimal) for value in event["args"].values()), event
            series = (event["pid"], event["name"])
            last = counters.get(series)
            assert last is None or (last[0] == set(event["args"]) and last[1] < event["ts"]), event
            counters[series] = (set(event["args"]), event["ts"])
        else:
            assert thread in named, event
            assert event["s"] in ("g", "p", "t"), event
    for thread, found in slices.items():
        _nested(thread, found)
    return events


def _nested(thread: tuple[int, int], slices: list[tuple[Decimal, Decimal, str]]) -> None:
    open_: list[tuple[Decimal, Decimal, str]] = []
    for start, end, name in sorted(slices, key=lambda entry: (entry[0], -entry[1])):
        while open_ and open_[-1][1] <= start:
            open_.pop()
        assert not open_ or end <= open_[-1][1], f"{thread}: {name} overlaps {open_[-1][2]}"
        open_.append((start, end, name))
