"""The kernels of a step: they keep a cache of their own beside the state, and what they choose is emitted.

Memory kernels repeat what the events say (`kernel_memory.py`), and both must agree after every step. Selection, levels
and compaction are decided by their kernels; the events carry the results.

Arrays live with the session, which is the backend: NumPy, or a GPU. A step sends lengths and ids in and reads back what
its events need, nothing else. The calls of a step are two programs (what is written; what follows for the sequences
that decode), so that a backend can prepare them once: everything that changes from step to step is an input.

Every row of the state's block tables is a row of the batch: rows that do not decode have length 0, which every kernel
takes, so the tables need not be gathered. Order (kernel-contracts §17): write K/V and boxes → block scores → query
analysis → selection → balancing → attention → levels → compaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.check import Violation
from tinyserve_viz.core.compaction import RULES
from tinyserve_viz.core.config import ContentConfig, EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine import compaction
from tinyserve_viz.engine.choosing import Chooser
from tinyserve_viz.engine.content import Content, content_of
from tinyserve_viz.engine.kernel_memory import POOLS, KernelMemory
from tinyserve_viz.engine.quality import Truth, Watcher, chosen_mask, tokens_of
from tinyserve_viz.engine.useful_bytes import attention_bytes, mass_bytes, scoring_bytes, write_bytes
from tinyserve_viz.kernels.definition import KernelDef
from tinyserve_viz.kernels.parameters import default
from tinyserve_viz.kernels.session import Calls, Held, Read, Session, Sizes, run_on_host_arrays

ATTENTION = ("exact", "flash", "query-aware", "query-aware-fused", "all")
MODES = ("all", "decisions")
PER_STEP = ("I6", "I8")
QUALITIES = ("full", "sample", "off")
VERIFY = ("every", "sample", "off")
SAMPLE_EVERY = 32  # steps, under verify `sample`
_ROOM = 32  # `selected` is as wide as a multiple of it, so that a growing context seldom makes another program


@dataclass(slots=True)
class Stopwatch:
    """Seconds that the engine's sink spent: on digest and recording, and on invariants and metrics."""

    record_s: float = 0.0
    check_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """What the sequences that decode in a step send in, made in that step or, as it will be, in the one before."""

    step: int
    decoding: ev.I32
    slots: ev.I32
    lengths: ev.I32
    rows: int
    most: int  # blocks of any choice, rounded up
    writing: bool
    inputs: dict[str, NDArray[Any]]
    sizes: Sizes

    def fits(self, step: int, decoding: ev.I32, writing: bool, rows: int) -> bool:
        """Whether it is for this step: the same array of sequences is the same set, each a token longer."""
        return self.decoding is decoding and (self.step, self.writing, self.rows) == (step, writing, rows)


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """What runs: `mode` `decisions` leaves attention out; `attention` names its form; `verify` repeats on the host;
    `quality` compares choices with true attention: `full` all, `sample` those of two steps in every 32, or `off`."""

    mode: str = "all"
    attention: str = "all"
    verify: str = "every"
    quality: str = "full"


