"""A whole state as bytes, or only the chunks of it that changed since the last whole one.

A delta counts from the last full snapshot, not from the delta before it, so a seek reads at most two snapshots.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.block_queue import BlockQueue
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.codec import decode_value, encode_value

CHUNK = 128  # elements: a chunk holds few blocks that did not change, and its number costs little beside it
_LEVEL = 1  # zlib: higher levels cost more than they save
_IN_PLANES = "in planes"  # key that says so

Arrays = dict[str, NDArray[Any]]


def arrays_of(state: CacheState) -> Arrays:
    """Everything in a state that is not derived, as named vectors; views where possible."""
    arrays: Arrays = {name: getattr(state, name) for name in (*state.BLOCK_ARRAYS, *state.SEQ_ARRAYS)}
    arrays["free.pos"] = state.free.pos
    if not state.single_queue:
        arrays["cached.pos"] = state.cached.pos
    arrays["ever_cached"] = np.packbits(state.ever_cached)
    live = np.flatnonzero(state.slot >= 0)
    tables = [state.table(seq) for seq in live.tolist()]
    arrays["tables"] = np.concatenate(tables) if tables else np.zeros(0, dtype=np.int32)
    width = -(-int(state.workload.prompt_len[state.workload.request_of_seq[live]].max(initial=0)) // state.block_size)
    arrays["causes"] = state.causes[state.slot[live], :width].ravel()
    histories = [state.history[state.slot[seq], : state.num_held[seq]] for seq in live.tolist()]
    arrays["history"] = np.concatenate(histories) if histories else np.zeros(0, dtype=np.int32)
    arrays["scalars"] = np.array([getattr(state, name) for name in state.SCALARS], dtype=np.int64)
    return arrays


class SnapshotWriter:
    """Makes snapshots of one growing replay; remembers the last full one to find what changed."""

    def __init__(self, full_every: int = 8) -> None:
        self._full_every = full_every
        self._since_full = 0
        self._base: Arrays | None = None

    def encode(self, state: CacheState) -> tuple[bool, bytes]:
        """(whether it is a full one, the bytes)."""
        arrays = arrays_of(state)
        if self._base is None or self._since_full >= self._full_every:
            self._base = {name: array.copy() for name, array in arrays.items()}
            self._since_full = 0
            return True, _pack({name: [array] for name, array in arrays.items()})
        self._since_full += 1
        parts = {name: _changed(self._base[name], array) for name, array in arrays.items()}
        if sum(_size(part) for part in parts.values()) > 0.6 * sum(array.nbytes for array in arrays.values()):
            self._since_full = self._full_every  # most of it changed: the next one starts afresh
        return False, _pack(parts)


def _changed(base: NDArray[Any], now: NDArray[Any]) -> list[Any]:
    """[whole array] or [chunk numbers, their elements]: whichever says what differs from `base`."""
    if len(base) != len(now) or len(now) < 2 * CHUNK:
        return [] if np.array_equal(base, now) else [now]
    differs = base != now
    starts = np.arange(0, len(now), CHUNK)
    chunks = np.flatnonzero(np.logical_or.reduceat(differs, starts)).astype(np.int32)
    if 2 * len(chunks) > len(starts):
        return [now]
    if not len(chunks):
        return []
    return [chunks, np.concatenate([now[c * CHUNK : (c + 1) * CHUNK] for c in chunks.tolist()])]


def _size(part: list[Any]) -> int:
    return int(sum(array.nbytes for array in part))


def _pack(parts: dict[str, list[Any]]) -> bytes:
    """Bytes of one rank stand together (first all lowest, then all second …), as in Blosc's shuffle: most are 0 or run,
    so 22 MB of a large pool compress to a third of what they otherwise would, in half of the time."""
    planes: dict[str, list[Any]] = {name: [_in_planes(array) for array in part] for name, part in parts.items()}
    return zlib.compress(encode_value({**planes, _IN_PLANES: []}), _LEVEL)


def _unpack(payload: bytes) -> dict[str, list[Any]]:
    """What `_pack` was given. zlib is told roughly how much room it needs: growing to 9 MB costs it as much again."""
    parts: dict[str, list[Any]] = decode_value(zlib.decompress(payload, bufsize=40 * len(payload)))
    if parts.pop(_IN_PLANES, None) is None:  # written by an older version
        return parts
    return {name: [_from_planes(array) for array in part] for name, part in parts.items()}


def _in_planes(array: NDArray[Any]) -> NDArray[Any]:
    """The bytes of a vector, those of one rank together; of the same dtype and length."""
    array = np.ascontiguousarray(array)
    if array.itemsize == 1:
        return array
    return np.ascontiguousarray(array.view(np.uint8).reshape(-1, array.itemsize).T).reshape(-1).view(array.dtype)


def _from_planes(array: NDArray[Any]) -> NDArray[Any]:
    if array.itemsize == 1:
        return array
    return np.ascontiguousarray(array.view(np.uint8).reshape(array.itemsize, -1).T).reshape(-1).view(array.dtype)


def restore(empty: CacheState, full: bytes, delta: bytes | None) -> CacheState:
    """The state that was encoded, built in `empty`, a fresh state of the same workload and sizes."""
    arrays: Arrays = {name: part[0] for name, part in _unpack(full).items()}
    if delta is not None:
        for name, part in _unpack(delta).items():
            if len(part) == 1:
                arrays[name] = part[0]
            elif part:
                arrays[name] = arrays[name].copy()
                start = 0
                for chunk in part[0].tolist():
                    end = start + len(arrays[name][chunk * CHUNK : (chunk + 1) * CHUNK])
                    arrays[name][chunk * CHUNK : (chunk + 1) * CHUNK] = part[1][start:end]
                    start = end
    return _fill(empty, arrays)


def _fill(state: CacheState, arrays: Arrays) -> CacheState:
    for name in (*state.BLOCK_ARRAYS, *state.SEQ_ARRAYS):
        getattr(state, name)[:] = arrays[name]
    state.free = BlockQueue.from_places(arrays["free.pos"].copy())
    state.cached = BlockQueue.from_places(arrays["cached.pos"].copy()) if "cached.pos" in arrays else state.free
    state.ever_cached[:] = np.unpackbits(arrays["ever_cached"], count=len(state.ever_cached)).astype(np.bool_)
    for name, value in zip(state.SCALARS, arrays["scalars"].tolist(), strict=True):
        setattr(state, name, value)
    live = np.flatnonzero(state.slot >= 0)
    if len(live):
        state.grow_slots(int(state.slot[live].max()))
        state.slot_used[state.slot[live]] = True
        start = 0
        for seq in live.tolist():
            held = int(state.num_held[seq])
            state.tables[state.slot[seq], :held] = arrays["tables"][start : start + held]
            state.history[state.slot[seq], :held] = arrays["history"][start : start + held]
            state.tail_block[seq] = arrays["tables"][start + held - 1] if held else 0
            start += held
        state.causes[state.slot[live], : len(arrays["causes"]) // len(live)] = arrays["causes"].reshape(len(live), -1)
    hashed = np.flatnonzero(state.hash >= 0)
    if state.num_duplicates:  # sorting takes about 8 ms for 100,000 blocks, so only where a hash has several
        hashed = hashed[np.argsort(-state.inserted[hashed], kind="stable")]  # the oldest last: it is found
    state.block_of_hash[state.hash[hashed]] = hashed
    return state
