"""The kernels of a step: they keep a cache of their own beside the state, and what they choose is emitted.

Memory kernels (allocation, release, fork, copy) repeat on the backend's tables what the events say, and both must
agree after every step. Selection, levels and compaction are decided by their kernels; the events carry the results.

Every row of the state's block tables is a row of the batch: rows that do not decode have length 0, which every kernel
takes, so the tables need not be gathered. Order (kernel-contracts §17): write K/V and boxes → block scores → query
analysis → selection → balancing → attention → levels → compaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.check import Violation
from tinyserve_viz.core.config import ContentConfig, EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.content import Content
from tinyserve_viz.engine.useful_bytes import attention_bytes, copy_bytes, scoring_bytes, write_bytes
from tinyserve_viz.kernels.backend import Backend, kernel_named
from tinyserve_viz.kernels.definition import KernelDef, Status
from tinyserve_viz.kernels.defs.cache_selection import paper_budget
from tinyserve_viz.kernels.defs.intelligent_memory_compaction import METRICS, VERDICTS
from tinyserve_viz.kernels.parameters import default

ATTENTION = ("exact", "flash", "query-aware", "query-aware-fused", "all")
MODES = ("all", "decisions")
NUM_WORKERS = 32  # of the work list; the references read the list, so its cuts are exercised without a GPU
PER_STEP = ("I6", "I8")


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What runs: `mode` `decisions` leaves attention out; `attention` names its form; `verify` repeats on the host."""

    mode: str = "all"
    attention: str = "all"
    verify: str = "every"