class KernelPipeline:
    """Kernels of one replay on `session`. The engine calls `after` for every event and `step` once a step."""

    def __init__(
        self,
        state: CacheState,
        engine: EngineConfig,
        model: ModelConfig,
        content: ContentConfig,
        session: Session,
        config: PipelineConfig,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.content = content_of(content, model, state.workload, engine.block_size)
        self.chooser = Chooser(engine, model, content.seed)
        self._watcher = Watcher(state, engine, model)
        self._state, self._engine, self._model, self._config = state, engine, model, config
        self.session = session
        self.verify = config.verify
        self.name = session.backend  # with `supports` and `run` the pipeline stands in for a backend
        self.violations: list[Violation] = []
        self.num_checked = self.num_verified = 0
        self.clock_us = 0.0  # of the kernels of the step that was closed last; making content is no server's work
        self._watch = stopwatch or Stopwatch()
        self.memory = KernelMemory(state, engine, model, self.session, self._report)
        self._query = self._new_query()
        self._topics: dict[str, Held] = {}
        if isinstance(self.content, Content) and self.content.centres is not None:
            centres = self.content.centres
            self._topics = {"centre": self.session.hold(centres[0]), "sink": self.session.hold(centres[1])}
        self._scale = float(self.content.scale)
        self._window, self._compaction = default("adaptive.window"), RULES.get(engine.compaction)
        self._verifying = self._watching = False
        self._unwritten: ev.I32 | None = None  # sequences that decode, whose tokens the step has still to write
        self._chosen: list[ev.BlocksSelected] = []
        self._rest: Callable[[], Read] = dict  # results of the step under way that come last
        self._ahead: _Prepared | None = None
        self._can_look_ahead = self.chooser.ranks_by in ("box", "mass")  # no orders or captured queries to be made
        self._begin(state.step)

    def _new_query(self) -> Held:
        model = self._model
        shape = (model.num_layers, self.memory.num_rows, model.num_heads, model.head_dim)
        return self.session.hold(np.zeros(shape, dtype=np.float16))

    def _begin(self, step: int) -> None:
        """A step begins, verified or not."""
        verify = self._config.verify
        self._verifying = verify == "every" or (verify == "sample" and step % SAMPLE_EVERY == 0)
        self.memory.checking = self._verifying
        self._step_started = time.perf_counter()
        self._sink_before = self._watch.record_s, self._watch.check_s
        self.memory.check_s = 0.0
        self.session.begin_step(self._verifying)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

    def supports(self, kernel: KernelDef) -> bool:
        """Whether the session has the kernel: it has all."""
        del kernel
        return True

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run a kernel on host arrays for somebody else and count it as one of this step."""
        return run_on_host_arrays(self.session, kernel.name, arrays, scalars)

    def _report(self, invariant: str, message: str) -> None:
        self.violations.append(Violation(self._state.step, invariant, message))

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────

    def after(self, event: ev.Event) -> None:
        """Take an event that was just applied to the state."""
        if type(event) is ev.TokensWritten:
            self._written(event)
            return
        self.memory.after(event)
        if type(event) is ev.SequencesFinished or type(event) is ev.RequestCancelled:
            for seq in event.seqs.tolist():
                self.content.forget(seq)

    def _written(self, event: ev.TokensWritten) -> None:
        """K and V of the step's tokens are made and go into the cache, and the boxes of their blocks widen."""
        state, bs = self._state, self._engine.block_size
        self.memory.match_rows()
        rows = self.memory.num_rows
        if rows != self._query.shape[1]:
            self.session.drop(self._query)
            self._query = self._new_query()
        num_decoding = len(event.decode_seqs)
        if num_decoding and not len(event.prefill_seqs) and not self._verifying:
            self._unwritten = event.decode_seqs  # in one program with what follows
            return
        self.memory.flush()
        seqs = np.concatenate([event.decode_seqs, event.prefill_seqs])
        counts = np.concatenate([np.ones(num_decoding, dtype=np.int32), event.prefill_counts])
        slots, ends = state.slot[seqs], state.ctx[seqs]
        starts = ends - counts
        token_start, work = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
        start_pos, seq_lens = np.zeros(rows, dtype=np.int32), np.zeros(rows, dtype=np.int32)
        token_start[slots] = np.cumsum(counts) - counts
        start_pos[slots], seq_lens[slots] = starts, ends
        work[slots] = (ends - 1) // bs - starts // bs + (counts > 0)
        num_work, num_tokens = int(work.sum()), int(counts.sum())
        inputs: dict[str, NDArray[Any]] = {
            **self._content_inputs(seqs, starts, ends, slots[:num_decoding]),
            "token_start": token_start,
            "start_pos": start_pos,
            "written_lens": seq_lens,
            "work_start": np.cumsum(work) - work,
        }
        key = None if len(event.prefill_seqs) else ("write", rows, num_tokens)
        sizes = {"tokens": num_tokens, "written": num_work, "queries": num_decoding}
        self.session.run(key, lambda calls: self._writing(calls, num_work), inputs, sizes)
        if self._verifying:
            self._check_boxes(state.last_written.astype(np.int32))

    def _content_inputs(self, seqs: ev.I32, starts: ev.I32, ends: ev.I32, slots: ev.I32) -> dict[str, NDArray[Any]]:
        """What K and V of the tokens [starts, ends) are made from, or captured ones themselves, [tokens] …, by layer.

        The queries of the first sequences, which decode, are for the rows `slots`.
        """
        if not isinstance(self.content, Content):
            return {f"kv{layer}": self.content.pieces(starts, ends, layer) for layer in range(self._model.num_layers)}
        tokens, topics, positions = self.content.tokens(seqs, starts, ends)
        query_token = np.full(self.memory.num_rows, -1, dtype=np.int32)
        query_token[slots] = np.arange(len(slots))
        inputs: dict[str, NDArray[Any]] = {"token": tokens, "position": positions, "query_token": query_token}
        return inputs | ({"topic": topics} if self._topics else {})

    def _write_inputs_by_row(self, seqs: ev.I32, slots: ev.I32, seq_lens: ev.I32) -> dict[str, NDArray[Any]]:
        """What the write of one token of each of `seqs` takes, a token and a block for every row of the tables: shapes
        then depend on nobody's coming and going, and rows of length 0 write nothing."""
        at, starts = np.arange(len(seq_lens)), np.maximum(seq_lens - 1, 0)
        inputs: dict[str, NDArray[Any]] = {
            "token_start": at, "start_pos": starts, "written_lens": seq_lens, "work_start": at
        }  # fmt: skip
        ends = seq_lens[slots]
        for name, array in self._content_inputs(seqs, starts[slots], ends, slots).items():
            if name == "query_token":
                inputs[name] = np.where(seq_lens > 0, at, -1).astype(np.int32)
            else:
                inputs[name] = np.zeros((len(at), *array.shape[1:]), array.dtype)
                inputs[name][slots] = array
        return inputs

    def _kv(self, calls: Calls, layer: int) -> Held:
        """K and V of the step's tokens in a layer; where they are made, the queries are made with them."""
        if not isinstance(self.content, Content):
            return calls.input(f"kv{layer}")
        model, row_bytes = self._model, 2 * self._model.head_dim
        names = ("token", "position", "query_token", *(("topic",) if self._topics else ()))
        return calls.call(
            "content_generation",
            {
                **{name: calls.input(name) for name in names},
                **{name: self.session.part(held, layer) for name, held in self._topics.items()},
                "query": self.session.part(self._query, layer),
            },
            lambda s: (2 * s["tokens"] * model.num_kv_heads + s["queries"] * model.num_heads) * row_bytes,
            num_kv_heads=model.num_kv_heads,
            seed=self.content.seed,
            layer=layer,
        )["kv"]

    def _writing(self, calls: Calls, num_work: int) -> dict[str, Held]:
        """The program of what is written."""
        model, memory = self._model, self.memory
        write = {name: calls.input(name) for name in ("token_start", "start_pos", "work_start")}
        write["seq_lens"] = calls.input("written_lens")
        for layer in range(model.num_layers):
            calls.call(
                "fused_reshape_and_block_write",
                {
                    "kv": self._kv(calls, layer),
                    **write,
                    "block_table": memory.held["block_table"],
                    "ref": memory.held["ref"],
                    **{name: memory.layer(name, layer) for name in (*POOLS, "box")},
                },
                lambda s: write_bytes(model, s["tokens"], s["written"]),
                num_work=num_work,
            )
        return {}

    def _check_boxes(self, blocks: ev.I32) -> None:
        """I6: the box of a written block contains every valid key of it."""
        started = time.perf_counter()
        valid = np.arange(self._engine.block_size) < self._state.fill[blocks][:, None]
        keys = self.session.read_blocks(self.memory.held["key_cache"], blocks).astype(np.float32)
        inside = valid[None, :, :, None, None]
        low = np.where(inside, keys, np.inf).min(axis=2)
        high = np.where(inside, keys, -np.inf).max(axis=2)
        box = self.session.read_blocks(self.memory.held["box"], blocks)
        if not ((box[:, :, :, 0] <= low).all() and (box[:, :, :, 1] >= high).all()):
            self._report("I6", "a key lies outside its block's box")
        self.memory.check_s += time.perf_counter() - started

    # ── the step ────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, decoding: ev.I32) -> list[ev.BlocksSelected]:
        """Start what follows the write for the sequences that decode; returns what was chosen, layer by layer, while
        attention still runs. `observed` has the events with what attention shows."""
        if not len(decoding):
            return []
        state, ahead = self._state, self._ahead
        sampled = self._config.quality == "sample" and state.step % SAMPLE_EVERY < 2  # two: one looks back at the other
        self._watching = self._config.quality == "full" or sampled
        writing, self._unwritten = self._unwritten is not None, None
        if ahead is None or not ahead.fits(state.step, decoding, writing, self.memory.num_rows):
            ahead = self._prepared(state.step, decoding, state.ctx[decoding], writing)
        self._now = now = ahead

        allocation = self.memory.take_allocation() if writing else None
        self.memory.flush()
        inputs, num_allocated = now.inputs, 0
        if allocation is not None:
            inputs = {**inputs, **allocation.arrays}
            num_allocated = now.sizes["allocated"] = len(allocation.expected)

        def program(calls: Calls) -> dict[str, Held]:
            early = {"allocated": self.memory.allocating(calls)} if num_allocated else {}
            if writing:
                self._writing(calls, now.rows)
            return self._deciding(calls, now.most, early)

        key = ("decode", now.rows, now.most, self._verifying, self._watching, writing, num_allocated)
        running = self.session.run(key, program, inputs, now.sizes)
        chosen, layers = running.early(), range(self._model.num_layers)
        if allocation is not None:
            self.memory.check_allocation(allocation, chosen["allocated"])
        self._chosen = [self._selected(now, layer, chosen) for layer in layers]
        self._rest = running.rest
        return self._chosen

    def observed(self) -> list[ev.BlocksSelected]:
        """The events of the last `step`, complete: waits for attention, and meanwhile prepares the next step."""
        if not self._chosen:
            return []
        now, chosen, self._chosen = self._now, self._chosen, []
        self._ahead, content = None, self.content
        if self._can_look_ahead and isinstance(content, Content) and int(now.lengths.max()) < content.longest:
            self._ahead = self._prepared(now.step + 1, now.decoding, now.lengths + 1, True)
        found = self._rest()
        return [self._with_attention(event, layer, now.slots, found) for layer, event in enumerate(chosen)]

    def _prepared(self, step: int, decoding: ev.I32, lengths: ev.I32, writing: bool) -> _Prepared:
        """What the decoding sequences send in, at these context lengths."""
        slots, rows, bs = self._state.slot[decoding], self.memory.num_rows, self._engine.block_size
        seq_lens = np.zeros(rows, dtype=np.int32)
        seq_lens[slots] = lengths
        num_seq_blocks = -(-seq_lens // bs)
        inputs = {"seq_lens": seq_lens, "num_seq_blocks": num_seq_blocks}
        inputs |= self._policy_inputs(decoding, slots, lengths)
        sizes: Sizes = {
            "rows": len(decoding),
            "blocks": int(num_seq_blocks.sum()),
            "held": int(lengths.sum()) * self._model.num_kv_heads,
        }
        if writing:
            inputs |= self._write_inputs_by_row(decoding, slots, seq_lens)
            sizes |= {"tokens": len(decoding), "written": len(decoding), "queries": len(decoding)}
        most = -(-self.chooser.most(int(num_seq_blocks.max())) // _ROOM) * _ROOM
        return _Prepared(step, decoding, slots, lengths, rows, most, writing, inputs, sizes)

    def _policy_inputs(self, decoding: ev.I32, slots: ev.I32, lengths: ev.I32) -> dict[str, NDArray[Any]]:
        """By layer, for every row of the tables: captured queries, and what the policy ranks by besides the cache."""
        model, chooser = self._model, self.chooser
        rows, width = self.memory.held["block_table"].shape
        inputs: dict[str, NDArray[Any]] = {}
        if chooser.ranks_by == "window":
            positions, voted = chooser.voters(lengths)
            inputs["voted"] = np.zeros(rows, dtype=np.int32)
            inputs["voted"][slots] = voted
        for layer in range(model.num_layers):
            if not isinstance(self.content, Content):
                query = np.zeros((rows, model.num_heads, model.head_dim), dtype=np.float16)
                query[slots] = self.content.queries(decoding, lengths - 1, layer)
                inputs[f"query{layer}"] = query
            if chooser.ranks_by == "order":
                order = np.zeros((rows, model.num_kv_heads, width), dtype=np.float32)
                order[slots] = chooser.order(decoding, lengths, layer, width)
                inputs[f"order{layer}"] = order
            elif chooser.ranks_by == "window":
                asked = self.content.queries(np.repeat(decoding, chooser.window), positions.ravel(), layer)
                voters = np.zeros((rows, chooser.window * model.num_heads, model.head_dim), dtype=np.float16)
                voters[slots] = chooser.beside_each_other(asked)
                inputs[f"voters{layer}"] = voters
        return inputs

    def _deciding(self, calls: Calls, most: int, early: dict[str, Held]) -> dict[str, Held]:
        """The program of the decoding sequences: what is chosen and compared with, and attention over it.

        Choices are read `early`: the host works on them while attention, which takes longest, still runs.
        """
        lengths = {name: calls.input(name) for name in ("seq_lens", "num_seq_blocks")}
        made, layers = isinstance(self.content, Content), range(self._model.num_layers)
        queries = [self.session.part(self._query, at) if made else calls.input(f"query{at}") for at in layers]
        chosen = [self._choosing(calls, at, queries[at], lengths, most) for at in layers]
        seq_lens = lengths["seq_lens"]
        shown = [
            choice | (self._truth(calls, at, queries[at], seq_lens) if self._watching else {})
            for at, choice in enumerate(chosen)
        ]
        listed = [self._work_lists(calls, seq_lens, choice) for choice in chosen]
        fused = [self._fused(calls, at, queries[at], seq_lens, chosen[at]) for at in layers]
        own = [{f"fused_{name}": part[name] for name in ("selected", "count") if part} for part in fused]
        calls.read_early(early | _by_layer(shown) | _by_layer(own))
        return _by_layer(
            [self._attending(calls, at, queries[at], seq_lens, chosen[at], listed[at], fused[at]) for at in layers]
        )

    def _mass(
        self,
        calls: Calls,
        layer: int,
        query: Held,
        seq_lens: Held,
        heads: int,
        queries: int,
        reduction: str,
        **more: Held,
    ) -> dict[str, Held]:
        """Attention mass of every block for `heads` heads, of `queries` queries a row and query head."""
        model = self._model
        return calls.call(
            "block_mass",
            {
                "query": query,
                "key_cache": self.memory.layer("key_cache", layer),
                "block_table": self.memory.held["block_table"],
                "seq_lens": seq_lens,
                **more,
            },
            lambda s: mass_bytes(model, s["held"], s["blocks"] * heads, s["rows"] * queries),
            num_score_heads=heads,
            scale=self._scale,
            reduction=reduction,
        )

    def _truth(self, calls: Calls, layer: int, query: Held, seq_lens: Held) -> dict[str, Held]:
        """What a choice is compared with: mass and largest logit of every block, for every query head."""
        heads = self._model.num_heads
        peak = calls.new((query.shape[0], heads, self.memory.held["block_table"].shape[1]), "float32")
        # A mass for every query head: nothing is reduced.
        return self._mass(calls, layer, query, seq_lens, heads, 1, "mean", block_peak=peak)

    def _ranking(self, calls: Calls, layer: int, query: Held, lengths: Mapping[str, Held], box: Held) -> Held:
        """What the policy ranks the blocks by, float32 [rows][num_kv_heads][blocks]."""
        chooser, heads = self.chooser, self._model.num_kv_heads
        if chooser.ranks_by == "order":
            return calls.input(f"order{layer}")
        if chooser.ranks_by == "mass":
            return self._mass(calls, layer, query, lengths["seq_lens"], heads, 1, chooser.reduction)["block_mass"]
        if chooser.ranks_by == "window":
            voters, voted = calls.input(f"voters{layer}"), calls.input("voted")
            return self._mass(calls, layer, voters, voted, heads, chooser.window, chooser.reduction)["block_mass"]
        return box

    def _choosing(
        self, calls: Calls, layer: int, query: Held, lengths: Mapping[str, Held], most: int
    ) -> dict[str, Held]:
        """Scores, query analysis and selection."""
        model, memory, chooser = self._model, self.memory, self.chooser
        table, num_seq_blocks = memory.held["block_table"], lengths["num_seq_blocks"]
        heads = model.num_kv_heads
        scored = calls.call(
            "block_scoring",
            {
                "query": query,
                "box": memory.layer("box", layer),
                "block_table": table,
                "num_seq_blocks": num_seq_blocks,
            },
            lambda s: scoring_bytes(model, s["blocks"], s["rows"]),
            num_score_heads=heads,
            reduction=chooser.box_reduction,
        )
        analysis = calls.call(
            "query_analysis",
            {"query": query, "block_score": scored["block_score"], "num_scored": num_seq_blocks},
            lambda s: s["rows"] * (model.num_heads * model.head_dim * 2 + 8) + s["blocks"] * heads * 4,
            mode="entropy",
            scale=self._scale,
        )
        choice = calls.call(
            "cache_selection",
            {
                "complexity": analysis["complexity"],
                "requirement": analysis["requirement"],
                "block_score": self._ranking(calls, layer, query, lengths, scored["block_score"]),
                "num_seq_blocks": num_seq_blocks,
                "history": memory.held["history"],
                "block_table": table,
                "freq": memory.held["freq"],
            },
            lambda s: s["blocks"] * (heads * 4 + 8) + s["rows"] * heads * most * 4,
            num_select_heads=chooser.num_heads,
            max_selected=most,
            **chooser.scalars(),
        )
        watched = {"block_score": scored["block_score"]} if self._watching else {}
        return {
            **watched,
            **{name: analysis[name] for name in ("complexity", "requirement")},
            **{name: choice[name] for name in ("selected", "count", "priority", "row_score")},
        }

    def _work_lists(self, calls: Calls, seq_lens: Held, chosen: Mapping[str, Held]) -> list[dict[str, Held]]:
        """The list over all blocks, and over the chosen ones where a form of attention takes it."""
        lists = [self._balance(calls, seq_lens, None)]
        if self._config.mode != "decisions" and self._config.attention in ("query-aware", "all"):
            lists.append(self._balance(calls, seq_lens, chosen["count"]))
        return lists

    def _attended(self, layer: int, query: Held, seq_lens: Held) -> dict[str, Held]:
        """What every form of attention takes."""
        return {
            "query": query,
            **{name: self.memory.layer(name, layer) for name in POOLS},
            "block_table": self.memory.held["block_table"],
            "seq_lens": seq_lens,
        }

    def _fused(
        self, calls: Calls, layer: int, query: Held, seq_lens: Held, chosen: Mapping[str, Held]
    ) -> dict[str, Held]:
        """Scoring, choice and attention in one launch, where that is asked for; its choice must be that of the
        separate kernels, so it runs before choices are read."""
        model = self._model
        forms = ("query-aware-fused", "all")
        if self._config.mode == "decisions" or self._config.attention not in forms or not self.chooser.can_be_fused:
            return {}
        return calls.call(
            "query_aware_paged_attention",
            {
                **self._attended(layer, query, seq_lens),
                "box": self.memory.layer("box", layer),
                **{name: calls.new(chosen[name].shape, "int32") for name in ("selected", "count")},
            },
            lambda s: attention_bytes(model, s[f"read{layer}"], s["rows"]) + scoring_bytes(model, s["blocks"], 0),
            scale=self._scale,
            reduction=self.chooser.box_reduction,
            **self.chooser.fused_scalars(),
        )

    def _attending(
        self,
        calls: Calls,
        layer: int,
        query: Held,
        seq_lens: Held,
        chosen: Mapping[str, Held],
        lists: list[dict[str, Held]],
        fused: dict[str, Held],
    ) -> dict[str, Held]:
        """The forms of attention that were asked for: log-sum-exps, and outputs where this step is verified."""
        model, form = self._model, self._config.attention
        if self._config.mode == "decisions":
            return {}
        common = self._attended(layer, query, seq_lens)

        def dense(s: Sizes) -> int:
            return attention_bytes(model, s["held"], s["rows"])

        full = part = None
        if form in ("exact", "all"):
            full = calls.call("paged_attention", common, dense, scale=self._scale)
        if form in ("flash", "query-aware", "query-aware-fused", "all"):
            # The dense form runs beside the selected one: without it nobody could say what the selection lost.
            full = calls.call("flash_paged_attention", {**common, **lists[0]}, dense, scale=self._scale)
        if form in ("query-aware", "all"):
            part = calls.call(
                "query_aware_paged_attention",
                {**common, **lists[1], **{name: chosen[name] for name in ("selected", "count")}},
                lambda s: attention_bytes(model, s[f"read{layer}"], s["rows"]),
                scale=self._scale,
            )
        part = fused or part
        if full is None or part is None:
            return {}
        names = ("lse", "output") if self._verifying else ("lse",)
        return {name: full[name] for name in names} | {f"{name}_selected": part[name] for name in names}

    def _balance(self, calls: Calls, seq_lens: Held, count: Held | None) -> dict[str, Held]:
        """The work list over all blocks, or over the kept ones, of which each head keeps the same number."""
        rows, workers = seq_lens.shape[0], self.session.num_workers
        arrays = {"seq_lens": seq_lens} | ({} if count is None else {"kept": calls.first_column(count)})
        outputs = calls.call(
            "dynamic_workload_balancing",
            arrays,
            lambda s: 8 * s["rows"] + 16 * workers,
            num_workers=workers,
            max_segments=workers + rows,
            block_size=self._engine.block_size,
            mode="even-blocks",
        )
        return {name: outputs[name] for name in ("segments", "segment_range", "seq_segments")}

    def _selected(self, now: _Prepared, layer: int, found: Mapping[str, NDArray[Any]]) -> ev.BlocksSelected:
        """The event of what one layer chose, without what attention shows."""
        decoding, slots, context, sizes = now.decoding, now.slots, now.lengths, now.sizes
        count, selected = (found[f"{layer}.{name}"][slots] for name in ("count", "selected"))
        if f"{layer}.fused_count" in found:
            fused = [found[f"{layer}.fused_{name}"][slots] for name in ("count", "selected")]
            if not all(map(np.array_equal, fused, (count, selected))):
                self._report("kernel", "the fused form chose other blocks than the separate kernels")
        bs = self._engine.block_size
        read = tokens_of(selected, count, context, bs, self._model.num_kv_heads)
        sizes[f"read{layer}"] = read
        watched: dict[str, Any] = {}
        if f"{layer}.block_peak" in found:
            num_blocks = -(-context // bs)
            longest = int(num_blocks.max())  # the tables may be much wider
            chosen = chosen_mask(selected, longest)
            everyone = np.array_equal(slots, np.arange(now.rows))  # then nothing has to be gathered
            of = slice(None) if everyone else slots
            truth = Truth(
                score=found[f"{layer}.block_score"][of, :, :longest],
                mass=found[f"{layer}.block_mass"][of, :, :longest],
                peak=found[f"{layer}.block_peak"][of, :, :longest],
                num_blocks=num_blocks,
                scale=self.content.scale,
                reduction=self.chooser.box_reduction,
            )
            watched = self._watcher.observe(layer, decoding, chosen, truth)
        watched |= self._watcher.meters(read, sizes["held"], sizes["blocks"], self.chooser.policy)
        return ev.BlocksSelected(
            layer=layer,
            policy=self._engine.selection,
            seqs=decoding,
            num_heads=count.shape[1],
            counts=count.ravel(),
            selected=selected[selected >= 0],
            requirements=found[f"{layer}.requirement"][slots],
            priorities=found[f"{layer}.priority"][slots],
            complexity=found[f"{layer}.complexity"][slots],
            row_scores=found[f"{layer}.row_score"][slots],
            output_errors=ev.EMPTY_F32,
            tokens_read=read,
            tokens_held=sizes["held"],
            **{"retained": self._room_for_mass(len(decoding)), **watched},
        )

    def _room_for_mass(self, num_seqs: int) -> ev.F32:
        """Where the mass that a choice retained will stand, once both forms of attention are through."""
        both = self._config.attention in ("query-aware", "all") or self.chooser.can_be_fused
        if self._config.mode != "all" or self._config.attention in ("exact", "flash") or not both:
            return ev.EMPTY_F32
        return np.empty(num_seqs * self._model.num_heads, dtype=np.float32)

    def _with_attention(
        self, event: ev.BlocksSelected, layer: int, slots: ev.I32, found: Mapping[str, NDArray[Any]]
    ) -> ev.BlocksSelected:
        """The event with the mass that the choice retained and, in a verified step, the error of its output."""
        if f"{layer}.lse" in found:
            full, part = (found[f"{layer}.{name}"][slots].astype(np.float64) for name in ("lse", "lse_selected"))
            event.retained[:] = np.exp(part - full).ravel()
        if f"{layer}.output" in found:
            dense, sparse = (
                found[f"{layer}.{name}"][slots].astype(np.float64) for name in ("output", "output_selected")
            )
            error = np.linalg.norm(sparse - dense, axis=2) / np.maximum(np.linalg.norm(dense, axis=2), 1e-12)
            event = replace(event, output_errors=error.ravel().astype(np.float32))
        return event

    # ── levels and compaction ───────────────────────────────────────────────────────────────────────────────────

    def adapt(self) -> ev.LevelsAdapted | None:
        """At the end of a window: new protection levels."""
        state, held = self._state, self.memory.held
        if (state.step + 1) % self._window:
            return None
        self.memory.flush()
        names = ("hits", "lookups", "ref", "cached", "freq", "level")
        outputs = self.session.call(
            "adaptive_cache_management", {name: held[name] for name in names}, 21 * len(state.ref)
        )
        decision, level = self.session.read(outputs["decision"], held["level"])
        self.session.fill(held["hits"])
        self.session.fill(held["lookups"])
        named = np.flatnonzero((decision != 0) | (level != state.level)).astype(np.int32)
        return ev.LevelsAdapted(
            window=self._window,
            blocks=named,
            levels=level[named],
            decisions=decision[named],
            decay_permille=default("adaptive.decay"),
            hit_threshold_permille=default("adaptive.hit_threshold"),
            frequency_threshold=default("adaptive.frequency_threshold"),
        )

    def plan_compaction(self) -> ev.CompactionPlanned | None:
        """When fragmentation passes its trigger and the last plan is long enough ago: which blocks move where."""
        rule = self._compaction
        if rule is None or not compaction.due(self._state, rule):
            return None
        self.memory.flush()
        held = self.memory.held
        outputs = self.session.call(
            compaction.KERNEL,
            {"ref": held["ref"], "cached": held["cached"], "uses": held["freq"], "level": held["level"]},
            21 * self._engine.num_blocks,
            max_moves=self._engine.num_blocks,
            **compaction.scalars(rule),
        )
        names = ("metrics", "moves", "num_moves")
        answer = self.session.read(*(outputs[name] for name in names))
        return compaction.decided(dict(zip(names, answer, strict=True)))

    # ── end of the step ─────────────────────────────────────────────────────────────────────────────────────────

    def close_step(self) -> ev.KernelsTimed:
        """The times of this step; compares the backend's tables and counts with the state's where it is verified."""
        self.memory.check_expected()
        if self._verifying:
            self.num_checked += len(PER_STEP)
            self.num_verified += 1
            self.memory.compare_with_state()
        self.memory.flush()
        times: dict[str, list[Any]] = {}
        for done in self.session.end_step():
            entry = times.setdefault(done.kernel, [0, 0.0, 0])
            entry[0] += 1
            entry[1] += done.us
            entry[2] += done.num_bytes
            if done.status:
                self._report("kernel", f"{done.kernel} reports {done.status.name}")
        for message in self.session.take_mismatches():
            self._report("verify", message)
        kernels_us = sum(entry[1] for entry in times.values())
        self.clock_us = kernels_us - times.get("content_generation", (0, 0.0))[1]
        record_us, check_us = (
            1e6 * (now - before)
            for now, before in zip((self._watch.record_s, self._watch.check_s), self._sink_before, strict=True)
        )
        verify_us = self.session.verify_us + 1e6 * self.memory.check_s
        wall_us = 1e6 * (time.perf_counter() - self._step_started)
        self._begin(self._state.step + 1)
        calls, spent, moved = zip(*times.values(), strict=True) if times else ((), (), ())
        return ev.KernelsTimed(
            names=" ".join(times),
            calls=np.array(calls, dtype=np.int32),
            total_us=np.array(spent, dtype=np.float64),
            bytes=np.array(moved, dtype=np.int64),
            provenance=self.session.provenance,
            host_us=max(0.0, wall_us - kernels_us - verify_us - record_us - check_us),
            verify_us=verify_us,
            record_us=record_us,
            check_us=check_us,
        )


def _by_layer(read: list[dict[str, Held]]) -> dict[str, Held]:
    """Results of the layers under names of their own."""
    return {f"{layer}.{name}": held for layer, named in enumerate(read) for name, held in named.items()}
