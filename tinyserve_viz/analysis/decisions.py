"""A replay's decisions as one JSON line a step, in the form in which vLLM's own decisions were written down.

`{"step":0,"run":[[request,"new"|"run"|"resumed",computed_before,tokens,[block ids]],…],"preempted":[…],
"finished":[…],"free":n}`: new ones first, then running, then resumed; `new` and `resumed` list all blocks of the
request, hits first, `run` only the new ones; `free` is after the step's frees. Requests are row numbers of the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.workload import Workload

_encode = msgspec.json.encode


class DecisionLines:
    """Turns the events of a replay, in order, into decision lines; `write` gets each line with its newline."""

    def __init__(self, workload: Workload, block_size: int, write: Callable[[bytes], object]) -> None:
        self._request = workload.request_of_seq.tolist()
        self._write, self._block_size = write, block_size
        self._ctx = [0] * workload.num_seqs
        self._steps = 0
        self._was_preempted: set[int] = set()
        self._start_step()

    def _start_step(self) -> None:
        self._kind: dict[int, str] = {}
        self._blocks: dict[int, list[int]] = {}
        self._preempted: list[int] = []
        self._finished: list[int] = []
        self._lines: dict[str, list[list[Any]]] = {"new": [], "run": [], "resumed": []}

    def add(self, _step: int, event: ev.Event) -> None:
        """Take the next event."""
        match event:
            case ev.TokensWritten():
                for seq in event.decode_seqs.tolist():
                    self._scheduled(seq, 1)
                for seq, count in zip(event.prefill_seqs.tolist(), event.prefill_counts.tolist(), strict=True):
                    self._scheduled(seq, count)
            case ev.StepEnded():
                self._close(event.free_blocks + event.cached_free_blocks)
            case ev.BlocksAllocated():
                start = 0
                blocks = event.blocks.tolist()
                for seq, count in zip(event.seqs.tolist(), event.counts.tolist(), strict=True):
                    self._blocks.setdefault(seq, []).extend(blocks[start : start + count])
                    start += count
            case ev.SequenceAdmitted():
                self._kind[event.seq] = "resumed" if event.seq in self._was_preempted else "new"
                self._blocks[event.seq] = event.hits.tolist()
                self._ctx[event.seq] = len(event.hits) * self._block_size
            case ev.SequencePreempted():
                self._preempted.append(self._request[event.seq])
                self._was_preempted.add(event.seq)
                self._blocks.pop(event.seq, None)
                self._ctx[event.seq] = 0
            case ev.SequencesFinished():
                self._finished.extend(event.requests.tolist())
            case _:
                pass

    def _scheduled(self, seq: int, count: int) -> None:
        kind = self._kind.get(seq, "run")
        self._lines[kind].append([self._request[seq], kind, self._ctx[seq], count, self._blocks.get(seq, [])])
        self._ctx[seq] += count

    def _close(self, free: int) -> None:
        line = {
            "step": self._steps,
            "run": [*self._lines["new"], *self._lines["run"], *self._lines["resumed"]],
            "preempted": self._preempted,
            "finished": self._finished,
            "free": free,
        }
        self._write(_encode(line) + b"\n")
        self._steps += 1
        self._start_step()


class EvictionRows:
    """Every evicted block as (step, block id, request that filled it, its logical index there), as evicted."""

    def __init__(self, workload: Workload) -> None:
        self._request = workload.request_of_seq.tolist()
        self._filled: dict[int, tuple[int, int]] = {}
        self.rows: list[tuple[int, int, int, int]] = []

    def add(self, step: int, event: ev.Event) -> None:
        """Take the next event."""
        if isinstance(event, ev.BlocksEvicted):
            self.rows += [(step, block, *self._filled[block]) for block in event.blocks.tolist()]
        elif isinstance(event, ev.BlocksAllocated):
            blocks = iter(event.blocks.tolist())
            columns = (event.seqs.tolist(), event.first_logical.tolist(), event.counts.tolist())
            for seq, first, count in zip(*columns, strict=True):
                for logical in range(first, first + count):
                    self._filled[next(blocks)] = (self._request[seq], logical)
