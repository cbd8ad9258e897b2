"""Reading KV-event streams: every encoding says the same, and what is no stream is one clear line."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.trace.streams import as_array, cleared, frame, frames, lines, removed, stored
from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.kv_events import Batch, Cleared, Removed, Stored, UnknownEvent, is_stream, read_batches

BIG = (1 << 64) - 3  # beyond 2^53 and 2^63: −3 as a signed integer of 64 bits
BATCHES = ([stored(BIG, 11), stored(12, after=11)], [removed(BIG), cleared()])


def read(tmp_path: Path, data: bytes) -> list[Batch]:
    path = tmp_path / "stream"
    path.write_bytes(data)
    return list(read_batches(str(path)))


def told(batches: list[Batch]) -> list[Any]:
    """Everything that batches hold, as plain values."""
    rows: list[Any] = []
    for batch in batches:
        events: list[Any] = []
        for event in batch.events:
            match event:
                case Stored():
                    events.append(("stored", event.place, event.hashes.tolist(), event.parent, event.block_size))
                case Removed():
                    events.append(("removed", event.place, event.hashes.tolist()))
                case Cleared():
                    events.append("cleared")
                case UnknownEvent():
                    events.append(event.name)
        rows.append((batch.sequence, batch.time_s, batch.rank, events))
    return rows


EXPECTED = [
    (0, 100.0, 0, [("stored", ("GPU", 0), [-3, 11], None, 4), ("stored", ("GPU", 0), [12], 11, 4)]),
    (1, 100.5, 0, [("removed", ("GPU", 0), [-3]), "cleared"]),
]


def arrays(batches: tuple[list[Any], ...]) -> list[list[Any]]:
    return [[as_array(event) for event in events] for events in batches]


def maps_in_maps(batches: tuple[list[Any], ...]) -> bytes:
    payloads = [
        msgspec.msgpack.encode({"ts": 100.0 + place / 2, "events": events, "data_parallel_rank": 0})
        for place, events in enumerate(batches)
    ]
    return b"".join(frame(place, payload) for place, payload in enumerate(payloads))


ENCODINGS: dict[str, Callable[[], bytes]] = {
    "frames of maps": lambda: frames(*BATCHES),
    "frames of arrays, as older releases write them": lambda: frames(*arrays(BATCHES)),
    "frames whose batch is a map too": lambda: maps_in_maps(BATCHES),
    "JSON lines of maps": lambda: lines(*BATCHES),
    "JSON lines of arrays": lambda: lines(*arrays(BATCHES)),
    "JSON lines with blank ones between": lambda: b"\n" + lines(*BATCHES).replace(b"\n", b"\n \n"),
    "gzip of frames": lambda: gzip.compress(frames(*BATCHES)),
    "gzip of JSON lines": lambda: gzip.compress(lines(*BATCHES)),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_says_the_same(encoding: str, tmp_path: Path) -> None:
    data = ENCODINGS[encoding]()
    assert told(read(tmp_path, data)) == EXPECTED
    assert is_stream(tmp_path / "stream")


def test_hashes_as_bytes_count_by_their_last_eight(tmp_path: Path) -> None:
    digest = bytes(range(32))
    low = int.from_bytes(digest[-8:], "big")
    for data in (
        frames([stored(digest, after=digest)]),
        lines([stored(digest.hex(), after="0x" + digest.hex())]),
        lines([stored(base64.b64encode(digest).decode(), after=low)]),
    ):
        (event,) = read(tmp_path, data)[0].events
        assert isinstance(event, Stored)
        assert (event.hashes.tolist(), event.parent) == ([low], low)
        assert event.hashes.dtype == np.int64


def test_medium_and_group_are_places_of_their_own(tmp_path: Path) -> None:
    events = [stored(1, medium="cpu", group_idx=2), removed(1, medium=None, group_idx=None)]
    (batch,) = read(tmp_path, lines(events))
    assert [event.place for event in batch.events if isinstance(event, Stored | Removed)] == [("CPU", 2), ("GPU", 0)]


def test_what_is_new_in_an_event_is_passed_over_and_an_unknown_type_is_named(tmp_path: Path) -> None:
    (batch,) = read(tmp_path, frames([stored(1, colour="red"), {"type": "BlockMoved", "to": 4}, ["BlockPinned", 3]]))
    assert told([batch])[0][3] == [("stored", ("GPU", 0), [1], None, 4), "BlockMoved", "BlockPinned"]


GOOD = frames(*BATCHES)
FIRST = len(frames(BATCHES[0]))  # bytes of the first frame
BAD: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", ": the file is empty, expected a KV-event stream"),
    "a frame cut in its head": (
        GOOD[: FIRST + 5],
        f": byte {FIRST}, frame 1: cut after 5 bytes, expected 12 of its head",
    ),
    "a frame cut in its payload": (
        GOOD[:-1],
        f": byte {FIRST}, frame 1: cut after {len(GOOD) - FIRST - 13} of {len(GOOD) - FIRST - 12} bytes of its payload",
    ),
    "an absurd length": (
        GOOD[:FIRST] + b"\0" * 8 + b"\xff" * 4,
        f": byte {FIRST}, frame 1: its length is 4,294,967,295, expected 1 to 268,435,456 bytes",
    ),
    "no msgpack": (
        frame(0, b"\xc1\xc1"),
        ": byte 0, frame 0: no msgpack (MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)), "
        "expected a batch of events",
    ),
    "msgpack of something else": (
        frame(0, msgspec.msgpack.encode([1])),
        ": byte 0, frame 0: the batch is an array, expected an array or object with ts and an array of events",
    ),
    "JSON that ends early": (
        lines(*BATCHES)[:-9],
        ":2: JSON that ends too early, expected a batch of events",
    ),
    "no seq": (b'{"ts": 1, "events": []}\n', ":1: no seq, expected an object with seq, ts and events"),
    "a line of something else": (
        b'{"seq": 0, "ts": 1, "events": []}\n[]\n',
        ":2: an array, expected an object with seq, ts and events",
    ),
    "a ts that is no number": (
        b'{"seq": 0, "ts": "now", "events": []}\n',
        ":1: ts is 'now', expected seconds as a finite number",
    ),
    "a ts of NaN": (
        frame(0, msgspec.msgpack.encode([float("nan"), []])),
        ": byte 0, frame 0: ts is nan, expected seconds as a finite number",
    ),
    "a negative seq": (
        b'{"seq": -1, "ts": 1, "events": []}\n',
        ":1: the sequence number is -1, expected a whole number from 0 to 2^63 - 1",
    ),
    "an event of no type": (
        lines([{"block_hashes": [1]}]),
        ":1: event 0 is an object, expected an object with type or an array [type, …]",
    ),
    "hashes that are no array": (
        lines([removed(1), {"type": "BlockRemoved", "block_hashes": 5}]),
        ":1: event 1 (BlockRemoved): block_hashes is 5, expected an array of hashes",
    ),
    "a hash beyond 64 bits": (
        lines([removed(1 << 64)]),
        ":1: event 0 (BlockRemoved): a block hash is 18446744073709551616, "
        "expected 64 bits as an integer, or bytes",
    ),
    "a hash that is a fraction": (
        lines([removed(1.5)]),
        ":1: event 0 (BlockRemoved): a block hash is 1.5, expected 64 bits as an integer, or bytes",
    ),
    "a block of no tokens": (
        lines([stored(1, size=0)]),
        ":1: event 0 (BlockStored): block_size is 0, expected 1 to 1024 tokens",
    ),
    "a group that is a word": (
        lines([removed(1, group_idx="x")]),
        ":1: event 0 (BlockRemoved): medium is 'GPU' and group_idx 'x', "
        "expected a string and a whole number, or null",
    ),
    "a gzip file cut in half": (
        gzip.compress(GOOD)[:40],
        ": broken gzip data, expected a complete .gz file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_stream_is_one_line_with_its_place(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    with pytest.raises(TraceError) as caught:
        read(tmp_path, data)
    assert str(caught.value) == f"{tmp_path}/stream{message}"


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none: no such file, expected a KV-event stream$"):
        list(read_batches(str(tmp_path / "none")))
    with pytest.raises(TraceError, match=r": is a directory, expected a KV-event stream$"):
        list(read_batches(str(tmp_path)))
    assert not is_stream(tmp_path / "none")
    assert not is_stream(tmp_path)


def test_the_reader_of_traces_says_what_to_do_with_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "stream.frames"
    path.write_bytes(GOOD)
    with pytest.raises(TraceError, match=r"is a KV-event stream, which names no requests to replay; make a recording"):
        read_trace(path)


def test_progress_hears_how_far_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(GOOD)
    heard: list[int] = []
    list(read_batches(str(path), heard.append))
    assert heard == [FIRST, len(GOOD)]
