"""Rows of what chooses blocks and reads only those: scores, top-k, query analysis, block mass, sparse attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.bench.attention import (
    attend,
    attention_bytes,
    facts,
    one_pass,
    tables,
    work_list,
    worker_counts,
)
from tinyserve_viz.kernels.bench.device import DeviceCall
from tinyserve_viz.kernels.bench.grid import (
    BLOCK_SIZE,
    KEPT_TOKENS,
    LLAMA3_8B,
    Model,
    analysis_rows,
    sparse_shapes,
    topk_shapes,
)
from tinyserve_viz.kernels.bench.timing import sets_for
from tinyserve_viz.kernels.bench.work import Bench, Call, Work, close, same
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

KEPT = KEPT_TOKENS // BLOCK_SIZE
MASS = (8, 8192)  # sequences and their tokens
I32 = NDArray[np.int32]


def sparse(bench: Bench) -> Iterator[Work]:
    """Score, choose and attend at long contexts: each alone, as a chain, fused, beside attention to everything."""
    if not bench.wants("block_scoring", "query_aware_paged_attention"):
        return
    for model, batch, length in sparse_shapes(bench.grid):
        label = f"{model.name} B={batch} L={length}"
        if not bench.fits(f"sparse-decode {label}", batch * length // BLOCK_SIZE, model):
            continue
        chain = _Chain(bench, model, batch, length)
        pages = f"{label} pages={length // BLOCK_SIZE}"
        if bench.wants("block_scoring"):
            yield Work(
                "page-score", "block_scoring", pages, chain.box_bytes, {"": [[score] for score in chain.scores]},
                chain.check_score, facts=facts(model, [length] * batch),
            )  # fmt: skip
        if not bench.wants("query_aware_paged_attention"):
            continue
        kept = f"{label} K={KEPT_TOKENS}"
        yield from one_pass(bench, model, kept, [length] * batch, "sparse-decode")
        read = batch * model.num_kv_heads * KEPT_TOKENS * model.head_dim * 4
        common: dict[str, Any] = {"baseline": "flash_paged_attention", "facts": facts(model, [length] * batch)}
        attending = chain.attending()
        yield Work(
            "sparse-decode", "query_aware, blocks given", kept, read, attending,
            chain.check_attention, **common,
        )  # fmt: skip
        yield Work(
            "sparse-decode", "query_aware, three launches", kept, chain.box_bytes + read,
            {name: chain.before(calls) for name, calls in attending.items()},
            chain.check_all, **common,
        )  # fmt: skip
        yield Work(
            "sparse-decode", "query_aware, fused", kept, chain.box_bytes + read, chain.fused(),
            chain.check_attention, **common,
        )  # fmt: skip


class _Chain:
    """Inputs and calls of one shape, for each rotating set; every set has scored and chosen once."""

    def __init__(self, bench: Bench, model: Model, batch: int, length: int) -> None:
        self.bench, self.model = bench, model
        heads, kv_heads, dim = model.num_heads, model.num_kv_heads, model.head_dim
        num_blocks = bench.num_blocks(model)
        self.blocks = length // BLOCK_SIZE
        self.box_bytes = batch * (self.blocks * kv_heads * (4 * dim + 4) + 2 * heads * dim)
        rng = bench.rng(batch, length, 1)
        sets = sets_for(bench.device, self.box_bytes, num_blocks // (batch * self.blocks))
        pool = (num_blocks, BLOCK_SIZE, kv_heads, dim)
        self.keys, self.values = bench.noise("keys"), bench.noise("values")
        self.boxes = bench.noise("boxes")
        self.num_seq_blocks = np.full(batch, self.blocks, np.int32)
        self.lens = np.full(batch, length, np.int32)
        self.scores: list[DeviceCall] = []
        self.choices: list[DeviceCall] = []
        self.inputs: list[dict[str, Any]] = []
        for table in tables(rng, [length] * batch, num_blocks, sets):
            query = rng.standard_normal((batch, heads, dim)).astype(np.float16)
            arrays = {"query": bench.device.put(query), "block_table": bench.device.put(table)}
            score = bench.call(
                "block_scoring",
                {
                    **arrays,
                    "box": self.boxes.view((num_blocks, kv_heads, 2, dim)),
                    "num_seq_blocks": self.num_seq_blocks,
                },
                num_score_heads=kv_heads,
            )
            choice = bench.call(
                "cache_selection",
                {
                    "complexity": np.zeros(batch, np.float32), "requirement": np.zeros(batch, np.int32),
                    "block_score": score.arrays["block_score"], "num_seq_blocks": self.num_seq_blocks,
                    "history": np.zeros_like(table),
                },
                num_select_heads=kv_heads, max_selected=KEPT, budget_blocks=KEPT,
            )  # fmt: skip
            score.launch()
            choice.launch()
            self.scores.append(score)
            self.choices.append(choice)
            self.inputs.append(
                {
                    **arrays,
                    "key_cache": self.keys.view(pool),
                    "value_cache": self.values.view(pool),
                    "seq_lens": self.lens,
                }
            )

    def _lists(self) -> dict[str, dict[str, Any]]:
        """The work lists that are tried over the kept blocks."""
        kept = np.full(len(self.lens), KEPT, np.int32)
        counts = worker_counts(self.bench.device, self.model)
        none: dict[str, dict[str, Any]] = {"no work list": {}}
        return none | {f"{workers} workers": work_list(self.lens, workers, kept) for workers in counts}

    def attending(self) -> dict[str, list[list[DeviceCall]]]:
        """Attention to the blocks that the choice left, for each work list."""
        scale = self.model.head_dim**-0.5
        return {
            name: [
                [
                    self.bench.call(
                        "query_aware_paged_attention",
                        given | {key: choice.arrays[key] for key in ("selected", "count")} | work,
                        scale=scale,
                    )
                ]
                for given, choice in zip(self.inputs, self.choices, strict=True)
            ]
            for name, work in self._lists().items()
        }

    def before(self, calls: Sequence[Sequence[DeviceCall]]) -> list[list[DeviceCall]]:
        """The same calls with scoring and choice before each."""
        return [[score, choice, *call] for score, choice, call in zip(self.scores, self.choices, calls, strict=True)]

    def fused(self) -> dict[str, list[list[DeviceCall]]]:
        """The form that scores and chooses itself."""
        batch, kv_heads = len(self.lens), self.model.num_kv_heads
        box = self.scores[0].arrays["box"]
        empty = {
            "selected": np.full((batch, kv_heads, KEPT), -1, np.int32),
            "count": np.zeros((batch, kv_heads), np.int32),
        }
        scalars = {"scale": self.model.head_dim**-0.5, "budget_blocks": KEPT}
        return {
            name: [
                [self.bench.call("query_aware_paged_attention", given | empty | {"box": box} | work, **scalars)]
                for given in self.inputs
            ]
            for name, work in self._lists().items()
        }

    def _samples(self) -> list[tuple[int, int, slice]]:
        """(sequence, KV head, its query heads)."""
        group = self.model.num_heads // self.model.num_kv_heads
        pairs = {(0, 0), (len(self.lens) - 1, self.model.num_kv_heads - 1)}
        return [(seq, head, slice(head * group, (head + 1) * group)) for seq, head in sorted(pairs)]

    def check_score(self, calls: Sequence[Call]) -> None:
        """Scores of the sampled heads, bit for bit."""
        found = self.bench.device.read(calls[0].arrays["block_score"])
        for seq, head, _ in self._samples():
            same(f"block_score of sequence {seq}, head {head}", found[seq, head], self._score(calls[0], seq, head))

    def _score(self, call: Call, seq: int, head: int) -> NDArray[np.float32]:
        read, model = self.bench.device.read, self.model
        group = model.num_heads // model.num_kv_heads
        block = read(call.arrays["block_table"])[seq, : self.blocks].astype(np.int64)
        box = self.boxes.rows((block * model.num_kv_heads + head) * 2 * model.head_dim, 2 * model.head_dim)
        one = {
            "query": read(call.arrays["query"])[seq : seq + 1, head * group : (head + 1) * group],
            "box": box.reshape(-1, 1, 2, model.head_dim),
            "block_table": np.arange(self.blocks, dtype=np.int32)[None],
            "num_seq_blocks": np.array([self.blocks], np.int32),
        }
        made = NumpyBackend().run(kernel_named("block_scoring"), one, {"num_score_heads": 1})
        scores: NDArray[np.float32] = made["block_score"][0, 0]
        return scores

    def check_attention(self, calls: Sequence[Call]) -> float:
        """Attention over the kept blocks of the sampled heads, which must be those with the best scores."""
        read, model = self.bench.device.read, self.model
        names = ("query", "block_table", "selected", "output")
        query, table, selected, output = (read(calls[-1].arrays[name]) for name in names)
        found, expected = [], []
        for seq, head, heads in self._samples():
            scores = self._score(self.scores[0], seq, head)
            best = best_blocks(scores, KEPT)
            same(f"selected of sequence {seq}, head {head}", selected[seq, head], best)
            found.append(output[seq, heads])
            args = (model, query[seq, heads], table[seq, best], KEPT_TOKENS, head)
            expected.append(attend(self.keys, self.values, *args)[0])
        return close("output", np.concatenate(found), np.concatenate(expected))

    def check_all(self, calls: Sequence[Call]) -> float:
        """Scores, choice and attention."""
        self.check_score(calls)
        scores = self.bench.device.read(calls[0].arrays["block_score"])
        _check_choice(self.bench, scores, [0, len(self.lens) - 1], calls[1:2])
        return self.check_attention(calls)


def best_blocks(scores: NDArray[np.float32], kept: int, sinks: int = 1, recent: int = 1) -> I32:
    """First and last blocks and the best-scored others, ties to the lower id, ascending."""
    order = np.argsort(-scores[sinks : len(scores) - recent], kind="stable")[: kept - sinks - recent] + sinks
    always = [*range(sinks), *range(len(scores) - recent, len(scores))]
    found: I32 = np.sort(np.concatenate([order, np.array(always, order.dtype)])).astype(np.int32)
    return found


def top_k(bench: Bench) -> Iterator[Work]:
    """`cache_selection` as a plain top-k: nothing is kept whatever its score."""
    if not bench.wants("cache_selection"):
        return
    for rows, width, kept in topk_shapes(bench.grid):
        num_bytes = rows * width * 4 + rows * kept * 8  # as the peers count: values and ids of what is kept
        sets = sets_for(bench.device, 2 * rows * width * 4)
        numbers = bench.rng(rows, width).standard_normal(rows * width + sets * 997, np.float32)
        scores = [numbers[i * 997 : i * 997 + rows * width].reshape(rows, 1, width) for i in range(sets)]
        calls = [[_choose(bench, score, kept)] for score in scores]
        yield Work(
            "top-k", "cache_selection", f"rows={rows} n={width} k={kept} fp32", num_bytes, {"": calls},
            partial(_check_choice, bench, scores[0], [0, rows // 2, rows - 1]),
            touched_bytes=2 * rows * width * 4, facts={"rows": rows, "n": width, "k": kept},
        )  # fmt: skip


def _choose(bench: Bench, scores: NDArray[np.float32], kept: int) -> DeviceCall:
    rows, _, width = scores.shape
    arrays = {
        "complexity": np.zeros(rows, np.float32), "requirement": np.zeros(rows, np.int32), "block_score": scores,
        "num_seq_blocks": np.full(rows, width, np.int32), "history": np.zeros((rows, width), np.int32),
    }  # fmt: skip
    sizes = {"num_select_heads": 1, "max_selected": kept, "budget_blocks": kept}
    return bench.call("cache_selection", arrays, sinks=0, recent=0, **sizes)


def _check_choice(
    bench: Bench, scores: NDArray[np.float32], rows: Sequence[int], calls: Sequence[Call]
) -> None:  # fmt: skip
    found = bench.device.read(calls[0].arrays["selected"])
    always = (0, 0) if found.shape[1] == 1 else (1, 1)  # sinks and recent blocks, none in the plain top-k
    for row in rows:
        for head in range(found.shape[1]):
            best = best_blocks(scores[row, head], found.shape[2], *always)
            same(f"selected of row {row}, head {head}", found[row, head], best)


def analysis(bench: Bench) -> Iterator[Work]:
    """Mean square of query rows of 4,096 channels."""
    if not bench.wants("query_analysis"):
        return
    heads, dim, keys = 32, 128, bench.noise("keys")

    def check(rows: int, calls: Sequence[Call]) -> None:
        sample = np.array([0, 1, rows // 3, rows - 1], np.int64)
        query = keys.rows(sample * heads * dim, heads * dim).reshape(-1, heads, dim)
        made = NumpyBackend().run(kernel_named("query_analysis"), {"query": query}, {"mode": "energy"})
        for name in ("complexity", "requirement"):
            same(name, bench.device.read(calls[0].arrays[name])[sample], made[name])

    for rows in analysis_rows(bench.grid):
        if rows * heads * dim > keys.count:
            bench.left_out.append(f"query-analysis tokens={rows}: the queries do not fit in the memory")
            continue
        sets = sets_for(bench.device, 2 * rows * heads * dim, keys.count // (rows * heads * dim))
        views = [keys.view((rows, heads, dim), at=i * rows * heads * dim) for i in range(sets)]
        calls = [[bench.call("query_analysis", {"query": view}, mode="energy")] for view in views]
        yield Work(
            "query-analysis", "query_analysis", f"tokens={rows} hidden=4096", rows * (2 * heads * dim + 8),
            {"": calls}, partial(check, rows), facts={"tokens": rows},
        )  # fmt: skip


def mass(bench: Bench) -> Iterator[Work]:
    """`block_mass`, the share of attention that each block receives."""
    if not bench.wants("block_mass"):
        return
    model, (batch, length) = LLAMA3_8B, MASS
    num_blocks, per_set = bench.num_blocks(model), batch * -(-length // BLOCK_SIZE)
    if not bench.fits(f"block-mass B={batch} L={length}", per_set, model):
        return
    num_bytes = attention_bytes(model, [length] * batch) // 2
    rng, keys = bench.rng(batch, length, 2), bench.noise("keys")
    pool = keys.view((num_blocks, BLOCK_SIZE, model.num_kv_heads, model.head_dim))
    calls = []
    for table in tables(rng, [length] * batch, num_blocks, sets_for(bench.device, num_bytes, num_blocks // per_set)):
        query = rng.standard_normal((batch, model.num_heads, model.head_dim)).astype(np.float16)
        lens = np.full(batch, length, np.int32)
        arrays: dict[str, Any] = {"query": query, "key_cache": pool, "block_table": table, "seq_lens": lens}
        scalars = {"scale": model.head_dim**-0.5, "num_score_heads": model.num_kv_heads}
        calls.append([bench.call("block_mass", arrays, **scalars)])

    def check(calls: Sequence[Call]) -> None:
        read, seq, head, group = bench.device.read, batch - 1, 1, model.num_heads // model.num_kv_heads
        token = np.arange(length)
        block = read(calls[0].arrays["block_table"])[seq, token // BLOCK_SIZE].astype(np.int64)
        starts = ((block * BLOCK_SIZE + token % BLOCK_SIZE) * model.num_kv_heads + head) * model.head_dim
        one = {
            "query": read(calls[0].arrays["query"])[seq : seq + 1, head * group : (head + 1) * group],
            "key_cache": keys.rows(starts, model.head_dim).reshape(-1, BLOCK_SIZE, 1, model.head_dim),
            "block_table": np.arange(length // BLOCK_SIZE, dtype=np.int32)[None],
            "seq_lens": np.array([length], np.int32),
        }
        scalars = {"scale": model.head_dim**-0.5, "num_score_heads": 1}
        made = NumpyBackend().run(kernel_named("block_mass"), one, scalars)
        same("block_mass", read(calls[0].arrays["block_mass"])[seq, head], made["block_mass"][0, 0])

    yield Work(
        "block-mass", "block_mass", f"{model.name} B={batch} L={length}", num_bytes, {"": calls}, check,
        facts=facts(model, [length] * batch),
    )  # fmt: skip
