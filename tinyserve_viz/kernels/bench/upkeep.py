"""Rows of what looks after the pool: allocation and release, levels, plans, fragmentation, work lists, content."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.bench.attention import balance
from tinyserve_viz.kernels.bench.device import DeviceArray
from tinyserve_viz.kernels.bench.grid import LLAMA3_8B, UNIFORM, level_sizes, pool_sizes, request_counts
from tinyserve_viz.kernels.bench.timing import sets_for
from tinyserve_viz.kernels.bench.work import Bench, Call, Work, WrongResultError, as_reference, same
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

Arrays = dict[str, NDArray[Any]]
POOL = 1 << 20  # blocks
RACE = (1000, 1 << 16)  # requests and blocks of the published search: it reads every block before the one it takes
FORKS = (64, 256)  # sequences and the blocks of each
EDITS = 10_000
CONTENT = (4096, 64)  # tokens and decoding rows
_NUM_SEQS, _PER_SEQ = 1024, 128  # of the tables whose entries are asked for


def _changing(
    bench: Bench, op: str, impl: str, shape: str, kernel: str, arrays: Arrays, scalars: Mapping[str, Any], *state: str,
    check: Any = None, facts: Mapping[str, Any] | None = None,
) -> Work:  # fmt: skip
    """A call that changes `state`, which is put back before every call; its time is without the putting back."""
    pristine = {name: bench.device.put(arrays[name]) for name in state}
    held: dict[str, DeviceArray | NDArray[Any]] = {**arrays, **{name: bench.device.put(arrays[name]) for name in state}}
    call = bench.call(kernel, held, **scalars)
    copies = [(call.arrays[name], pristine[name]) for name in state]
    return Work(
        op, impl, shape, 0, {"": [[call]]}, check or partial(_as_told, bench, arrays, scalars), restores=[copies],
        touched_bytes=sum(array.nbytes for array in arrays.values()), facts=facts or {}, note="state put back before",
    )  # fmt: skip


def _as_told(bench: Bench, arrays: Arrays, scalars: Mapping[str, Any], calls: Sequence[Call]) -> None:
    as_reference(bench.device, calls[0], arrays, scalars)


def _requests(bench: Bench, count: int, num_blocks: int, held: float) -> tuple[Arrays, NDArray[np.int32]]:
    """State of a pool of which a share is held, and `count` requests for empty table entries."""
    rng = bench.rng(count, num_blocks, int(held * 100))
    ref = (rng.random(num_blocks) < held).astype(np.int32)
    cells = rng.permutation(_NUM_SEQS * _PER_SEQ)[:count]
    reqs = np.stack(np.divmod(cells, _PER_SEQ), axis=1).astype(np.int32)
    free = rng.permutation(np.flatnonzero(ref == 0)).astype(np.int32)
    table = np.full((_NUM_SEQS, _PER_SEQ), -1, np.int32)
    state: Arrays = {"block_table": table, "ref": ref, "gen": np.zeros(num_blocks, np.int32)}
    return state | {"reqs": reqs}, free


def allocation(bench: Bench) -> Iterator[Work]:
    """Blocks given out, in free order and by the published race; the published regions; and taken back."""
    num_blocks = POOL
    for count in request_counts(bench.grid):
        for held in (0.0, 0.7):
            state, free = _requests(bench, count, num_blocks, held)
            shape = f"{count} of {num_blocks} blocks, {held:.0%} held"
            facts = {"blocks": num_blocks, "requests": count}
            arrays = state | {"free_order": free}
            if bench.wants("block_allocation"):
                yield _changing(
                    bench, "allocation", "block_allocation, scan", shape, "block_allocation", arrays, {"mode": "scan"},
                    "block_table", "ref", "gen", facts=facts,
                )  # fmt: skip
            if bench.wants("block_deallocation"):
                yield _changing(
                    bench, "release", "block_deallocation", shape, "block_deallocation", _allocated(arrays), {},
                    "block_table", "ref", facts=facts,
                )  # fmt: skip
            if bench.wants("advanced_block_allocation"):
                yield _advanced(bench, shape, state, count, num_blocks, facts)
    if bench.wants("block_allocation"):
        for held in (0.0, 0.9):
            yield _race(bench, *RACE, held)


def _allocated(arrays: Arrays) -> Arrays:
    """The state after the reference served the requests, and the same requests to give back."""
    state = {name: array.copy() for name, array in arrays.items()}
    NumpyBackend().run(kernel_named("block_allocation"), state, {"mode": "scan"})
    return {name: state[name] for name in ("reqs", "block_table", "ref")}


def _race(bench: Bench, count: int, num_blocks: int, held: float) -> Work:
    state, free = _requests(bench, count, num_blocks, held)

    def check(calls: Sequence[Call]) -> None:
        given, table = (bench.device.read(calls[0].arrays[name]) for name in ("allocated", "block_table"))
        if len(np.unique(given)) != count or (state["ref"][given] != 0).any() or (given < 0).any():
            raise WrongResultError("a block was given out twice, or one that was held, or none")
        same("block_table", table[state["reqs"][:, 0], state["reqs"][:, 1]], given)

    return _changing(
        bench, "allocation", "block_allocation, cas", f"{count} of {num_blocks} blocks, {held:.0%} held",
        "block_allocation", state | {"free_order": free}, {"mode": "cas"}, "block_table", "ref", "gen",
        check=check, facts={"blocks": num_blocks, "requests": count},
    )  # fmt: skip


def _advanced(
    bench: Bench, shape: str, state: Arrays, count: int, num_blocks: int, facts: Mapping[str, Any]
) -> Work:  # fmt: skip
    rng = bench.rng(count, 5)
    arrays = state | {
        "request_freq": rng.integers(0, 10, count).astype(np.int32),
        "cached": ((state["ref"] == 0) & (rng.random(num_blocks) < 0.5)).astype(np.uint8),
        "level": rng.integers(0, 5, num_blocks).astype(np.int32),
        "last_use": rng.integers(0, 1 << 40, num_blocks),
        "uses": rng.integers(0, 9, num_blocks).astype(np.int32),
    }
    changed = ("block_table", "ref", "gen", "cached", "level", "last_use", "uses")
    scalars = {"cache_size": num_blocks // 4, "clock": 1 << 41}
    name = "advanced_block_allocation"
    return _changing(bench, "allocation", name, shape, name, arrays, scalars, *changed, facts=facts)


def forks(bench: Bench) -> Iterator[Work]:
    """Sequences shared with a child each."""
    if not bench.wants("block_fork"):
        return
    count, width = FORKS
    table = np.full((2 * count, width), -1, np.int32)
    table[:count] = bench.rng(6).permutation(POOL)[: count * width].reshape(count, width)
    ref = np.zeros(POOL, np.int32)
    ref[table[:count]] = 1
    wanted = [(parent, count + parent, width) for parent in range(count)]
    arrays: Arrays = {"forks": np.array(wanted, np.int32), "block_table": table, "ref": ref}
    shape = f"{count} forks of {width} blocks"
    yield _changing(bench, "fork", "block_fork", shape, "block_fork", arrays, {}, "block_table", "ref")


def bookkeeping(bench: Bench) -> Iterator[Work]:
    """Single entries set and counted up."""
    if not bench.wants("block_bookkeeping"):
        return
    rng, num_blocks, count = bench.rng(7), POOL, EDITS
    table = np.full((_NUM_SEQS, _PER_SEQ), -1, np.int32)
    names = ("ref", "gen", "level", "freq", "hits", "lookups")
    pool: Arrays = {name: rng.integers(0, 9, num_blocks).astype(np.int32) for name in names}
    entries = rng.permutation(_NUM_SEQS * _PER_SEQ)[: count // 2]
    blocks = rng.permutation(num_blocks)[: count // 2]
    edits = np.concatenate([
        np.stack([np.zeros(count // 2), entries, blocks], axis=1),  # set in array 0, the block table
        np.stack([np.full(count // 2, 2 * 2 + 1), blocks, np.ones(count // 2)], axis=1),  # add in array 2, ref
    ]).astype(np.int64)  # fmt: skip
    arrays: Arrays = {
        "edits": edits, "block_table": table, "history": np.zeros_like(table),
        "cached": np.zeros(num_blocks, np.uint8), **pool,
    }  # fmt: skip
    name, shape = "block_bookkeeping", f"{count} entries"
    yield _changing(bench, "bookkeeping", name, shape, name, arrays, {}, "block_table", "ref")


def _pool(bench: Bench, num_blocks: int, key: int) -> tuple[Arrays, Callable[[int], NDArray[np.int32]]]:
    """A pool of which 70 % is held and a tenth cached, and what draws a number for each of its blocks."""
    rng = bench.rng(num_blocks, key)
    state = rng.integers(0, 10, num_blocks)
    basic: Arrays = {"ref": (state < 7).astype(np.int32), "cached": (state == 9).astype(np.uint8)}
    return basic, lambda high: rng.integers(0, high, num_blocks).astype(np.int32)


def levels(bench: Bench) -> Iterator[Work]:
    """Protection levels of whole pools."""
    if not bench.wants("adaptive_cache_management"):
        return
    for num_blocks in level_sizes(bench.grid):
        basic, ints = _pool(bench, num_blocks, 10)
        counters = {name: ints(20) for name in ("hits", "lookups", "freq")} | {"level": ints(5)}
        # decay 1000: every replay finds the same counts
        yield _steady(bench, "adaptive", "adaptive_cache_management", f"blocks={num_blocks}", 30 * num_blocks,
                      basic | counters, {"decay_permille": 1000})  # fmt: skip


def pools(bench: Bench) -> Iterator[Work]:
    """Compaction plans and fragmentation of whole pools."""
    for num_blocks in pool_sizes(bench.grid):
        basic, ints = _pool(bench, num_blocks, 8)
        shape = f"blocks={num_blocks}"
        if bench.wants("intelligent_memory_compaction"):
            yield _steady(bench, "compaction-plan", "intelligent_memory_compaction", shape, 21 * num_blocks,
                          basic | {"uses": ints(3), "level": ints(3)}, {"max_moves": 4096, "trigger_permille": 0,
                                                                        "payback_permille": 0})  # fmt: skip
        if bench.wants("fragmentation_analysis"):
            width = min(256, num_blocks // 64)
            table = bench.rng(num_blocks, 11).permutation(num_blocks).astype(np.int32)[: 64 * width]
            sequences: Arrays = {
                "block_table": table.reshape(64, width), "seq_lens": np.full(64, 16 * width, np.int32)
            }  # fmt: skip
            yield _steady(bench, "fragmentation", "fragmentation_analysis", shape, 9 * num_blocks, basic | sequences,
                          {"block_size": 16})  # fmt: skip


def _steady(
    bench: Bench, op: str, kernel: str, shape: str, num_bytes: int, arrays: Arrays, scalars: Mapping[str, Any]
) -> Work:
    """A call that may run again and again on the same arrays; each set has copies of its own."""
    calls = [[bench.call(kernel, arrays, **scalars)] for _ in range(sets_for(bench.device, num_bytes, 16))]
    return Work(
        op, kernel, shape, num_bytes, {"": calls},
        partial(_as_told, bench, arrays, scalars), facts={"blocks": len(arrays["ref"])},
    )  # fmt: skip


def work_lists(bench: Bench) -> Iterator[Work]:
    """Work lists in each mode."""
    if not bench.wants("dynamic_workload_balancing"):
        return
    for batch, waves, mode in ((64, 3, "even-blocks"), (256, 12, "even-blocks"), (64, 3, "per-seq"), (256, 3, "lpt")):
        lens = np.resize(np.array(UNIFORM, np.int32), batch)
        workers = bench.device.num_sms * waves // LLAMA3_8B.num_kv_heads
        call = balance(bench, lens, workers, mode)
        scalars = {"num_workers": workers, "max_segments": workers + batch, "block_size": 16, "mode": mode}
        yield Work(
            "work-list", f"dynamic_workload_balancing, {mode}", f"B={batch} uniform, {workers} workers", 0,
            {"": [[call]]}, partial(_as_told, bench, {"seq_lens": lens}, scalars), facts={"batch": batch},
        )  # fmt: skip


def content(bench: Bench) -> Iterator[Work]:
    """K, V and queries of the declared content."""
    if not bench.wants("content_generation"):
        return
    model, (tokens, rows), clusters = LLAMA3_8B, CONTENT, 8
    rng = bench.rng(9)
    arrays: Arrays = {
        "token": rng.integers(0, 1 << 62, tokens), "topic": rng.integers(0, clusters, tokens).astype(np.int32),
        "position": np.arange(tokens, dtype=np.int32),
        "centre": rng.standard_normal((model.num_kv_heads, clusters, model.head_dim), np.float32),
        "sink": rng.standard_normal((model.num_kv_heads, model.head_dim), np.float32),
        "query_token": rng.integers(0, tokens, rows).astype(np.int32),
    }  # fmt: skip
    shapes = {
        "kv": ((tokens, 2, model.num_kv_heads, model.head_dim), np.float16),
        "query": ((rows, model.num_heads, model.head_dim), np.float16),
    }
    made = {name: bench.device.empty(*shape) for name, shape in shapes.items()}
    num_bytes = sum(array.nbytes for array in made.values())

    def check(calls: Sequence[Call]) -> None:
        sample = np.array([0, 3, 4, tokens // 2, tokens - 1])
        few = arrays | {name: arrays[name][sample] for name in ("token", "topic", "position")}
        few |= {"query_token": np.array([4], np.int32), "kv": np.empty((5, *made["kv"].shape[1:]), np.float16)}
        few |= {"query": np.empty((1, *made["query"].shape[1:]), np.float16)}
        expected = NumpyBackend().run(kernel_named("content_generation"), few, {"seed": bench.seed})
        same("kv", bench.device.read(calls[0].arrays["kv"])[sample], expected["kv"])

    yield Work(
        "content", "content_generation", f"{model.name} tokens={tokens} rows={rows}", num_bytes,
        {"": [[bench.call("content_generation", {**arrays, **made}, seed=bench.seed)]]}, check,
        facts={"model": model.name, "tokens": tokens},
    )  # fmt: skip
