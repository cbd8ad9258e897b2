"""Small KV-event streams for tests, in every encoding that a server uses."""

from __future__ import annotations

import json
from typing import Any

import msgspec

Event = dict[str, Any]


def stored(*hashes: Any, after: Any = None, size: int = 4, **more: Any) -> Event:
    """A BlockStored event as vLLM 0.33 encodes it."""
    event = {"type": "BlockStored", "block_hashes": list(hashes), "parent_block_hash": after}
    return {
        **event,
        "token_ids": [7] * size * len(hashes),
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        **more,
    }


def removed(*hashes: Any, **more: Any) -> Event:
    """A BlockRemoved event."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **more}


def cleared() -> Event:
    """An AllBlocksCleared event."""
    return {"type": "AllBlocksCleared"}


def frames(*batches: list[Any], first: int = 0, sequences: list[int] | None = None, rank: int | None = 0) -> bytes:
    """Batches of events as frames, 0.5 s apart, numbered from `first` on or by `sequences`."""
    data = b""
    for place, events in enumerate(batches):
        sequence = first + place if sequences is None else sequences[place]
        data += frame(sequence, msgspec.msgpack.encode([100.0 + place / 2, events, rank]))
    return data


def frame(sequence: int, payload: bytes) -> bytes:
    """One frame around a payload."""
    return sequence.to_bytes(8, "big") + len(payload).to_bytes(4, "big") + payload


def lines(*batches: list[Any], first: int = 0) -> bytes:
    """The same as JSON lines."""
    rows = [
        {"seq": first + place, "ts": 100.0 + place / 2, "events": events, "data_parallel_rank": 0}
        for place, events in enumerate(batches)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_array(event: Event) -> list[Any]:
    """An event as older releases encode it: an array that begins with its name."""
    names = {
        "BlockStored": ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"),
        "BlockRemoved": ("block_hashes", "medium"),
        "AllBlocksCleared": (),
    }[event["type"]]
    return [event["type"], *(event[name] for name in names)]
