"""Digests under version control: what a replay decided, small enough to keep and enough to find the first change.

A file has an entry for each replay: its digest, the settings that matter, and one line a decision (the fields of
`first_decision.DECIDED`), compressed. A replay with more than 50,000 decisions keeps its digest alone.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tinyserve_viz.analysis.first_decision import DECIDED
from tinyserve_viz.analysis.sentences import sentence
from tinyserve_viz.core.config import as_dict
from tinyserve_viz.core.errors import TinyserveError
from tinyserve_viz.core.events import CompactionPlanned, Event
from tinyserve_viz.recording.timeline import Timeline

SCHEMA = 1
MOST_DECISIONS = 50_000


class DigestFileError(TinyserveError):
    """A digest file cannot be read, or has nothing of this replay."""


class Entry(msgspec.Struct):
    """One replay: its digest, sizes, settings, and the compressed decisions (empty: too many)."""

    digest: str
    steps: int
    events: int
    num_decisions: int
    settings: dict[str, Any]
    decisions: str = ""

    def lines(self) -> list[bytes]:
        """One JSON array a decision: step, kind of event, its decided fields."""
        return zlib.decompress(base64.b64decode(self.decisions)).splitlines() if self.decisions else []


class DigestFile(msgspec.Struct):
    """Entries by name."""

    schema: int = SCHEMA
    replays: dict[str, Entry] = {}


def read(path: Path) -> DigestFile:
    """Parse a digest file.

    Raises:
        DigestFileError: it is none.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=DigestFile)
        for entry in found.replays.values():
            entry.lines()
    except OSError as error:
        raise DigestFileError(f"{path}: {error.strerror}; --update writes it") from None
    except (msgspec.DecodeError, zlib.error, binascii.Error, ValueError) as error:
        raise DigestFileError(f"{path}: is no digest file ({error}); --update writes one") from None
    if found.schema != SCHEMA:
        raise DigestFileError(f"{path}: has schema {found.schema}, this version reads {SCHEMA}")
    return found


def encode(file: DigestFile) -> bytes:
    """As JSON that versions well: an entry changes only where its replay does, and entries stand in order of name."""
    ordered = DigestFile(file.schema, dict(sorted(file.replays.items())))
    return msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n"


@dataclass(frozen=True, slots=True)
class Decisions:
    """The decisions of a recording: a line each, and the number of its event."""

    lines: list[bytes]
    events: list[int]


def decisions_of(timeline: Timeline) -> Decisions:
    """Every decision of a recording; a compaction that moved nothing has decided nothing."""
    lines: list[bytes] = []
    events: list[int] = []
    for index, (step, event) in enumerate(timeline.events()):
        names = DECIDED.get(type(event))
        if names is not None and not (isinstance(event, CompactionPlanned) and not len(event.src)):
            lines.append(_line(step, event, names))
            events.append(index)
    return Decisions(lines, events)


def _line(step: int, event: Event, names: tuple[str, ...]) -> bytes:
    values = (getattr(event, name) for name in names)
    plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return msgspec.json.encode([step, type(event).__name__, *plain])


def entry_of(timeline: Timeline, digest: str, steps: int, decisions: Decisions) -> Entry:
    """What to keep of a replay."""
    kept = ""
    if len(decisions.lines) <= MOST_DECISIONS:
        kept = base64.b64encode(zlib.compress(b"\n".join(decisions.lines), 9)).decode()
    return Entry(digest, steps, timeline.num_events, len(decisions.lines), _settings(timeline), kept)


def _settings(timeline: Timeline) -> dict[str, Any]:
    header = timeline.header
    origin = {name: header.origin[name] for name in ("profile", "arrivals", "kernels_run")}
    return origin | as_dict(header.engine) | {f"content_{k}": v for k, v in as_dict(header.content).items()}


def difference(kept: Entry, now: Entry, timeline: Timeline, decisions: Decisions) -> list[str]:
    """Nothing where the digests are the same; else sentences: other settings, then the first decision that differs."""
    if kept.digest == now.digest:
        return []
    found = [f"the digest is {now.digest}, kept is {kept.digest}"]
    changed = [
        f"{name} {kept.settings[name]} → {value}"
        for name, value in now.settings.items()
        if name in kept.settings and kept.settings[name] != value
    ]
    if changed:
        found.append(f"the settings are not those that were kept: {', '.join(changed)}")
    if not kept.decisions or not now.decisions:
        more = f"more than {MOST_DECISIONS:,} decisions are not kept: record both and use `compare A B`"
        return [*found, more]
    before = kept.lines()
    place = next((i for i, (a, b) in enumerate(zip(before, decisions.lines, strict=False)) if a != b), None)
    if place is None and len(before) == len(decisions.lines):
        same = f"all {len(before):,} decisions are the same, but not their reasons, keys or counts"
        return [*found, same]
    place = min(len(before), len(decisions.lines)) if place is None else place
    return [
        *found,
        f"the first {place:,} decisions are the same; then",
        f"  kept: {_in_short(before[place]) if place < len(before) else 'the replay was over'}",
        f"  now:  {_in_words(timeline, decisions, place)}",
    ]


def _in_short(line: bytes) -> str:
    step, kind, *values = msgspec.json.decode(line)
    event_type = next((event_type for event_type in DECIDED if event_type.__name__ == kind), None)
    names = DECIDED[event_type] if event_type is not None else ()
    return f"step {step}: {kind}, " + ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=False))


def _in_words(timeline: Timeline, decisions: Decisions, place: int) -> str:
    if place >= len(decisions.lines):
        return "the replay is over"
    index = decisions.events[place]
    step, event = timeline.event(index)
    words = sentence(event, timeline.seek(index))
    return f"step {step}: {_in_short(decisions.lines[place]).partition(': ')[2]} – {words}"
