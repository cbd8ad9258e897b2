"""The totals of a replay, summed from its events; the same code runs live and over a recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyserve_viz.analysis.compaction import predicted_us
from tinyserve_viz.analysis.fragmentation import fragmentation as fragmentation
from tinyserve_viz.analysis.quality import HotRegionTotals, QualityTotals
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.config import EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.workload import MISS_CAUSES, Workload


class Metrics:
    """Sums over all events so far. `add` is a sink; `as_dict` names everything with its unit or its ratio.

    utilization: `decode` = Σ tokens / Σ slots reserved over every (step, decoding sequence), a shared block counting
    for each of its sequences; `physical` = Σ distinct tokens / Σ slots of used blocks over steps, counting it once;
    `mean` = mean share of the pool that is used; `waste` = 1 − physical.
    """

    def __init__(self, workload: Workload, engine: EngineConfig) -> None:
        self._engine = engine
        self._workload = workload
        self.quality, self.hot_region = QualityTotals(), HotRegionTotals()
        self._class_tokens = np.zeros(len(MISS_CAUSES), dtype=np.int64)
        self._kinds: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.StepEnded: self._step_ended,
            ev.BlocksAllocated: self._blocks_allocated,
            ev.BlocksFreed: self._blocks_freed,
            ev.SequenceAdmitted: self._sequence_admitted,
            ev.BlocksEvicted: self._blocks_evicted,
            ev.SequencesFinished: self._sequences_finished,
            ev.SequencePreempted: self._sequence_preempted,
            ev.BlocksCopied: self._blocks_copied,
            ev.RequestRejected: self._request_rejected,
            ev.RequestCancelled: self._request_cancelled,
            ev.BlocksSelected: self.quality.add,
            ev.BlocksPlaced: self.hot_region.add,
            ev.KernelsTimed: self._kernels_timed,
            ev.CompactionPlanned: self._compaction_planned,
            ev.LevelsAdapted: self._levels_adapted,
        }
        self.steps = self.time_us = 0
        self.prefill_tokens = self.decoded_tokens = 0
        self._decode_tokens = self._decode_slots = self._resident = self._used_slots = 0
        self._sum_used = self._internal_steps = 0
        self.peak_used = 0
        self.allocations = self.frees = self.evictions = self.copies = self.preemptions = 0
        self.completed = self.rejected = self.cancelled = 0
        self.recomputed_tokens = 0
        self.compaction_moves = self.compactions = self.levels_raised = self.levels_lowered = self.windows = 0
        self._verdicts: dict[str, int] = {}
        self._kernel_calls: dict[str, int] = {}
        self._kernel_us: dict[str, list[float]] = {}
        self._kernel_totals: dict[str, float] = {}
        self._kernel_bytes: dict[str, int] = {}
        self._provenance: str | None = None
        self._host: dict[str, list[float]] = {name: [] for name in ("host", "verify", "record", "check")}

    def add(self, _step: int, event: ev.Event) -> None:
        """Take the next event."""
        handler = self._kinds.get(type(event))
        if handler is not None:
            handler(event)

    def _step_ended(self, event: Any) -> None:
        self.steps += 1
        self.time_us = event.time_us
        self.prefill_tokens += event.num_prefill_tokens
        self.decoded_tokens += event.num_decoding
        self._decode_tokens += event.decode_tokens
        self._decode_slots += event.decode_slots
        self._resident += event.resident_tokens
        self._used_slots += event.used_slots
        if event.peak_blocks > self.peak_used:
            self.peak_used = event.peak_blocks

    def _blocks_allocated(self, event: Any) -> None:
        self.allocations += len(event.blocks)

    def _blocks_freed(self, event: Any) -> None:
        self.frees += len(event.blocks)

    def _blocks_copied(self, event: Any) -> None:
        self.copies += len(event.dst)
        self.allocations += len(event.dst)
        self.frees += len(event.src)

    def _sequence_admitted(self, event: Any) -> None:
        self._class_tokens += event.class_tokens

    def _blocks_evicted(self, event: Any) -> None:
        self.evictions += len(event.blocks)

    def _sequences_finished(self, event: Any) -> None:
        self.completed += len(event.requests)

    def _sequence_preempted(self, event: Any) -> None:
        self.preemptions += 1
        self.recomputed_tokens += event.lost_tokens

    def _request_rejected(self, _event: Any) -> None:
        self.rejected += 1

    def _request_cancelled(self, _event: Any) -> None:
        self.cancelled += 1

    def _kernels_timed(self, event: Any) -> None:
        self._provenance = event.provenance
        for name, spent in self._host.items():
            spent.append(getattr(event, f"{name}_us"))
        columns = (event.names.split(), event.calls.tolist(), event.total_us.tolist(), event.bytes.tolist())
        for name, calls, total, moved in zip(*columns, strict=True):
            self._kernel_calls[name] = self._kernel_calls.get(name, 0) + calls
            self._kernel_us.setdefault(name, []).append(total / calls)
            self._kernel_totals[name] = self._kernel_totals.get(name, 0.0) + total
            self._kernel_bytes[name] = self._kernel_bytes.get(name, 0) + moved

    def _compaction_planned(self, event: Any) -> None:
        self.compactions += bool(len(event.src))
        self.compaction_moves += len(event.src)
        self._verdicts[event.verdict] = self._verdicts.get(event.verdict, 0) + 1

    def _levels_adapted(self, event: Any) -> None:
        self.windows += 1
        self.levels_raised += int((event.decisions > 0).sum())
        self.levels_lowered += int((event.decisions < 0).sum())

    def selection(self) -> dict[str, Any] | None:
        """The section `selection`, told key by key in docs/selection.md; None when no kernels ran."""
        if self.quality.policy is None:
            return None
        budget_blocks = self._engine.budget_blocks
        by_share = self.quality.policy not in ("seed", "seed-published")
        prompt_tokens = int(self._class_tokens.sum())
        return {
            "policy": self.quality.policy,
            "ratio": self._engine.ratio_permille / 1000 if by_share and not budget_blocks else None,
            "budget_blocks": budget_blocks or None if by_share else None,
            **self.quality.as_dict(_ratio(int(self._class_tokens[0]), prompt_tokens), self.hot_region.hit_rate),
            "levels": {"raised": self.levels_raised, "lowered": self.levels_lowered, "windows": self.windows},
            "hot_region": self.hot_region.as_dict(),
            "compactions": self.compactions,
        }

    def compaction(self, model: ModelConfig, copy: dict[str, Any] | None) -> dict[str, Any]:
        """The section `compaction`: plans weighed and what became of them, blocks and bytes moved (read and written),
        and the time that a `copy` bandwidth predicts for these bytes."""
        num_bytes = 2 * self.compaction_moves * self._engine.block_size * model.token_bytes
        return {
            "rule": self._engine.compaction,
            "weighed": sum(self._verdicts.values()),
            "verdicts": self._verdicts,
            "moves": self.compaction_moves,
            "bytes": num_bytes,
            "copy_bandwidth": copy,
            "predicted_us": predicted_us(num_bytes, copy["gb_per_s"]) if copy else None,
        }

    def host(self) -> dict[str, Any] | None:
        """The section `host`: µs of wall time a step beside its kernels; None when no kernels ran.

        `step_us` is scheduling, state and launches; `verify_us` repeating kernels and comparing, `record_us` digest and
        recording, `check_us` invariants and metrics, medians all of them.
        """
        if self._provenance is None:
            return None
        spent = {name: np.array(values) for name, values in self._host.items()}
        return {
            "step_us": {"median": float(np.median(spent["host"])), "p95": float(np.percentile(spent["host"], 95))},
            **{f"{name}_us": float(np.median(spent[name])) for name in ("verify", "record", "check")},
        }

    def kernels(self, copy_gb_per_s: float | None = None) -> list[dict[str, Any]]:
        """The section `kernels`: one entry a kernel; `gb_per_s` only where the time is a kernel's own, on a GPU.

        Then `percent_of_copy` is its share of the copy bandwidth, and `coarse` marks times that are too short for the
        events around them.
        """
        found = []
        for name, calls in self._kernel_calls.items():
            total = self._kernel_totals[name]
            measured = self._provenance == "measured"
            median = float(np.median(self._kernel_us[name]))
            rate = self._kernel_bytes[name] / total / 1e3 if measured and total else None
            found.append(
                {
                    "name": name,
                    "calls": calls,
                    "total_us": total,
                    "median_us": median,
                    "bytes": self._kernel_bytes[name],
                    "gb_per_s": rate,
                    "percent_of_copy": 100 * rate / copy_gb_per_s if rate is not None and copy_gb_per_s else None,
                    "coarse": measured and median < ev.COARSE_US,
                    "provenance": self._provenance,
                }
            )
        return found

    def as_dict(self, state: CacheState) -> dict[str, Any]:
        """The sections `requests`, `blocks`, `prefix`, `utilization` and `fragmentation` of the summary."""
        prompt_tokens = int(self._class_tokens.sum())
        hit_tokens = int(self._class_tokens[0])
        slots = self._engine.num_blocks * self._engine.block_size
        physical = _ratio(self._resident, self._used_slots)
        return {
            "requests": {
                "completed": self.completed,
                "preemptions": self.preemptions,
                "rejected": self.rejected,
                "cancelled": self.cancelled,
            },
            "tokens": {
                "prefilled": self.prefill_tokens,
                "decoded": self.decoded_tokens,
                "lost_to_preemption": self.recomputed_tokens,
            },
            "blocks": {
                "num_blocks": self._engine.num_blocks,
                "block_size": self._engine.block_size,
                "peak_used": self.peak_used,
                "allocations": self.allocations,
                "frees": self.frees,
                "copies_on_write": self.copies,
                "evictions": self.evictions,
                "compaction_moves": self.compaction_moves,
                "leaked": leaked_blocks(state),
            },
            "prefix": {
                "prompt_tokens": prompt_tokens,
                "hit_tokens": hit_tokens,
                "token_hit_rate": _ratio(hit_tokens, prompt_tokens),
                "misses": dict(zip(MISS_CAUSES[1:], self._class_tokens[1:].tolist(), strict=True)),
            },
            "utilization": {
                "decode": _ratio(self._decode_tokens, self._decode_slots),
                "physical": physical,
                "mean": _ratio(self._used_slots, self.steps * slots),
                "waste": None if physical is None else 1 - physical,
            },
            "fragmentation": fragmentation(state),
        }


def leaked_blocks(state: CacheState) -> int:
    """Referenced blocks that no live sequence holds (null blocks aside); for baselines, slots of finished sequences."""
    live = np.flatnonzero(state.slot >= 0)
    held = np.unique(np.concatenate([state.table(seq) for seq in live.tolist()])) if len(live) else ev.EMPTY
    stray = int((state.reserved_len[state.slot < 0] > 0).sum())
    return state.num_used - state.null_blocks - len(held) + stray


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
