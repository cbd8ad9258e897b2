"""Writes a replay into one SQLite file as it happens, and computes its digest.

Rows go to the file in transactions that end with a step, so a replay killed at any moment leaves a file that opens to
its last committed step. While writing the file is in WAL mode; closing it makes it a single file again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from pathlib import Path
from types import TracebackType

from tinyserve_viz.core.errors import RecordingError
from tinyserve_viz.core.events import EVENT_TYPES, Event
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.codec import digest_header, encode_event
from tinyserve_viz.recording.header import Header
from tinyserve_viz.recording.snapshot import SnapshotWriter

APPLICATION_ID = 0x54535650  # "TSVP", SQLite's application_id of our files
COMMIT_EVERY_S = 0.25
# A seek restores a snapshot and applies the events behind it, about 30 µs each on a slow core: 1,024 keep it under
# 100 ms. A snapshot costs time and space by the block, so pools of more than 131,072 blocks get fewer of them.
SNAPSHOT_EVERY_EVENTS = 1024
_BLOCKS_AN_EVENT = 128

_STEP_KINDS = tuple(kind for kind, event_type in enumerate(EVENT_TYPES) if event_type.WHOLE)

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE events(idx INTEGER PRIMARY KEY, step INTEGER NOT NULL, kind INTEGER NOT NULL, request INTEGER NOT NULL,
                    payload BLOB NOT NULL, observed BLOB);
CREATE TABLE snapshots(idx INTEGER PRIMARY KEY, base INTEGER NOT NULL, payload BLOB NOT NULL);
"""


def single_file(path: Path) -> None:
    """Make the recording one file again after it was read while it was written.

    Raises:
        RecordingError: it cannot be written, or somebody still reads it.
    """
    try:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode=DELETE")
        db.close()
    except sqlite3.Error as error:
        raise RecordingError(f"{path}: cannot be closed: {error}") from None


class Digest:
    """SHA-256 over the decisions of a replay: index, step, kind, request and decision fields of every event."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.num_events = 0

    def add(self, step: int, event: Event) -> tuple[int, int, bytes, bytes | None]:
        """Take the next event; returns kind, request and the encoded fields for whoever stores them."""
        kind, request, payload, observed = encode_event(event)
        self._hash.update(digest_header(self.num_events, step, kind, request) + payload)
        self.num_events += 1
        return kind, request, payload, observed

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


class Recorder:
    """Records events of `state` to `path`; use as a context manager. `add` is the engine's sink.

    An existing `path` is refused, or with `force` replaced at the end: until then the new recording stands beside it.

    Raises:
        RecordingError: the file exists, or cannot be written (no permission, full disk).
    """

    def __init__(
        self, path: Path, header: Header, state: CacheState, force: bool = False, snapshot_every: int | None = None
    ) -> None:
        self.path, self.state, self.digest = path, state, Digest()
        self._target = path
        if path.exists() and not path.is_file():
            what = "a directory" if path.is_dir() else "no regular file"
            raise RecordingError(f"{path}: is {what}, expected a file name for the recording")
        if path.exists():
            if not force:
                raise RecordingError(f"{path}: exists; choose another name or overwrite it with --force")
            self._target = path.with_name(f".{path.name}.{os.getpid()}.new")
        self._snapshot_every = snapshot_every or max(SNAPSHOT_EVERY_EVENTS, state.num_blocks // _BLOCKS_AN_EVENT)
        self._snapshots = SnapshotWriter()
        self._base = 0
        self._last_snapshot = 0
        self._rows: list[tuple[int, int, int, int, bytes, bytes | None]] = []
        self._next_commit = time.monotonic() + COMMIT_EVERY_S
        self._db: sqlite3.Connection | None = None
        try:
            self._db = sqlite3.connect(self._target, isolation_level=None, check_same_thread=False)
            self._db.executescript(
                f"PRAGMA application_id={APPLICATION_ID}; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;{_TABLES}"
            )
            self._db.executemany("INSERT INTO meta VALUES(?,?)", header.to_rows().items())
            self._write_snapshot()
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def add(self, step: int, event: Event) -> None:
        """Record one event that was just applied."""
        index = self.digest.num_events
        kind, request, payload, observed = self.digest.add(step, event)
        self._rows.append((index, step, kind, request, payload, observed))
        if event.WHOLE:
            self._step_done()

    def _step_done(self) -> None:
        if self.digest.num_events - self._last_snapshot >= self._snapshot_every:
            self._commit(snapshot=True)
        elif time.monotonic() >= self._next_commit:
            self._commit(snapshot=False)

    def _commit(self, snapshot: bool) -> None:
        assert self._db is not None
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO events VALUES(?,?,?,?,?,?)", self._rows)
            if snapshot:
                self._write_snapshot()
            self._db.execute("COMMIT")
            self._rows.clear()  # not before: who is interrupted in here must still have them
        except sqlite3.Error as error:
            raise self._failed(error) from None
        self._next_commit = time.monotonic() + COMMIT_EVERY_S

    def _write_snapshot(self) -> None:
        assert self._db is not None
        index = self._last_snapshot = self.digest.num_events
        full, payload = self._snapshots.encode(self.state)
        self._base = index if full else self._base
        self._db.execute("INSERT INTO snapshots VALUES(?,?,?)", (index, self._base, payload))

    def finish(self, summary: bytes) -> None:
        """The replay is over: store its summary (JSON), close, and put the file in its place."""
        assert self._db is not None
        self._commit(snapshot=False)
        try:
            rows = [("digest", self.digest.hexdigest().encode()), ("summary", summary)]
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", rows)
            self._close()
            if self._target != self.path:
                self._target.replace(self.path)
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from None

    def _close(self) -> None:
        if self._db is not None:
            self._db.execute("PRAGMA busy_timeout=0")
            with contextlib.suppress(sqlite3.OperationalError):  # somebody reads it; `single_file` does it afterwards
                self._db.execute("PRAGMA journal_mode=DELETE")
            self._db.close()
            self._db = None

    def _failed(self, error: Exception) -> RecordingError:
        """The disk is full, or the like: close what can be closed and say it in one line."""
        if self._db is not None:
            self._db.close()
            self._db = None
        self._drop_unfinished()
        return RecordingError(f"{self.path}: cannot be written: {error}")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Interrupted or failed: keep the steps that are complete, so the file opens to the last of them.

        What was to replace an existing recording is dropped instead: that one stays.
        """
        if self._db is None:
            return
        last = max((i for i, row in enumerate(self._rows) if row[2] in _STEP_KINDS), default=-1)
        del self._rows[last + 1 :]
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            (stored,) = self._db.execute("SELECT COALESCE(MAX(idx), -1) FROM events").fetchone()
            self._rows = [row for row in self._rows if row[0] > stored]
            self._commit(snapshot=False)
            self._close()
        except (RecordingError, sqlite3.Error):
            self._db = None
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Delete what stands beside an existing recording and will not replace it any more."""
        if self._target != self.path:
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._target.with_name(self._target.name + suffix).unlink(missing_ok=True)