class KernelPipeline:
    """Kernels of one replay on `backend`. The engine calls `after` for every event and `step` once a step."""

    def __init__(
        self,
        state: CacheState,
        engine: EngineConfig,
        model: ModelConfig,
        content: ContentConfig,
        backend: Backend,
        config: PipelineConfig,
    ) -> None:
        self._state, self._engine, self._model, self._config, self._backend = state, engine, model, config, backend
        self.name = backend.name  # with `supports` and `run` the pipeline stands in for it, so that calls are timed
        self.content = Content(content, model, state.workload, engine.block_size)
        n, bs = engine.num_blocks, engine.block_size
        pool = (model.num_layers, n, bs, model.num_kv_heads, model.head_dim)
        self.key_cache = np.zeros(pool, dtype=np.float16)
        self.value_cache = np.zeros(pool, dtype=np.float16)
        self.box = np.zeros((model.num_layers, n, model.num_kv_heads, 2, model.head_dim), dtype=np.float16)
        self.ref, self.gen = state.ref.copy(), np.zeros(n, dtype=np.int32)
        self.level, self.freq, self.hits, self.lookups = (np.zeros(n, dtype=np.int32) for _ in range(4))
        self.cached = np.zeros(n, dtype=np.uint8)
        self.table = np.full_like(state.tables, -1)
        self.history = np.zeros_like(state.tables)
        self._scale = np.float32(1) / np.sqrt(np.float32(model.head_dim))
        self._window, self._cooldown = default("adaptive.window"), 0
        self._timed: dict[str, list[float]] = {}
        self.violations: list[Violation] = []
        self.num_checked = 0
        self._after: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SequenceAdmitted: self._admitted,
            ev.BlocksAllocated: self._allocated,
            ev.BlocksFreed: self._freed,
            ev.BlocksEvicted: self._evicted,
            ev.BlocksCopied: self._copied,
            ev.SequencesForked: self._forked,
            ev.TokensWritten: self._written,
            ev.CompactionPlanned: self._compacted,
            ev.SequencesFinished: self._finished,
        }

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, name: str, useful_bytes: int, arrays: Mapping[str, Any], **scalars: Any) -> dict[str, NDArray[Any]]:
        """Run a kernel, time it, and report a status that it should not have."""
        started = time.perf_counter()
        outputs = self._backend.run(kernel_named(name), arrays, scalars)
        spent = (time.perf_counter() - started) * 1e6
        entry = self._timed.setdefault(name, [0, 0.0, 0])
        entry[0] += 1
        entry[1] += spent
        entry[2] += useful_bytes
        status = Status(int(outputs["status"][0]))
        if status:
            self._report("kernel", f"{name} reports {status.name}")
        return outputs

    def supports(self, kernel: KernelDef) -> bool:
        """Whether the backend has the kernel."""
        return self._backend.supports(kernel)

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run a kernel for somebody else and count it as one of this step."""
        return self._run(kernel.name, sum(array.nbytes for array in arrays.values()), arrays, **scalars)

    def _report(self, invariant: str, message: str) -> None:
        self.violations.append(Violation(self._state.step, invariant, message))

    def _expect(self, holds: bool, invariant: str, message: str) -> None:
        if not holds:
            self._report(invariant, message)

    # ── memory: the backend repeats what the events say ─────────────────────────────────────────────────────────

    def after(self, event: ev.Event) -> None:
        """Take an event that was just applied to the state."""
        handler = self._after.get(type(event))
        if handler is not None:
            handler(event)

    def _rows(self) -> None:
        """As many rows as the state's tables have."""
        missing = len(self._state.tables) - len(self.table)
        if missing > 0:
            width = self.table.shape[1]
            self.table = np.concatenate([self.table, np.full((missing, width), -1, dtype=np.int32)])
            self.history = np.concatenate([self.history, np.zeros((missing, width), dtype=np.int32)])

    def _admitted(self, event: ev.SequenceAdmitted) -> None:
        self._rows()
        hits = event.hits
        self.table[event.slot, : len(hits)] = hits
        self.cached[hits] = 0
        self.ref[hits] += 1
        self.hits[hits] += 1
        self.lookups[hits] += 1
        self.lookups[event.orphans] += 1

    def _allocated(self, event: ev.BlocksAllocated) -> None:
        slots = np.repeat(self._state.slot[event.seqs], event.counts)
        first = np.repeat(event.first_logical - (np.cumsum(event.counts) - event.counts), event.counts)
        logical = first + np.arange(len(event.blocks))
        outputs = self._run(
            "block_allocation",
            24 * len(event.blocks),
            {
                "reqs": np.stack([slots, logical], axis=1).astype(np.int32),
                "free_order": np.ascontiguousarray(event.blocks),
                "block_table": self.table,
                "ref": self.ref,
                "gen": self.gen,
                "freq": self.freq,
                "level": self.level,
                "hits": self.hits,
                "lookups": self.lookups,
                "history": self.history,
                "box": self.box,
            },
            mode="scan",
        )
        self._expect(np.array_equal(outputs["allocated"], event.blocks), "kernel", "block_allocation gave other blocks")

    def _freed(self, event: ev.BlocksFreed) -> None:
        slots = np.repeat(self._state.slot[event.seqs], event.counts)
        logical = np.concatenate([np.arange(count)[::-1] for count in event.counts.tolist()])
        outputs = self._run(
            "block_deallocation",
            16 * len(event.blocks),
            {
                "reqs": np.stack([slots, logical], axis=1).astype(np.int32),
                "block_table": self.table,
                "ref": self.ref,
            },
        )
        self._expect(np.array_equal(outputs["released"], event.blocks), "kernel", "block_deallocation freed others")
        freed = outputs["freed"][: int(outputs["num_freed"][0])]
        self.cached[freed] = self._state.hash[freed] >= 0
        self.history[self._state.slot[event.seqs]] = 0

    def _evicted(self, event: ev.BlocksEvicted) -> None:
        self.cached[event.blocks] = 0

    def _forked(self, event: ev.SequencesForked) -> None:
        self._rows()
        slot = self._state.slot
        held = int(self._state.num_held[event.children[0]])
        for child in event.children.tolist():
            forks = np.array([[slot[event.parent], slot[child], held]], dtype=np.int32)
            arrays = {"forks": forks, "block_table": self.table, "ref": self.ref, "history": self.history}
            self._run("block_fork", 16 * held, arrays)

    def _copied(self, event: ev.BlocksCopied) -> None:
        slots = self._state.slot[event.seqs]
        before = [self._gather(int(slot), self.table) for slot in slots]
        self.ref[event.dst] = 1
        self.gen[event.dst] += 1
        for counter in (self.level, self.freq, self.hits, self.lookups):
            counter[event.dst] = 0
        self._run(
            "fused_block_copy",
            copy_bytes(self._model, int(event.tokens.sum()), self._model.num_layers),
            {
                "ops": np.stack([event.src, event.dst, event.tokens], axis=1),
                "ref": self.ref,
                "key_cache": self.key_cache,
                "value_cache": self.value_cache,
                "box": self.box,
            },
        )
        self.table[slots, event.logical] = event.dst
        np.subtract.at(self.ref, event.src, 1)
        self.cached[event.src] = (self.ref[event.src] == 0) & (self._state.hash[event.src] >= 0)
        lengths = self._state.ctx[event.seqs].tolist()
        for slot, length, old in zip(slots.tolist(), lengths, before, strict=True):
            now = self._gather(slot, self.table)
            same = all(np.array_equal(a[:, :length], b[:, :length]) for a, b in zip(old, now, strict=True))
            self._expect(same, "I8", "copy-on-write changed what a sequence reads")

    def _gather(self, slot: int, table: ev.I32) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """K and V that row `slot` reads, [layers][slots of its blocks][...]."""
        blocks = table[slot]
        blocks = blocks[blocks >= 0]
        flat = (self._model.num_layers, -1, self._model.num_kv_heads, self._model.head_dim)
        return self.key_cache[:, blocks].reshape(flat), self.value_cache[:, blocks].reshape(flat)

    def _finished(self, event: ev.SequencesFinished) -> None:
        for seq in event.seqs.tolist():
            if int(self._state.workload.parent[self._state.workload.request_of_seq[seq]]) < 0:
                self.content.forget(seq)

    # ── the step ────────────────────────────────────────────────────────────────────────────────────────────────

    def _written(self, event: ev.TokensWritten) -> None:
        """K and V of the step's tokens go into the cache, and the boxes of their blocks widen."""
        state = self._state
        rows = len(self.table)
        seqs = np.concatenate([event.decode_seqs, event.prefill_seqs])
        counts = np.concatenate([np.ones(len(event.decode_seqs), dtype=np.int32), event.prefill_counts])
        slots, ends = state.slot[seqs], state.ctx[seqs]
        token_start = np.zeros(rows, dtype=np.int64)
        start_pos, seq_lens = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32)
        token_start[slots] = np.cumsum(counts) - counts
        start_pos[slots], seq_lens[slots] = ends - counts, ends
        num_blocks = len(state.last_written)
        for layer in range(self._model.num_layers):
            parts = [
                self.content.keys_and_values(seq, end - count, end, layer)
                for seq, count, end in zip(seqs.tolist(), counts.tolist(), ends.tolist(), strict=True)
            ]
            self._run(
                "fused_reshape_and_block_write",
                write_bytes(self._model, int(counts.sum()), num_blocks),
                {
                    "kv": np.concatenate(parts),
                    "token_start": token_start,
                    "start_pos": start_pos,
                    "seq_lens": seq_lens,
                    "block_table": self.table,
                    "ref": self.ref,
                    "key_cache": self.key_cache[layer],
                    "value_cache": self.value_cache[layer],
                    "box": self.box[layer],
                },
            )
        self._check_boxes(state.last_written)

    def _check_boxes(self, blocks: ev.I32) -> None:
        """I6: the box of a written block contains every valid key of it."""
        valid = np.arange(self._engine.block_size) < self._state.fill[blocks][:, None]
        keys = self.key_cache[:, blocks].astype(np.float32)
        inside = valid[None, :, :, None, None]
        low = np.where(inside, keys, np.inf).min(axis=2)
        high = np.where(inside, keys, -np.inf).max(axis=2)
        box = self.box[:, blocks]
        self._expect(
            bool((box[:, :, :, 0] <= low).all() and (box[:, :, :, 1] >= high).all()),
            "I6",
            "a key lies outside its block's box",
        )

    def step(self, decoding: ev.I32) -> list[ev.Event]:
        """Run what follows the write for the sequences that decode, layer by layer; returns what was chosen."""
        events: list[ev.Event] = []
        if len(decoding):
            events += [self._layer(decoding, layer) for layer in range(self._model.num_layers)]
        return events

    def _layer(self, decoding: ev.I32, layer: int) -> ev.BlocksSelected:
        state, model, bs = self._state, self._model, self._engine.block_size
        rows, width = self.table.shape
        slots, lengths = state.slot[decoding], state.ctx[decoding]
        seq_lens = np.zeros(rows, dtype=np.int32)
        seq_lens[slots] = lengths
        num_seq_blocks = -(-seq_lens // bs)
        query = np.zeros((rows, model.num_heads, model.head_dim), dtype=np.float16)
        query[slots] = self.content.queries(decoding.tolist(), (lengths - 1).tolist(), layer)
        total_blocks, num_rows = int(num_seq_blocks.sum()), len(decoding)

        score = np.empty((rows, model.num_kv_heads, width), dtype=np.float32)
        self._run(
            "block_scoring",
            scoring_bytes(model, total_blocks, num_rows),
            {
                "query": query,
                "box": self.box[layer],
                "block_table": self.table,
                "num_seq_blocks": num_seq_blocks,
                "block_score": score,
            },
            reduction="max",
        )
        analysis = self._run(
            "query_analysis",
            num_rows * (model.num_heads * model.head_dim * 2 + 8),
            {"query": query, "block_score": score, "num_scored": num_seq_blocks},
            mode="entropy",
            scale=float(self._scale),
        )
        selection = self._select(analysis, score, num_seq_blocks, total_blocks)
        selected, count = selection["selected"], selection["count"]
        retained, errors, read, held = self._attend(layer, query, seq_lens, selected, count, slots)
        return ev.BlocksSelected(
            layer=layer,
            policy=self._engine.selection,
            seqs=decoding,
            num_heads=count.shape[1],
            counts=np.ascontiguousarray(count[slots].ravel()),
            selected=selected[slots][selected[slots] >= 0],
            requirements=analysis["requirement"][slots],
            priorities=selection["priority"][slots],
            complexity=analysis["complexity"][slots],
            row_scores=selection["row_score"][slots],
            retained=retained,
            output_errors=errors,
            tokens_read=read,
            tokens_held=held,
        )

    def _select(
        self,
        analysis: Mapping[str, NDArray[Any]],
        score: NDArray[np.float32],
        num_seq_blocks: ev.I32,
        total_blocks: int,
    ) -> dict[str, NDArray[Any]]:
        rows, heads = score.shape[:2]
        sinks, recent = default("selection.sinks"), default("selection.recent")
        longest = np.array([num_seq_blocks.max()], dtype=np.int64)
        if self._engine.selection == "paper":
            most = int(paper_budget(longest, self._engine.ratio_permille, sinks, recent)[0])
        else:
            most = min(int(longest[0]), sinks + recent + 4)
        return self._run(
            "cache_selection",
            total_blocks * (heads * 4 + 8) + rows * heads * most * 4,
            {
                "complexity": analysis["complexity"],
                "requirement": analysis["requirement"],
                "block_score": score,
                "num_seq_blocks": num_seq_blocks,
                "history": self.history,
                "selected": np.empty((rows, heads, most), dtype=np.int32),
                "count": np.empty((rows, heads), dtype=np.int32),
                "block_table": self.table,
                "freq": self.freq,
            },
            mode=self._engine.selection,
            ratio_permille=self._engine.ratio_permille,
        )

    def _attend(
        self,
        layer: int,
        query: NDArray[np.float16],
        seq_lens: ev.I32,
        selected: ev.I32,
        count: ev.I32,
        slots: ev.I32,
    ) -> tuple[ev.F32, ev.F32, int, int]:
        """(retained mass, output errors, tokens read, tokens held); the first two need full and selected attention."""
        model, bs = self._model, self._engine.block_size
        held = int(seq_lens.sum()) * model.num_kv_heads
        last = -(-seq_lens // bs) * bs - seq_lens  # slots missing in the last block, which every choice keeps
        read = int((count * bs).sum()) - int((last[:, None] * (count > 0)).sum())
        nothing = np.zeros(0, dtype=np.float32)
        balance = self._balance(seq_lens, None)
        if self._config.mode == "decisions":
            return nothing, nothing, read, held
        chosen = self._config.attention
        common = {
            "query": query,
            "key_cache": self.key_cache[layer],
            "value_cache": self.value_cache[layer],
            "block_table": self.table,
            "seq_lens": seq_lens,
        }
        scale = float(self._scale)
        full = part = None
        num_rows = len(slots)
        if chosen in ("exact", "all"):
            full = self._run("paged_attention", attention_bytes(model, held, num_rows), common, scale=scale)
        if chosen in ("flash", "query-aware", "query-aware-fused", "all"):
            # The dense form runs beside the selected one: without it nobody could say what the selection lost.
            full = self._run(
                "flash_paged_attention", attention_bytes(model, held, num_rows), {**common, **balance}, scale=scale
            )
        if chosen in ("query-aware", "all"):
            kept = self._balance(seq_lens, np.ascontiguousarray(count[:, 0]))
            part = self._run(
                "query_aware_paged_attention",
                attention_bytes(model, read, num_rows),
                {**common, **kept, "selected": selected, "count": count},
                scale=scale,
            )
        if chosen in ("query-aware-fused", "all") and self._engine.selection == "paper":
            part = self._fused(layer, common, selected, count, read, num_rows)
        if full is None or part is None:
            return nothing, nothing, read, held
        mass = np.exp(part["lse"][slots].astype(np.float64) - full["lse"][slots])
        dense, sparse = full["output"][slots].astype(np.float64), part["output"][slots].astype(np.float64)
        error = np.linalg.norm(sparse - dense, axis=2) / np.maximum(np.linalg.norm(dense, axis=2), 1e-12)
        return mass.ravel().astype(np.float32), error.ravel().astype(np.float32), read, held

    def _fused(
        self, layer: int, common: dict[str, Any], selected: ev.I32, count: ev.I32, read: int, num_rows: int
    ) -> dict[str, NDArray[Any]]:
        """Scoring, choice and attention in one launch; its choice must be that of the separate kernels."""
        blocks = int((-(-common["seq_lens"] // self._engine.block_size)).sum())
        outputs = self._run(
            "query_aware_paged_attention",
            attention_bytes(self._model, read, num_rows) + scoring_bytes(self._model, blocks, 0),
            {
                **common,
                "box": self.box[layer],
                "selected": np.empty_like(selected),
                "count": np.empty_like(count),
            },
            scale=float(self._scale),
            ratio_permille=self._engine.ratio_permille,
        )
        same = np.array_equal(outputs["selected"], selected) and np.array_equal(outputs["count"], count)
        self._expect(same, "kernel", "the fused form chose other blocks than the separate kernels")
        return outputs

    def _balance(self, seq_lens: ev.I32, kept: ev.I32 | None) -> dict[str, NDArray[Any]]:
        """The work list over all blocks, or over the kept ones."""
        arrays: dict[str, Any] = {"seq_lens": seq_lens}
        if kept is not None:
            arrays["kept"] = kept
        outputs = self._run(
            "dynamic_workload_balancing",
            8 * len(seq_lens) + 16 * NUM_WORKERS,
            arrays,
            num_workers=NUM_WORKERS,
            max_segments=NUM_WORKERS + len(seq_lens),
            block_size=self._engine.block_size,
            mode="even-blocks",
        )
        return {name: outputs[name] for name in ("segments", "segment_range", "seq_segments")}

    # ── levels and compaction ───────────────────────────────────────────────────────────────────────────────────

    def adapt(self) -> ev.LevelsAdapted | None:
        """At the end of a window: new protection levels."""
        if (self._state.step + 1) % self._window:
            return None
        before = self.level.copy()
        outputs = self._run(
            "adaptive_cache_management",
            21 * len(self.level),
            {
                "hits": self.hits,
                "lookups": self.lookups,
                "ref": self.ref,
                "cached": self.cached,
                "freq": self.freq,
                "level": self.level,
            },
        )
        self.hits[:] = 0
        self.lookups[:] = 0
        decision = outputs["decision"]
        named = np.flatnonzero((decision != 0) | (self.level != before)).astype(np.int32)
        return ev.LevelsAdapted(self._window, named, self.level[named], decision[named], default("adaptive.decay"))

    def plan_compaction(self) -> ev.CompactionPlanned | None:
        """When fragmentation passes its trigger and the last plan is long enough ago: which blocks move where."""
        live = np.flatnonzero(self.ref > 0)
        self._cooldown -= 1
        triggered = len(live) and (int(live[-1]) + 1) * 1000 > default("compaction.trigger") * len(live)
        if not triggered or self._cooldown > 0:
            return None
        self._cooldown = default("compaction.cooldown")
        outputs = self._run(
            "intelligent_memory_compaction",
            21 * len(self.ref),
            {"ref": self.ref, "cached": self.cached, "uses": self.freq, "level": self.level},
            max_moves=self._engine.num_blocks,
        )
        found = dict(zip(METRICS, outputs["metrics"].tolist(), strict=True))
        moves = outputs["moves"][: int(outputs["num_moves"][0])]
        return ev.CompactionPlanned(
            verdict=VERDICTS[found["verdict"]],
            src=np.ascontiguousarray(moves[:, 0]),
            dst=np.ascontiguousarray(moves[:, 1]),
            live=found["live"],
            movable=found["movable"],
            pinned=found["pinned"],
            planned=found["planned"],
            top_before=found["max_live_before"],
            top_after=found["max_live_after"],
            frag_permille_before=found["frag_permille_before"],
            frag_permille_after=found["frag_permille_after"],
        )

    def _compacted(self, event: ev.CompactionPlanned) -> None:
        if not len(event.src):
            return
        slots = np.flatnonzero(self._state.slot_used).tolist()
        before = [self._gather(slot, self.table) for slot in slots]
        old_to_new = np.arange(self._engine.num_blocks, dtype=np.int32)
        old_to_new[event.src] = event.dst
        block_tokens = len(event.src) * self._engine.block_size
        self._run(
            "memory_compaction",
            copy_bytes(self._model, block_tokens, self._model.num_layers),
            {
                "moves": np.stack([event.src, event.dst], axis=1),
                "num_moves": np.array([len(event.src)], dtype=np.int32),
                "old_to_new": old_to_new,
                "key_cache": self.key_cache,
                "value_cache": self.value_cache,
                "box": self.box,
                "block_table": self.table,
                "ref": self.ref,
                "gen": self.gen,
                "cached": self.cached,
                "level": self.level,
                "freq": self.freq,
                "hits": self.hits,
                "lookups": self.lookups,
            },
        )
        for slot, old in zip(slots, before, strict=True):
            now = self._gather(slot, self.table)
            same = all(np.array_equal(a, b) for a, b in zip(old, now, strict=True))
            self._expect(same, "I8", "compaction changed what a sequence reads")

    # ── end of the step ─────────────────────────────────────────────────────────────────────────────────────────

    def close_step(self) -> ev.KernelsTimed:
        """The times of this step; compares the backend's tables and counts with the state's."""
        state = self._state
        self.num_checked += len(PER_STEP)
        if self._config.verify == "every":
            pairs = (
                ("ref", self.ref, state.ref),
                ("gen", self.gen, state.gen),
                ("level", self.level, state.level),
                ("freq", self.freq, state.freq),
                ("window_hits", self.hits, state.window_hits),
                ("block_table", self.table, state.tables[: len(self.table)]),
                ("history", self.history, state.history[: len(self.history)]),
                ("cached", self.cached, ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8)),
            )
            for name, ours, theirs in pairs:
                self._expect(np.array_equal(ours, theirs), "kernel", f"{name} of the backend is not that of the state")
        names = list(self._timed)
        calls, spent, moved = zip(*self._timed.values(), strict=True) if names else ((), (), ())
        self._timed = {}
        return ev.KernelsTimed(
            names=" ".join(names),
            calls=np.array(calls, dtype=np.int32),
            total_us=np.array(spent, dtype=np.float64),
            bytes=np.array(moved, dtype=np.int64),
            provenance="reference" if self._backend.name == "numpy" else "measured",
        )
