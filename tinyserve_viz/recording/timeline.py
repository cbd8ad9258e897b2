"""Reading a recording: its header, its events, and its state after any number of them."""

from __future__ import annotations

import gc
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.errors import RecordingError, TinyserveError
from tinyserve_viz.core.events import COUNTS_STEPS, EVENT_TYPES, KIND_OF, Event
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.codec import decode_event, decode_row
from tinyserve_viz.recording.header import SCHEMA, Header
from tinyserve_viz.recording.recorder import APPLICATION_ID
from tinyserve_viz.recording.snapshot import restore

_SQLITE_MAGIC = b"SQLite format 3\x00"
_GARBLED = (
    sqlite3.Error,
    zlib.error,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
)


def is_recording(path: Path) -> bool:
    """Whether the file looks like a recording (a SQLite file), by its first bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


def _check_length(path: Path) -> None:
    """A file shorter than its own header says was cut; SQLite would notice only where it reads a missing page.

    Raises:
        RecordingError: it is shorter.
    """
    with path.open("rb") as file:
        head = file.read(32)
    size, page = path.stat().st_size, int.from_bytes(head[16:18], "big")
    expected = (65_536 if page == 1 else page) * int.from_bytes(head[28:32], "big")
    if len(head) < 32 or size < expected:
        raise RecordingError(f"{path}: damaged recording: cut to {size:,} bytes, its header says {expected:,}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without the cyclic collector: it would look again and again through a million rows that hold no cycles, which
    took half of the time of reading them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Timeline:
    """A recording, opened for reading; it may still be growing in another thread.

    Raises:
        RecordingError: no recording, damaged, cut in half, or of a newer schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not is_recording(path):
                raise RecordingError(f"{path}: is no recording (not a SQLite file)")
            _check_length(path)
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self._open()
        except OSError as error:
            raise RecordingError(f"{path}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise RecordingError(f"{path}: damaged recording: {error}") from None

    def _open(self) -> None:
        found = self._db.execute("PRAGMA application_id").fetchone()[0]
        if found != APPLICATION_ID:
            raise RecordingError(f"{self.path}: is a SQLite file of something else (application id {found:#x})")
        rows: dict[str, bytes] = dict(self._db.execute("SELECT key, value FROM meta"))
        schema = int(rows.get("schema", b"0"))
        if schema != SCHEMA:
            again = "; record the trace again" if schema < SCHEMA else ""
            found_and_expected = f"recording has schema {schema}, this version reads schema {SCHEMA}"
            raise RecordingError(f"{self.path}: {found_and_expected}{again}")
        try:
            self.header = Header.from_rows(rows)
        except (KeyError, ValueError, TypeError, zlib.error, TinyserveError) as error:
            raise RecordingError(f"{self.path}: damaged recording: header: {error}") from None
        self.digest: str | None = None
        self.summary = rows.get("summary")
        self.refresh()

    def refresh(self) -> int:
        """Look again how many events there are, and whether it is complete by now; returns that number."""
        if self.digest is None:
            row = self._db.execute("SELECT value FROM meta WHERE key = 'digest'").fetchone()
            self.digest = None if row is None else row[0].decode()
        self.num_events = int(self._db.execute("SELECT COALESCE(MAX(idx) + 1, 0) FROM events").fetchone()[0])
        return self.num_events

    def expect_replay(self) -> None:
        """Refuse the recording of a KV-event stream where requests or the decisions of a scheduler are asked for.

        Raises:
            RecordingError: it is one.
        """
        if self.header.stream is not None:
            raise RecordingError(
                f"{self.path}: records a KV-event stream, which names no requests; expected the recording of a replay"
            )

    @property
    def complete(self) -> bool:
        """Whether the replay came to its end."""
        return self.digest is not None

    def events(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Event]]:
        """(step, event) for the events numbered start … stop − 1.

        Raises:
            RecordingError: the file is damaged there.
        """
        stop = self.num_events if stop is None else stop
        with self.reading():
            query = "SELECT step, kind, payload, observed FROM events WHERE idx >= ? AND idx < ? ORDER BY idx"
            for step, kind, payload, observed in self._db.execute(query, (start, stop)):
                if kind >= len(EVENT_TYPES):
                    raise RecordingError(f"{self.path}: unknown event kind {kind}; made by a newer version?")
                yield step, decode_event(kind, payload, observed)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What garbled bytes break in here, up to an event that cannot be applied, becomes one RecordingError."""
        try:
            yield
        except _GARBLED as error:
            reason = str(error) if isinstance(error, sqlite3.Error) else f"{type(error).__name__}: {error}"
            raise RecordingError(f"{self.path}: damaged recording: {reason}") from error

    def event(self, index: int) -> tuple[int, Event]:
        """(step, event) number `index`."""
        return next(self.events(index, index + 1))

    def events_of_kind(self, event_type: type[Event]) -> Iterator[tuple[int, int, Event]]:
        """(index, step, event) of every event of one type, in order."""
        return self.events_of_kinds((event_type,))

    def events_of_kinds(
        self, event_types: tuple[type[Event], ...], start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, int, Event]]:
        """(index, step, event) of the events of these types that are numbered start … stop − 1, in order."""
        stop = self.num_events if stop is None else stop
        kinds = sorted(KIND_OF[event_type] for event_type in event_types)
        query = (
            "SELECT idx, step, kind, payload, observed FROM events "
            f"WHERE idx >= ? AND idx < ? AND kind IN ({', '.join('?' * len(kinds))}) ORDER BY idx"
        )
        with self.reading():
            for index, step, kind, payload, observed in self._db.execute(query, (start, stop, *kinds)):
                yield index, step, decode_event(kind, payload, observed)

    def steps_of_kind(self, event_type: type[Event]) -> list[int]:
        """The step of every event of one type, in order; nothing of them is decoded."""
        with self.reading():
            query = "SELECT step FROM events WHERE kind = ? ORDER BY idx"
            return [step for (step,) in self._db.execute(query, (KIND_OF[event_type],))]

    def rows_of_kind(self, event_type: type[Event], observed: bool = False) -> tuple[list[int], list[list[Any]]]:
        """The step and the decision fields (or the observed ones) of every event of one type, as `decode_row` gives."""
        steps: list[int] = []
        rows: list[list[Any]] = []
        column = "observed" if observed else "payload"
        with self.reading(), _no_collection():
            query = f"SELECT step, {column} FROM events WHERE kind = ? ORDER BY idx"
            for step, data in self._db.execute(query, (KIND_OF[event_type],)):
                steps.append(step)
                rows.append(decode_row(data))
        return steps, rows

    def seek(self, num_events: int) -> CacheState:
        """A fresh state after the first `num_events` events: the nearest snapshot, then forwards from there."""
        num_events = max(0, min(num_events, self.num_events))
        with self.reading():
            query = "SELECT idx, base, payload FROM snapshots WHERE idx <= ? ORDER BY idx DESC LIMIT 1"
            index, base, payload = self._db.execute(query, (num_events,)).fetchone()
            full = payload
            if base != index:
                full = self._db.execute("SELECT payload FROM snapshots WHERE idx = ?", (base,)).fetchone()[0]
            state = restore(self.header.empty_state(), full, payload if base != index else None)
            self.advance(state, index, num_events)
        return state

    def advance(self, state: CacheState, start: int, stop: int) -> None:
        """Apply the events numbered start … stop − 1 to `state`, which stands at `start`."""
        with self.reading():
            for _, event in self.events(start, stop):
                apply(state, event)

    def first_event_of_step(self, step: int) -> int:
        """Number of the first event that belongs to `step` or a later one."""
        low, high = 0, self.num_events  # steps never decrease along the events, so bisecting beats an index on disk
        while low < high:
            middle = (low + high) // 2
            if self.step_of(middle) < step:
                low = middle + 1
            else:
                high = middle
        return low

    def step_of(self, index: int) -> int:
        """The step to which event number `index` belongs; at the end, the number of steps."""
        row = self._db.execute("SELECT step FROM events WHERE idx = ?", (index,)).fetchone()
        if row is not None:
            return int(row[0])
        row = self._db.execute("SELECT step, kind FROM events ORDER BY idx DESC LIMIT 1").fetchone()
        return 0 if row is None else int(row[0]) + (row[1] in COUNTS_STEPS)

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def __enter__(self) -> Timeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
