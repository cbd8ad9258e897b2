"""A pool of any size at random occupancy, made by events: scattered, shared and cached blocks, and K/V to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.recording.header import Header
from tinyserve_viz.trace.request import Request, Trace

BLOCK_SIZE, HELD = 4, 64


def i32(values: Any) -> ev.I32:
    return np.asarray(values, dtype=np.int32)


@dataclass(eq=False)
class Pool:
    header: Header
    state: CacheState
    events: list[tuple[int, ev.Event]]
    sink: Callable[[int, ev.Event], Any]

    def emit(self, event: ev.Event) -> None:
        step = self.state.step
        apply(self.state, event)
        self.events.append((step, event))
        self.sink(step, event)


def unwatched(_step: int, _event: ev.Event) -> None:
    """Nobody looks."""


def fragmented_pool(
    num_blocks: int,
    seed: int = 0,
    compaction: str = "intelligent",
    sink_for: Callable[[Header, CacheState], Callable[[int, ev.Event], Any]] = lambda _header, _state: unwatched,
) -> Pool:
    """Half of the pool, chosen at random, is held by sequences of 64 blocks; besides, 4 % are cached without holder.

    One sequence in 32 has a child that shares its first 16 blocks.
    """
    num_seqs = num_blocks // (2 * HELD)
    num_cached = max(1, num_blocks // 25 // HELD)
    tokens = HELD * BLOCK_SIZE
    parents = range(0, num_seqs, 32)
    requests = [
        Request(f"r{i}", 0, tokens, 1, prefix_hash_ids=np.arange(i * HELD, (i + 1) * HELD, dtype=np.int64))
        for i in range(num_seqs + num_cached)
    ]
    requests += [Request(f"c{i}", 0, 64, 1, parent=f"r{i}", fork_at=64) for i in parents]
    engine = {"block_size": BLOCK_SIZE, "num_blocks": num_blocks, "compaction": compaction}
    model = {"num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}
    trace = Trace("pool", "json", tuple(requests), hash_block=BLOCK_SIZE, engine=engine, model=model)
    header = prepare(trace, Settings(kernels="none"))
    state = header.empty_state()
    pool = Pool(header, state, [], sink_for(header, state))
    rng = np.random.default_rng(seed)
    blocks = i32(rng.permutation(num_blocks)[: (num_seqs + num_cached) * HELD]).reshape(-1, HELD)
    pool.emit(ev.RequestsArrived(np.arange(len(requests), dtype=np.int32)))
    workload = header.workload
    for seq, own in enumerate(blocks):
        pool.emit(ev.SequenceAdmitted(seq, seq, seq, tokens, ev.EMPTY, ev.EMPTY_U8, np.zeros(7, dtype=np.int64),
                                      HELD, num_blocks, 0, 0, ev.EMPTY))  # fmt: skip
        pool.emit(ev.BlocksAllocated(i32([seq]), i32([0]), i32([HELD]), own, HELD, 0, 0, -1))
    every = np.arange(len(blocks), dtype=np.int32)
    pool.emit(ev.TokensWritten(ev.EMPTY, every, i32([tokens] * len(blocks))))
    hashes = np.concatenate([workload.hashes_of(seq) for seq in range(len(blocks))])
    pool.emit(ev.BlocksCached(blocks.ravel(), hashes))
    for place, seq in enumerate(parents):
        child = len(blocks) + place
        pool.emit(ev.SequencesForked(seq, i32([child]), i32([child]), 64, np.ones(1, dtype=np.uint8)))
    for seq in range(num_seqs, len(blocks)):  # these leave their blocks to the prefix cache
        pool.emit(ev.BlocksFreed(i32([seq]), i32([HELD]), np.ascontiguousarray(blocks[seq][::-1])))
        pool.emit(ev.SequencesFinished(i32([seq]), i32([seq])))
    end_step(pool)
    return pool


def end_step(pool: Pool) -> None:
    state = pool.state
    pool.emit(ev.StepEnded(state.time_us + 1, 0, 0, 0, 0, state.num_used, state.num_cached_free, state.num_free,
                           state.resident_tokens, 0, 0, 0, state.num_used, ev.EMPTY))  # fmt: skip


@dataclass(eq=False)
class Memory:
    """K/V and boxes of a pool, random but for where they are read from."""

    key_cache: NDArray[np.float16]
    value_cache: NDArray[np.float16]
    box: NDArray[np.float16]

    @classmethod
    def of(cls, pool: Pool) -> Memory:
        rng, model, n = np.random.default_rng(7), pool.header.model, pool.state.num_blocks
        shape = (model.num_layers, n, BLOCK_SIZE, model.num_kv_heads, model.head_dim)
        box = (model.num_layers, n, model.num_kv_heads, 2, model.head_dim)
        return cls(*(rng.standard_normal(s).astype(np.float16) for s in (shape, shape, box)))

    def read(self, blocks: ev.I32) -> tuple[bytes, bytes, bytes]:
        """What whoever names these blocks reads, bit for bit."""
        return tuple(part[:, blocks].tobytes() for part in (self.key_cache, self.value_cache, self.box))  # type: ignore[return-value]

    def move(self, pool: Pool, event: ev.CompactionPlanned) -> NDArray[Any]:
        """Carry the plan out with the kernel, on a copy of the state's tables; returns those."""
        state = pool.state
        old_to_new = np.arange(state.num_blocks, dtype=np.int32)
        old_to_new[event.src] = event.dst
        arrays = {
            "moves": np.stack([event.src, event.dst], axis=1),
            "num_moves": i32([len(event.src)]),
            "old_to_new": old_to_new,
            "key_cache": self.key_cache,
            "value_cache": self.value_cache,
            "box": self.box,
            "block_table": state.tables.copy(),
            "ref": state.ref.copy(),
            "gen": state.gen.copy(),
            "cached": ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8),
        }
        outputs = NumpyBackend().run(kernel_named("memory_compaction"), arrays, {})
        assert int(outputs["status"][0]) == 0
        return outputs["block_table"]
