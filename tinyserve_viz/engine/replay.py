"""The engine: continuous batching with chunked prefill over a paged (or reserving) allocator, one step at a time.

Order of a step: arrivals and cancellations → running sequences → admission → allocation → copy-on-write → write →
prefix index → forks → frees → invariants. Everything is decided here or in `memory`, put into events, and applied.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev
from tinyserve_viz.core import state as st
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.compaction import RULES as COMPACTION_RULES
from tinyserve_viz.core.config import EngineConfig
from tinyserve_viz.core.rules import EngineRules
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.workload import ORPHANED, TAIL, Workload
from tinyserve_viz.engine.compaction import plan_on_state
from tinyserve_viz.engine.decode_set import DecodeSet
from tinyserve_viz.engine.pipeline import KernelPipeline
from tinyserve_viz.engine.seed_allocation import SeedBlockManager
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.memory.block_manager import BlockManager, explain_prompt, tokens_per_class
from tinyserve_viz.memory.policies.eviction import belady
from tinyserve_viz.memory.policies.eviction.victims import victims
from tinyserve_viz.memory.reserving import ReservingManager

_ONES = np.ones(1024, dtype=np.int32)

Sink = Callable[[int, ev.Event], None]
"""Called with the step and the event after it was applied."""


@dataclass(slots=True)
class Plan:
    """What this step will write: `decode` tells whether the decode set takes part, `prefill` tokens per sequence."""

    budget: int
    decoding: ev.I32 = field(default_factory=lambda: ev.EMPTY)
    prefill: dict[int, int] = field(default_factory=dict)
    pending: list[tuple[int, int, int]] = field(default_factory=list)  # (seq, first logical block, blocks) to allocate
    writers: list[int] = field(default_factory=list)  # sequences that may write into a shared block
    num_pending: int = 0  # blocks that `pending` and `writers` will take
    preempted: bool = False


class Engine:
    """Replays a workload. Call `step()` until it returns False; every event went through the sink by then.

    The queues here (waiting, running, children of a parent) are an index over the state, kept because scanning all
    sequences every step would cost more than the step; they hold nothing that events do not tell.
    """

    kernels: KernelPipeline | None = None
    """Set before the first step to run the kernels beside the allocator."""

    def __init__(
        self, workload: Workload, config: EngineConfig, rules: EngineRules, sink: Sink, one_by_one: bool = False
    ) -> None:
        self.workload, self.config, self.rules, self.sink = workload, config, rules, sink
        self.one_by_one = one_by_one
        self.state = CacheState(
            workload, config.num_blocks, config.block_size, int(rules.null_block), rules.free_order == "queue"
        )
        self.manager: BlockManager = (
            SeedBlockManager(config.eviction, config.prefix_caching, rules, hot_blocks=config.hot_blocks)
            if config.eviction == "seed"
            else BlockManager(
                config.eviction,
                config.prefix_caching,
                rules,
                belady.policy_for(workload) if config.eviction == belady.NAME else None,
            )
        )
        self.reserving = (
            None if config.allocator == "paged" else ReservingManager(config.allocator, config.max_model_len)
        )
        request = workload.request_of_seq
        stored_outputs = workload.output_len - (0 if rules.store_last_token else 1)
        self.total: ev.I32 = (workload.prompt_len + np.maximum(stored_outputs, 0))[request]
        self.reserve = config.num_blocks * config.watermark_permille // 1000 if rules.watermark else 0
        self.capacity = config.num_blocks - int(rules.null_block)
        self.compaction = COMPACTION_RULES.get(config.compaction)

        self.next_arrival = 0
        self.waiting: deque[int] = deque()
        self.forked: deque[int] = deque()  # children that hold blocks and wait for a seat
        self.done_at_fork: list[int] = []  # children that had nothing left to write when they were forked
        self.order: list[int] = []  # running sequences in order of admission
        self.rank = np.zeros(workload.num_seqs, dtype=np.int64)  # admission order of running sequences
        self.next_rank = 0
        self.decoding: list[int] = []
        self.prefilling: list[int] = []
        self.decode_set: DecodeSet | None = None
        self.seats = 0  # running sequences and the samples that their prefill will fork
        self.is_child = np.zeros(workload.num_seqs, dtype=np.bool_)  # runs on what it shared with another request
        self.came_by_fork = np.zeros(workload.num_seqs, dtype=np.bool_)  # its prompt was never looked up and counted
        self.whole_at_fork: list[int] = []  # forked since the last step ended, with nothing of the prompt left
        self.unborn = np.zeros(workload.num_seqs, dtype=np.int32)  # samples still to be forked from this sequence
        self.unfinished = workload.num_samples.copy()  # per request
        self.children: dict[int, list[int]] = {}  # parent request → requests that wait to fork from it
        self.offspring: dict[int, list[int]] = {}  # parent request → all its children
        for child in np.flatnonzero(workload.parent >= 0).tolist():
            self.offspring.setdefault(int(workload.parent[child]), []).append(child)
        self.deadlines: list[tuple[int, int]] = []
        self.alive = 0
        self.by_priority = bool(workload.priority.any())

    # ── the step ────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> bool:
        """Run one engine step; False when no request is left (nothing was emitted then)."""
        self._arrivals()
        if not self.order and not self.waiting and not self.forked:
            return self._jump()
        plan = Plan(self.config.max_batch_tokens)
        self._seat_forked()
        self._serve_running(plan)
        if self.rules.admit_after_preemption or not plan.preempted:
            self._admit(plan)
        self._flush(plan)
        self._write(plan)
        return True

    def emit(self, event: ev.Event) -> None:
        """Apply an event and hand it to the sink."""
        step = self.state.step
        apply(self.state, event)
        if self.kernels is not None:
            self.kernels.after(event)
        self.sink(step, event)

    # ── arrivals, cancellation, time ────────────────────────────────────────────────────────────────────────────

    def _arrivals(self) -> None:
        w, now = self.workload, self.state.time_us
        first = self.next_arrival
        while self.next_arrival < w.num_requests and w.arrival_us[self.next_arrival] <= now:
            self.next_arrival += 1
            if self.one_by_one:
                break
        if self.one_by_one and self.alive:
            self.next_arrival = first
        if self.next_arrival > first:
            requests = np.arange(first, self.next_arrival, dtype=np.int32)
            self.emit(ev.RequestsArrived(requests))
            for request in requests.tolist():
                self._enqueue(request)
        while self.deadlines and self.deadlines[0][0] <= now:
            self._cancel(heapq.heappop(self.deadlines)[1], "deadline")

    def _jump(self) -> bool:
        """Nothing runs or waits: go to the next arrival; False when there is none."""
        w = self.workload
        if self.next_arrival >= w.num_requests:
            return False
        arrival = int(w.arrival_us[self.next_arrival])
        if arrival > self.state.time_us:
            self.emit(ev.ClockJumped(arrival))
        return True

    def _enqueue(self, request: int) -> None:
        """A request has arrived: reject it, let it wait for its parent, or let it wait for admission."""
        w = self.workload
        if w.cancel_at_us[request] >= 0:
            heapq.heappush(self.deadlines, (int(w.cancel_at_us[request]), request))
        self.alive += 1
        impossible = self._impossible(request)
        parent = int(w.parent[request])
        if parent >= 0:
            first = int(w.first_seq[parent])
            fates = self.state.status[first : first + int(w.num_samples[parent])]
            if fates[0] == st.REJECTED:
                impossible = ("parent_rejected", 1, 0)
            elif (fates == st.CANCELLED).any():  # some of its samples may have ended before
                self._cancel(request, "parent")
                return
        if impossible is not None:
            self._reject(request, *impossible)
            return
        seq = int(w.first_seq[request])
        if parent >= 0 and self.reserving is None and self.state.status[w.first_seq[parent]] != st.FINISHED:
            self.children.setdefault(parent, []).append(request)
            self._fork_children(parent)
            return
        self._wait(seq)

    def _wait(self, seq: int) -> None:
        """Behind those with the same or a lower priority number and all that were preempted; else at the end."""
        place = len(self.waiting)
        if self.by_priority:
            priority, status = self.workload.priority[self.workload.request_of_seq], self.state.status
            while place:
                ahead = self.waiting[place - 1]
                if status[ahead] == st.PREEMPTED or (priority[ahead], ahead) < (priority[seq], seq):
                    break
                place -= 1
        self.waiting.insert(place, seq)

    def _impossible(self, request: int) -> tuple[str, int, int] | None:
        """The rule by which this request can never run, what it needs of it and what there is."""
        w, config = self.workload, self.config
        if w.num_samples[request] > config.max_num_seqs:
            return "max_num_seqs", int(w.num_samples[request]), config.max_num_seqs
        total = int(self.total[w.first_seq[request]])
        if self.reserving is None:
            needed = -(-total // config.block_size)
            return ("num_blocks", needed, self.capacity) if needed > self.capacity else None
        if config.allocator == "contiguous" and total > config.max_model_len:
            return "max_model_len", total, config.max_model_len
        needed = self.reserving.slots_for(int(w.prompt_len[request]), int(w.output_len[request]))
        needed *= int(w.num_samples[request])
        slots = config.num_blocks * config.block_size
        return ("token_slots", needed, slots) if needed > slots else None

    def _reject(self, request: int, rule: str, needed: int, available: int) -> None:
        self.alive -= 1
        self.emit(ev.RequestRejected(request, rule, needed, available))
        for child in self.children.pop(request, []):
            self._reject(child, "parent_rejected", 1, 0)

    def _cancel(self, request: int, rule: str) -> None:
        """Withdraw a request that has arrived and is not over, and the children that it was to have."""
        w, state = self.workload, self.state
        first = int(w.first_seq[request])
        seqs = np.arange(first, first + int(w.num_samples[request]), dtype=np.int32)
        if state.status[first] in (st.REJECTED, st.CANCELLED) or not self.unfinished[request]:
            return
        alive = seqs[state.status[seqs] != st.FINISHED]
        self._give_back(alive)
        for seq in alive.tolist():
            self._leave(seq)
        parent = int(w.parent[request])
        if request in self.children.get(parent, []):
            self.children[parent].remove(request)
        self.alive -= 1
        self.unfinished[request] = 0
        self.emit(ev.RequestCancelled(request, rule, alive))
        self.children.pop(request, None)
        for child in self.offspring.get(request, []):
            if child < self.next_arrival:
                self._cancel(child, "parent")

    def _leave(self, seq: int) -> None:
        """Take a sequence out of every queue that it may be in."""
        if seq in self.order:
            self._unseat(seq)
        for queue in (self.waiting, self.forked, self.done_at_fork):
            if seq in queue:
                queue.remove(seq)

    # ── running sequences ───────────────────────────────────────────────────────────────────────────────────────

    def _seat(self, seq: int) -> None:
        self.rank[seq] = self.next_rank
        self.next_rank += 1
        self.order.append(seq)
        if self.state.ctx[seq] >= self.state.prefill_target[seq]:
            self._to_decoding(seq)
        else:
            self.prefilling.append(seq)

    def _unseat(self, seq: int) -> None:
        self.order.remove(seq)
        self.seats -= 1 + int(self.unborn[seq])
        if seq in self.prefilling:
            self.prefilling.remove(seq)
        else:
            self.decoding.remove(seq)
            self.decode_set = None

    def _to_decoding(self, seq: int) -> None:
        insort(self.decoding, seq, key=lambda s: int(self.rank[s]))
        self.decode_set = None

    def _current_decode_set(self) -> DecodeSet:
        if self.decode_set is None:
            self.decode_set = DecodeSet(self.state, np.array(self.decoding, dtype=np.int32), self.total)
        return self.decode_set

    def _serve_running(self, plan: Plan) -> None:
        """Tokens for running sequences: the whole batch at once when its blocks are there, else one by one."""
        if not self.order:
            return
        if self.rules.running_order != "decode_first" and self.prefilling:
            admission = self.rules.running_order == "admission"
            served = self.order[:] if admission else [*self.prefilling, *self.decoding]
            if not self._serve_at_once(plan, np.array(served, dtype=np.int32)):
                self._serve_in_turn(plan, served)
            return
        if not self._serve_decode_set(plan):
            self._serve_in_turn(plan, [*self.decoding, *self.prefilling])
        elif self.prefilling:
            self._serve_in_turn(plan, self.prefilling[:])

    def _serve_decode_set(self, plan: Plan) -> bool:
        """One token for every decoding sequence, if budget and blocks suffice for all of them."""
        if not self.decoding:
            return True
        if len(self.decoding) > plan.budget:
            return False
        decode_set = self._current_decode_set()
        if self.reserving is None:
            state = self.state
            crossing = decode_set.crossing()
            writers = self._shared_writers(decode_set.seqs)
            if len(crossing) + self._num_copies(writers) > state.num_available:
                return False
            if len(crossing):
                ones = _ONES[: len(crossing)] if len(crossing) <= len(_ONES) else np.ones(len(crossing), dtype=np.int32)
                if len(writers) or self.prefilling or (self.waiting and self.rules.allocate == "once_per_step"):
                    plan.pending.extend(
                        zip(crossing.tolist(), state.num_held[crossing].tolist(), ones.tolist(), strict=True)
                    )
                    plan.num_pending += len(crossing)
                else:
                    for event in self.manager.allocate(state, crossing, state.num_held[crossing], ones):
                        self.emit(event)
            if len(writers):
                plan.writers.extend(writers.tolist())
                plan.num_pending += self._num_copies(writers)
            if self.rules.allocate == "in_turn":
                self._flush(plan)
            if self.rules.cache_at == "scheduled":
                self._index_scheduled(decode_set.crossing(1))
        plan.decoding = decode_set.seqs
        plan.budget -= len(decode_set.seqs)
        return True

    def _serve_at_once(self, plan: Plan, seqs: ev.I32) -> bool:
        """Serve `seqs` in this order as the budget goes, if none has to be preempted and none shares its tail."""
        if self.reserving is not None:
            return False
        state, bs = self.state, self.config.block_size
        ctx, target = state.ctx[seqs], state.prefill_target[seqs]
        is_decoding = ctx >= target
        missing = np.where(is_decoding, 1, target - ctx)
        take = np.clip(plan.budget - (np.cumsum(missing) - missing), 0, missing)
        counts = np.where(take > 0, -(-(ctx + take) // bs) - state.num_held[seqs], 0).astype(np.int32)
        if int(counts.sum()) > state.num_available or len(self._shared_writers(seqs)):
            return False
        needing = counts > 0
        if needing.any():
            for event in self.manager.allocate(state, seqs[needing], state.num_held[seqs[needing]], counts[needing]):
                self.emit(event)
        if self.rules.cache_at == "scheduled":
            self._index_full(seqs, ctx, ctx + take)
        plan.budget -= int(take.sum())
        served = take > 0
        decoding = seqs[served & is_decoding]
        decode_set = self._current_decode_set()
        plan.decoding = decode_set.seqs if np.array_equal(decoding, decode_set.seqs) else decoding
        prefilling = served & ~is_decoding
        plan.prefill.update(zip(seqs[prefilling].tolist(), take[prefilling].tolist(), strict=True))
        return True

    def _shared_writers(self, seqs: ev.I32) -> ev.I32:
        """Those of `seqs` whose next token goes into a block that others reference or that the prefix index names."""
        state = self.state
        if not state.has_forks or not len(seqs):
            return ev.EMPTY
        ctx = state.ctx[seqs]
        inside = seqs[ctx < state.num_held[seqs] * state.block_size]
        blocks = state.tables[state.slot[inside], state.ctx[inside] // state.block_size]
        return inside[(state.ref[blocks] > 1) | self._indexed(blocks)]

    def _indexed(self, blocks: ev.I32) -> NDArray[np.bool_]:
        """Blocks whose content others may still hit: a fork may start in the middle of one, and nobody overwrites it.

        Where blocks are indexed before they are written (rule `cache_at: scheduled`), a full one is what counts.
        """
        indexed: NDArray[np.bool_] = (self.state.hash[blocks] >= 0) & (
            self.state.fill[blocks] == self.config.block_size
        )
        return indexed

    def _num_copies(self, writers: ev.I32) -> int:
        """Blocks that copy-on-write needs: every writer copies, but the last holder of an unindexed block does not."""
        if not len(writers):
            return 0
        state = self.state
        blocks = state.tables[state.slot[writers], state.ctx[writers] // state.block_size]
        distinct, counts = np.unique(blocks, return_counts=True)
        return int(np.minimum(counts, state.ref[distinct] - ~self._indexed(distinct)).sum())

    def _copy_on_write(self, writers: ev.I32) -> None:
        state = self.state
        logical = state.ctx[writers] // state.block_size
        blocks = state.tables[state.slot[writers], logical]
        distinct = np.unique(blocks)
        left = dict(zip(distinct.tolist(), (state.ref[distinct] + self._indexed(distinct)).tolist(), strict=True))
        copying = []
        for i, block in enumerate(blocks.tolist()):
            if left[block] > 1:
                left[block] -= 1
                copying.append(i)
        chosen = np.array(copying, dtype=np.intp)
        ones = np.ones(len(copying), dtype=np.int32)
        events, dst, _ = self.manager.choose_blocks(state, len(copying), writers[chosen], ones)
        for event in events:
            self.emit(event)
        seqs = writers[chosen]
        tokens = (state.ctx[seqs] % state.block_size).astype(np.int32)
        self.emit(ev.BlocksCopied(seqs, logical[chosen], blocks[chosen], dst, tokens))

    def _serve_in_turn(self, plan: Plan, served: list[int]) -> None:
        """One sequence after the other, each after making room for it; a preempted one drops out."""
        state, bs = self.state, self.config.block_size
        decoding: list[int] = []
        for seq in served:
            if plan.budget <= 0:
                break
            if state.status[seq] != st.RUNNING:
                continue
            ctx = int(state.ctx[seq])
            is_decoding = ctx >= state.prefill_target[seq]
            take = 1 if is_decoding else min(int(state.prefill_target[seq]) - ctx, plan.budget)
            if self.reserving is None and not self._make_room(plan, seq, take, decoding):
                continue
            plan.budget -= take
            if is_decoding:
                decoding.append(seq)
            else:
                plan.prefill[seq] = take
            if self.reserving is None:
                held = int(state.num_held[seq])
                count = -(-(ctx + take) // bs) - held
                if count > 0:
                    plan.pending.append((seq, held, count))
                    plan.num_pending += count
                if state.has_forks and ctx < held * bs:
                    plan.writers.append(seq)
                    plan.num_pending += self._num_copies(self._shared_writers(np.array([seq], dtype=np.int32)))
                if self.rules.allocate == "in_turn":
                    self._flush(plan)
                    if (ctx + take) // bs > ctx // bs:
                        self._index_scheduled(np.array([seq], dtype=np.int32), take)
        alive = [seq for seq in decoding if state.status[seq] == st.RUNNING]
        if alive:
            plan.decoding = np.concatenate([plan.decoding, np.array(alive, dtype=np.int32)])

    def _make_room(self, plan: Plan, seq: int, take: int, decoding: list[int]) -> bool:
        """Preempt until `seq` can write `take` more tokens; False when it was itself preempted."""
        state, bs = self.state, self.config.block_size
        while True:
            needed = max(0, -(-(int(state.ctx[seq]) + take) // bs) - int(state.num_held[seq]))
            if state.has_forks:
                needed += self._num_copies(self._shared_writers(np.array([seq], dtype=np.int32)))
            if needed <= state.num_available - plan.num_pending:
                return True
            self._flush(plan)
            victim = self._preempt(seq, needed)
            plan.preempted = True
            if victim in plan.prefill:
                plan.budget += plan.prefill.pop(victim)
            elif victim in decoding:
                plan.budget += 1
                decoding.remove(victim)
            elif victim in plan.decoding:
                plan.budget += 1
                plan.decoding = plan.decoding[plan.decoding != victim]
            if victim == seq:
                return False

    def _preempt(self, for_seq: int, needed: int) -> int:
        """Give up one running (or forked) sequence; returns it. Its key and the next candidate's go into the event."""
        state, w, rules = self.state, self.workload, self.rules
        candidates = [*self.order, *self.forked]
        if rules.victim == "last_running":
            ranked = self.order[::-1] if self.order else candidates
            key = {seq: int(self.rank[seq]) for seq in ranked}
        elif rules.victim == "least_computed":  # of equals the one that was admitted last
            key = {seq: int(state.ctx[seq]) for seq in candidates}
            ranked = sorted(candidates, key=lambda s: (key[s], -int(self.rank[s])))
        else:
            key = {seq: seq for seq in candidates}  # sequences are numbered in order of arrival
            ranked = sorted(candidates, key=lambda s: (int(w.arrival_us[w.request_of_seq[s]]), s), reverse=True)
        victim = ranked[0]
        runner_up = ranked[1] if len(ranked) > 1 else -1
        ctx, target = int(state.ctx[victim]), int(state.prefill_target[victim])
        if ctx >= target:
            target = ctx if rules.store_last_token else ctx + 1
        was_running = state.status[victim] == st.RUNNING
        self.emit(
            ev.SequencePreempted(
                request=int(w.request_of_seq[victim]),
                seq=victim,
                rule=rules.victim,
                key=key[victim],
                runner_up=runner_up,
                runner_up_key=key[runner_up] if runner_up >= 0 else -1,
                lost_tokens=ctx,
                prefill_target=target,
                for_seq=for_seq,
                needed=needed,
                available=state.num_available,
            )
        )
        if was_running:
            self._unseat(victim)
        else:
            self.forked.remove(victim)
        held = state.table(victim).copy()
        self._give_back(np.array([victim], dtype=np.int32))
        if rules.cache_at == "scheduled":  # this step may have indexed what it now will not write
            stale = (state.ref[held] == 0) & (state.hash[held] >= 0) & (state.fill[held] < state.block_size)
            if stale.any():
                keys = state.last_use[held[stale]].astype(np.int64)
                self.emit(victims(state, "unwritten", held[stale], keys, len(keys)))
        self.waiting.appendleft(victim)
        return victim

    def _give_back(self, seqs: ev.I32) -> None:
        """Free whatever `seqs` hold of the pool."""
        if self.reserving is None:
            seqs = seqs[self.state.num_held[seqs] > 0]
            if len(seqs):
                self.emit(self.manager.free(self.state, seqs))
        else:
            seqs = seqs[self.state.reserved_len[seqs] > 0]
            if len(seqs):
                self.emit(ev.RangesFreed(seqs))

    # ── admission ───────────────────────────────────────────────────────────────────────────────────────────────

    def _seat_forked(self) -> None:
        """Children that wait with their shared blocks come before everybody who holds nothing."""
        while self.forked and self.seats < self.config.max_num_seqs:
            seq = self.forked.popleft()
            self.emit(ev.SequenceSeated(int(self.workload.request_of_seq[seq]), seq))
            self.seats += 1
            self._seat(seq)

    def _admit(self, plan: Plan) -> None:
        """Seats for waiting sequences while seats, blocks and budget last; nobody overtakes the head of the queue.

        When all that ran was preempted, the seats are for forked children, in the next step: those hold blocks that
        nobody else gets before they run. The last one preempted would else come back for the blocks it just lacked.
        """
        if self.forked and not self.order:
            return
        while self.waiting and plan.budget > 0:
            seq = self.waiting[0]
            extra = self._samples_to_fork(seq)
            if self.seats + 1 + extra > self.config.max_num_seqs:
                return
            admitted = (
                self._admit_paged(plan, seq) if self.reserving is None else self._admit_reserving(plan, seq, extra)
            )
            if not admitted:
                return
            self.waiting.popleft()
            self.unborn[seq] = extra
            self.is_child[seq] = False
            self.seats += 1 + extra
            self._seat(seq)

    def _samples_to_fork(self, seq: int) -> int:
        """Samples that will be forked from `seq` when its prefill ends: none if they exist already."""
        w = self.workload
        request = int(w.request_of_seq[seq])
        num = int(w.num_samples[request])
        if num == 1 or seq != w.first_seq[request] or self.state.status[seq + 1] != st.UNBORN:
            return 0
        return num - 1

    def _admit_paged(self, plan: Plan, seq: int) -> bool:
        state, w, bs = self.state, self.workload, self.config.block_size
        request = int(w.request_of_seq[seq])
        prompt_len, target = int(w.prompt_len[request]), int(state.prefill_target[seq])
        hashes = w.hashes_of(request)
        cap = (target if self.rules.cache_outputs else prompt_len) - 1
        max_hits = cap // bs
        hits = self.manager.lookup(state, hashes, max_hits)
        num_revived = int((state.ref[hits] == 0).sum())
        reach = target if self.rules.admit_by == "sequence" else min(target, len(hits) * bs + plan.budget)
        needed = -(-reach // bs) - len(hits) + num_revived
        available = state.num_available - plan.num_pending
        reserve = self.reserve if self.order else 0
        if needed + reserve > available:
            return False
        again = state.num_preemptions[seq] > 0
        slot = int(state.slot[seq]) if again else state.lowest_free_slot()
        causes = explain_prompt(
            state,
            hashes,
            prompt_len,
            min(len(hits), -(-prompt_len // bs)),
            max_hits,
            int(state.held_at_preempt[seq]),
            state.causes[slot] if again else None,
        )
        self.emit(
            ev.SequenceAdmitted(
                request=request,
                seq=seq,
                slot=slot,
                prefill_target=target,
                hits=hits,
                causes=causes,
                class_tokens=self._class_tokens(seq, slot, causes, prompt_len, again),
                needed=needed,
                available=available,
                reserve=reserve,
                num_waiting=len(self.waiting) - 1,
                orphans=state.block_of_hash[hashes[: len(causes)][causes[: len(hashes)] == ORPHANED]],
            )
        )
        ctx = len(hits) * bs
        take = min(target - ctx, plan.budget)
        plan.budget -= take
        plan.prefill[seq] = take
        count = -(-(ctx + take) // bs) - len(hits)
        if count:
            plan.pending.append((seq, len(hits), count))
            plan.num_pending += count
        if self.rules.allocate == "in_turn":
            self._flush(plan)
            self._index_scheduled(np.array([seq], dtype=np.int32), take)
        return True

    def _class_tokens(self, seq: int, slot: int, causes: ev.U8, prompt_len: int, again: bool) -> ev.I64:
        """Token counts by class to add: all of the prompt at the first admission, changes of class at a later one.

        The prompt of a forked sequence came with the fork and was not counted, so neither are its changes.
        """
        now = tokens_per_class(causes, prompt_len, self.config.block_size)
        if not again:
            return now
        if self.came_by_fork[seq]:
            return np.zeros_like(now)
        return now - tokens_per_class(self.state.causes[slot, : len(causes)], prompt_len, self.config.block_size)

    def _admit_reserving(self, plan: Plan, seq: int, extra: int) -> bool:
        assert self.reserving is not None
        state, w = self.state, self.workload
        request = int(w.request_of_seq[seq])
        prompt_len = int(w.prompt_len[request])
        length = self.reserving.slots_for(prompt_len, int(w.output_len[request]))
        ranges = self.reserving.reserve(state, request, range(seq, seq + 1 + extra), length)
        if ranges is None:
            return False
        for event in ranges:
            self.emit(event)
        causes = np.full(-(-prompt_len // self.config.block_size), TAIL, dtype=np.uint8)
        target = int(state.prefill_target[seq])
        self.emit(
            ev.SequenceAdmitted(
                request=request,
                seq=seq,
                slot=state.lowest_free_slot(),
                prefill_target=target,
                hits=ev.EMPTY,
                causes=causes,
                class_tokens=tokens_per_class(causes, prompt_len, self.config.block_size),
                needed=length * (1 + extra),
                available=state.num_blocks * state.block_size - int(state.reserved_len.sum()) + length * (1 + extra),
                reserve=0,
                num_waiting=len(self.waiting) - 1,
                orphans=ev.EMPTY,
            )
        )
        take = min(target, plan.budget)
        plan.budget -= take
        plan.prefill[seq] = take
        return True

    # ── allocation, write, index, forks, frees ──────────────────────────────────────────────────────────────────

    def _flush(self, plan: Plan) -> None:
        """Allocate what was promised so far, in the order of the promises, then copy what writers share."""
        if not plan.pending and not plan.writers:
            return
        running = self.state.status
        pending = [promise for promise in plan.pending if running[promise[0]] == st.RUNNING]
        writers = [seq for seq in plan.writers if running[seq] == st.RUNNING]
        plan.pending, plan.writers, plan.num_pending = [], [], 0
        if pending:
            seqs, first, counts = (np.array(column, dtype=np.int32) for column in zip(*pending, strict=True))
            for event in self.manager.allocate(self.state, seqs, first, counts):
                self.emit(event)
        if writers:
            sharing = self._shared_writers(np.array(writers, dtype=np.int32))
            if len(sharing):
                self._copy_on_write(sharing)

    def _index_scheduled(self, seqs: ev.I32, take: int = 1) -> None:
        """Rule `cache_at: scheduled`: blocks that this step will fill can be hit from now on."""
        if self.rules.cache_at == "scheduled" and len(seqs):
            ctx = self.state.ctx[seqs]
            self._index_full(seqs, ctx, ctx + take)

    def _index_full(self, seqs: ev.I32, before: ev.I32, after: ev.I32) -> None:
        """Index the blocks of `seqs` that became full between context lengths `before` and `after`.

        A child's blocks are not: its ids say what its prompt would be, not that it follows its parent's tokens.
        """
        state, w, bs = self.state, self.workload, self.config.block_size
        blocks, hashes = [], []
        starts, ends = before // bs, after // bs
        filled = np.flatnonzero(ends > starts)
        for seq, start, end in zip(seqs[filled].tolist(), starts[filled].tolist(), ends[filled].tolist(), strict=True):
            if not self.is_child[seq]:
                known = w.hashes_of(int(w.request_of_seq[seq]))
                if not self.rules.cache_outputs:
                    known = known[: int(w.prompt_len[w.request_of_seq[seq]]) // bs]
                end = min(end, len(known))
                if end > start:
                    blocks.append(state.table(seq)[start:end])
                    hashes.append(known[start:end])
        if blocks:
            event = self.manager.index(state, np.concatenate(blocks), np.concatenate(hashes))
            if event is not None:
                self.emit(event)

    def _write(self, plan: Plan) -> None:
        """Write what was planned, then index, fork, free and close the step."""
        prefill_seqs = counts = ev.EMPTY
        num_prefill = 0
        if plan.prefill:
            prefill_seqs = np.array(list(plan.prefill), dtype=np.int32)
            counts = np.array(list(plan.prefill.values()), dtype=np.int32)
            num_prefill = int(counts.sum())
        progress = len(prefill_seqs) or len(plan.decoding) or plan.preempted or self.done_at_fork
        assert progress, "a step with sequences in the queues must make progress"
        if self.reserving is None:
            peak = self.state.num_used - self.state.null_blocks
        else:
            peak = -(-int(self.state.reserved_len.sum()) // self.config.block_size)
        self.emit(ev.TokensWritten(plan.decoding, prefill_seqs, counts))
        if self.kernels is not None:
            self._run_kernels(self.kernels, plan.decoding)
        elif self.compaction is not None:
            planned = plan_on_state(self.state, self.compaction, NumpyBackend())
            if planned is not None:
                self.emit(planned)
        finished, decode_tokens, decode_slots = self._after_decode(plan.decoding)
        prefilled = self._after_prefill(prefill_seqs, counts) if len(prefill_seqs) else ev.EMPTY
        grown = prefilled.tolist()
        for seq in prefilled.tolist():
            if self.unborn[seq]:
                grown.extend(self._fork_samples(seq))
        for parent in list(self.children):
            self._fork_children(parent)
        if grown:
            finished.extend(seq for seq in grown if self.state.ctx[seq] >= self.total[seq])
        finished.extend(self.done_at_fork)
        self.done_at_fork.clear()
        if self.whole_at_fork:
            whole = [seq for seq in self.whole_at_fork if self.state.status[seq] in (st.RUNNING, st.FORKED)]
            prefilled = np.concatenate([prefilled, np.array(whole, dtype=np.int32)])
            self.whole_at_fork.clear()
        if finished:
            self._finish(finished)
        if isinstance(self.manager, SeedBlockManager):
            resized = self.manager.resize(self.state)
            if resized is not None:
                self.emit(resized)
        if self.kernels is not None:
            self.emit(self.kernels.close_step())
        self.emit(self._step_ended(num_prefill, len(plan.decoding), decode_tokens, decode_slots, peak, prefilled))

    def _run_kernels(self, kernels: KernelPipeline, decoding: ev.I32) -> None:
        """Selection and attention of the decoding sequences, then levels, then a compaction when one is due.

        Choices are applied while attention runs and handed on when it has shown what they were worth.
        """
        step = self.state.step
        for event in kernels.step(decoding):
            apply(self.state, event)
        for event in kernels.observed():
            self.sink(step, event)
        for decide in (kernels.adapt, kernels.plan_compaction):
            decided = decide()
            if decided is not None:
                self.emit(decided)

    def _after_decode(self, decoding: ev.I32) -> tuple[list[int], int, int]:
        """Who is finished, and the sums of context lengths and of slots over the sequences that decoded."""
        if not len(decoding):
            return [], 0, 0
        state, decode_set = self.state, self.decode_set
        if decode_set is not None and decoding is decode_set.seqs:
            ended = decode_set.advance()
            tokens, slots = decode_set.num_tokens, decode_set.num_slots
        else:
            self.decode_set = None
            ctx = state.ctx[decoding]
            ended = decoding[ctx == self.total[decoding]]
            tokens, slots = int(ctx.sum()), int((-(-ctx // self.config.block_size)).sum()) * self.config.block_size
        if self.reserving is not None:
            slots = int(state.reserved_len[decoding].sum())
        if self.rules.cache_outputs and self.rules.cache_at == "written":
            ctx = state.ctx[decoding]
            self._index_full(decoding, ctx - 1, ctx)
        return ended.tolist(), tokens, slots

    def _after_prefill(self, seqs: ev.I32, counts: ev.I32) -> ev.I32:
        """Index what the prefill filled; returns the sequences that are through it, which decode from now on."""
        state = self.state
        ctx = state.ctx[seqs]
        if self.reserving is None and self.rules.cache_at == "written":
            self._index_full(seqs, ctx - counts, ctx)
        prefilled = seqs[ctx >= state.prefill_target[seqs]]
        for seq in prefilled.tolist():
            self.prefilling.remove(seq)
            self._to_decoding(seq)
        return prefilled

    def _fork_samples(self, seq: int) -> list[int]:
        """The prefill of a request with n samples is done: the other n - 1 share what it wrote. Returns those."""
        num = int(self.unborn[seq])
        self.unborn[seq] = 0
        children = np.arange(seq + 1, seq + 1 + num, dtype=np.int32)
        slots = np.array([self.state.lowest_free_slot(i) for i in range(num)], dtype=np.int32)
        tokens = int(self.state.ctx[seq])
        self.emit(ev.SequencesForked(seq, children, slots, tokens, np.ones(num, dtype=np.uint8)))
        self.came_by_fork[children] = True
        self.whole_at_fork.extend(children.tolist())
        for child in children.tolist():
            self._seat(child)
        return children.tolist()

    def _fork_children(self, parent: int) -> None:
        """Fork the waiting children of `parent` whose fork point it has reached.

        When the parent is over, the others become ordinary requests that look for their prefix in the cache.
        """
        state, w = self.state, self.workload
        seq = int(w.first_seq[parent])
        waiting = []
        for child in self.children[parent]:
            if state.status[seq] == st.FINISHED:
                self._wait(int(w.first_seq[child]))
                continue
            fork_at = int(w.fork_at[child])
            if state.status[seq] != st.RUNNING or state.ctx[seq] < fork_at:
                waiting.append(child)
                continue
            child_seq = int(w.first_seq[child])
            self.is_child[child_seq] = self.came_by_fork[child_seq] = True
            if fork_at >= w.prompt_len[child]:
                self.whole_at_fork.append(child_seq)
            done = fork_at >= self.total[child_seq]  # it shares all that it would write and needs no seat
            running = done or self.seats < self.config.max_num_seqs
            slot = np.array([state.lowest_free_slot()], dtype=np.int32)
            self.emit(
                ev.SequencesForked(
                    seq, np.array([child_seq], dtype=np.int32), slot, fork_at, np.array([running], dtype=np.uint8)
                )
            )
            if done:
                self.done_at_fork.append(child_seq)
            elif running:
                self.seats += 1
                self._seat(child_seq)
            else:
                self.forked.append(child_seq)
        if waiting:
            self.children[parent] = waiting
        else:
            del self.children[parent]

    def _finish(self, finished: list[int]) -> None:
        """Sequences that wrote all their tokens leave: blocks back, seats free, requests completed."""
        w = self.workload
        seqs = np.array(finished, dtype=np.int32)
        self._give_back(seqs)
        completed = []
        for seq in finished:
            if seq in self.order:
                self._unseat(seq)
            request = int(w.request_of_seq[seq])
            self.unfinished[request] -= 1
            if not self.unfinished[request]:
                completed.append(request)
                self.alive -= 1
        self.emit(ev.SequencesFinished(seqs, np.array(completed, dtype=np.int32)))
        for request in completed:
            if request in self.children:
                self._fork_children(request)

    def _step_ended(
        self, num_prefill: int, num_decoding: int, tokens: int, slots: int, peak: int, prefilled: ev.I32
    ) -> ev.StepEnded:
        state, config = self.state, self.config
        if config.clock == "measured" and self.kernels is not None:
            spent = max(1, round(self.kernels.clock_us * config.clock_layers))
        else:
            spent = config.clock_base_us + config.clock_prefill_us * num_prefill + config.clock_decode_us * num_decoding
        return ev.StepEnded(
            time_us=state.time_us + spent,
            num_prefill_tokens=num_prefill,
            num_decoding=num_decoding,
            decode_tokens=tokens,
            decode_slots=slots,
            used_blocks=state.num_used - state.null_blocks,
            cached_free_blocks=state.num_cached_free,
            free_blocks=state.num_free,
            resident_tokens=state.resident_tokens if self.reserving is None else int(state.ctx[self.order].sum()),
            used_slots=(state.num_used - state.null_blocks) * config.block_size
            if self.reserving is None
            else int(state.reserved_len.sum()),
            num_running=len(self.order),
            num_waiting=len(self.waiting) + len(self.forked),
            peak_blocks=peak,
            prefilled=prefilled,
        )
