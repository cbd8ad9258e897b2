"""Cases of the kernels that look after the pool: balance, levels, compaction plans, fragmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyserve_viz.kernels.cases.batch import Arrays
from tinyserve_viz.kernels.conformance import Case
from tinyserve_viz.kernels.definition import Status

Call = tuple[Arrays, dict[str, Any]]


# --- dynamic_workload_balancing ---------------------------------------------------------------------------------------


def _balance(
    lens: Sequence[int], workers: int, mode: str = "even-blocks", kept: Sequence[int] | None = None, size: int = 16
) -> Any:
    def make() -> Call:
        arrays = {"seq_lens": np.array(lens, np.int32)}
        if kept is not None:
            arrays["kept"] = np.array(kept, np.int32)
        return arrays, {"num_workers": workers, "max_segments": len(lens) + workers, "block_size": size, "mode": mode}

    return make


_SKEWED = [700, 16, 0, 33, 5, 100, 64]
_BALANCE = (
    *(
        Case("dynamic_workload_balancing", f"{name}_{mode}", why, _balance(lens, workers, mode))
        for mode in ("even-blocks", "per-seq", "lpt")
        for name, why, lens, workers in (
            ("skewed", "one long sequence and an empty one", _SKEWED, 5),
            ("one_worker", "everything to one", _SKEWED, 1),
            ("more_workers", "more workers than blocks: empty ranges", [20, 5], 9),
            ("hundreds", "the published grid serves 8 workers; this asks for 300", [90] * 41, 300),
            ("sixteen", "the published grid leaves 8 of 16 workers unwritten", [90] * 41, 16),
            ("no_sequence", "a batch of nothing", [], 3),
            ("all_empty", "no token anywhere", [0, 0, 0], 2),
            ("equal", "ties go to the lower id", [48, 48, 48, 48, 48], 3),
        )
    ),
    Case("dynamic_workload_balancing", "one_block", "the smallest work", _balance([1], 1)),
    Case(
        "dynamic_workload_balancing", "exact_share", "cuts fall on the borders of sequences", _balance([32, 32, 64], 4)
    ),
    Case(
        "dynamic_workload_balancing",
        "kept",
        "kept blocks, the partly filled last among them",
        _balance(_SKEWED, 4, kept=[10, 1, 0, 2, 1, 7, 0]),
    ),
    Case(
        "dynamic_workload_balancing",
        "kept_lpt",
        "kept blocks, longest first",
        _balance(_SKEWED, 4, "lpt", kept=[10, 1, 0, 2, 1, 7, 4]),
    ),
    Case(
        "dynamic_workload_balancing",
        "kept_too_many",
        "more kept than there are: cut",
        _balance([20, 40], 2, kept=[5, 1]),
        Status.RANGE,
    ),
    Case("dynamic_workload_balancing", "negative_length", "taken as empty", _balance([20, -1], 2), Status.RANGE),
    Case("dynamic_workload_balancing", "block_size_128", "large blocks", _balance([1000, 129, 128, 127], 6, size=128)),
)


# --- adaptive_cache_management ----------------------------------------------------------------------------------------


def _levels(size: int, bend: Callable[[Arrays], None] | None = None, **scalars: Any) -> Any:
    def make() -> Call:
        rng = np.random.default_rng(size)
        lookups = rng.integers(0, 12, size)
        arrays: Arrays = {
            "lookups": lookups.astype(np.int32), "hits": rng.integers(0, lookups + 1).astype(np.int32),
            "ref": rng.integers(0, 3, size).astype(np.int32), "cached": rng.integers(0, 2, size).astype(np.uint8),
            "freq": rng.integers(0, 20, size).astype(np.int32), "level": rng.integers(0, 5, size).astype(np.int32),
        }  # fmt: skip
        if bend is not None:
            bend(arrays)
        return arrays, scalars

    return make


def _truth_table(arrays: Arrays) -> None:
    """Hit rates below, at and above .6 and .9, by accesses below, at and above 8 and 4, at every level."""
    rates = [(5, 10), (6, 10), (7, 10), (9, 10), (10, 10), (0, 0), (0, 9)]
    grid = [(h, n, f, level) for h, n in rates for f in (0, 3, 4, 5, 8, 9) for level in range(5)]
    for name, column in zip(("hits", "lookups", "freq", "level"), np.array(grid, np.int32).T, strict=True):
        arrays[name] = np.ascontiguousarray(column)
    arrays["ref"], arrays["cached"] = np.ones(len(grid), np.int32), np.zeros(len(grid), np.uint8)


def _large_counts(arrays: Arrays) -> None:
    arrays["lookups"][:] = 2_000_000_011
    arrays["hits"][:] = [1_200_000_006, 1_200_000_007, 1_800_000_009, 1_800_000_010]
    arrays["freq"][:] = [9, 9, 3, 3]
    arrays["ref"][:] = 1


def _at_the_border(arrays: Arrays) -> None:
    """Counts on both sides of 2**20, up to where products in 32 bits go, one kind in each four blocks or mixed."""
    lookups = np.resize(np.array([2**20 - 1, 2**20 - 1, 2**20 - 1, 2**20 - 1, 2**20, 2**20 + 1, 7, 2**31 - 1]), 64)
    share = np.resize(np.array([600, 601, 599, 900, 901, 1000, 0]), 64)
    arrays["lookups"][:] = lookups
    arrays["hits"][:] = lookups * share // 1000
    arrays["freq"][:] = np.resize(np.array([2**20 - 1, 3, 4, 9, 8]), 64)
    arrays["freq"][56:] = [2**20, 2**31 - 1, -1, -(2**31), 3, 4, 5, 9]
    arrays["ref"][:] = 1


_LEVELS = (
    Case("adaptive_cache_management", "one_block", "the smallest pool", _levels(1)),
    Case("adaptive_cache_management", "no_block", "an empty pool", _levels(0)),
    Case(
        "adaptive_cache_management",
        "truth_table",
        "every branch, with equality, at every level",
        _levels(1, _truth_table),
    ),
    Case("adaptive_cache_management", "mixed", "used, cached and free blocks; free ones go to 0", _levels(1009)),
    Case("adaptive_cache_management", "large_counts", "products beyond 32 bits", _levels(4, _large_counts)),
    Case("adaptive_cache_management", "at_the_border", "counts at 2^20", _levels(64, _at_the_border)),
    Case(
        "adaptive_cache_management",
        "odd_threshold",
        "half of an odd threshold is no whole number",
        _levels(500, frequency_threshold=7),
    ),
    Case("adaptive_cache_management", "no_decay", "a decay of 1 keeps the accesses", _levels(77, decay_permille=1000)),
    Case("adaptive_cache_management", "full_decay", "a decay of 0 forgets them", _levels(77, decay_permille=0)),
    Case(
        "adaptive_cache_management",
        "high_threshold",
        "above 2/3 nothing can be lowered",
        _levels(500, hit_threshold_permille=700),
    ),
)


# --- intelligent_memory_compaction ------------------------------------------------------------------------------------


def _plan(ref: Any, cached: Any = (), uses: Any = 0, level: Any = 0, room: int = 50, **scalars: Any) -> Any:
    """`ref` per block, a string such as "1.21" (a dot is 0) or an array."""

    def make() -> Call:
        refs = np.array([int(c) if c != "." else 0 for c in ref] if isinstance(ref, str) else ref, np.int32)
        arrays: Arrays = {
            "ref": refs, "cached": np.zeros(len(refs), np.uint8),
            "uses": np.zeros(len(refs), np.int32), "level": np.zeros(len(refs), np.int32),
        }  # fmt: skip
        arrays["cached"][list(cached)] = 1
        arrays["uses"][:], arrays["level"][:] = uses, level
        return arrays, {"max_moves": room, **scalars}

    return make


def _random_plan(size: int, live: float, seed: int, **scalars: Any) -> Any:
    rng = np.random.default_rng(seed)
    ref = np.where(rng.random(size) < live, rng.integers(1, 3, size), 0)
    cached = np.flatnonzero((ref == 0) & (rng.random(size) < 0.2))
    return _plan(ref, cached, rng.integers(0, 4, size), rng.integers(0, 3, size), room=size, **scalars)


_ALWAYS = {"trigger_permille": 0, "min_moves": 1, "payback_permille": 0}
_UNWEIGHTED = _ALWAYS | {"threshold_permille": 1 << 62}
_PLANS = (
    Case("intelligent_memory_compaction", "one_move", "one hole, one block above it", _plan(".1", **_ALWAYS)),
    Case("intelligent_memory_compaction", "no_block", "an empty pool", _plan("", **_ALWAYS)),
    Case("intelligent_memory_compaction", "all_free", "nothing lives", _plan("....", **_ALWAYS)),
    Case("intelligent_memory_compaction", "all_used", "no hole", _plan("1111", **_ALWAYS)),
    Case("intelligent_memory_compaction", "compact", "all holes lie above", _plan("111...", **_ALWAYS)),
    Case(
        "intelligent_memory_compaction",
        "holes",
        "the lowest hole takes the highest block",
        _plan("1..1.11.1..1", **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "triggered",
        "by default above 1.5 and with four moves",
        _plan("1....1..1...1.1.1.1", uses=1),
    ),
    Case(
        "intelligent_memory_compaction",
        "not_triggered",
        "little fragmentation: no plan",
        _plan("11.1111.11.11.11", uses=1),
    ),
    Case(
        "intelligent_memory_compaction", "at_the_trigger", "exactly 1.5 is not above it", _plan("1.11.1", min_moves=1)
    ),
    Case(
        "intelligent_memory_compaction",
        "too_few_moves",
        "three moves are not worth it",
        _plan("1...1....1...1", uses=1),
    ),
    Case(
        "intelligent_memory_compaction",
        "pinned_top",
        "a heavy block on top: moving the rest gains nothing",
        _plan("1....1..1...1.1.1.2"),
    ),
    Case(
        "intelligent_memory_compaction",
        "all_pinned",
        "nothing is light enough",
        _plan("1....1..1...1.1.1.1", uses=9, **_ALWAYS),
    ),
    Case("intelligent_memory_compaction", "shared_pinned", "shared blocks weigh 4", _plan("..1.2.1.2.1", **_ALWAYS)),
    Case(
        "intelligent_memory_compaction",
        "at_the_threshold",
        "a weight of exactly 2 is pinned",
        _plan("....1111", uses=[0] * 4 + [1, 2, 1, 2], **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "levels_weigh",
        "uses and level add up",
        _plan("....1111", uses=1, level=[0] * 4 + [0, 1, 0, 2], **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "cached_stay",
        "cached blocks are neither moved nor overwritten",
        _plan("..1..1.1", cached=(0, 3, 6), **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "room_for_two",
        "at most as many moves as the list holds",
        _plan("......111111", room=2, **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "min_gain",
        "a move must come down by four ids",
        _plan("1..1.11.1..1", **_ALWAYS | {"min_gain": 4}),
    ),
    Case(
        "intelligent_memory_compaction",
        "unweighted",
        "the published plain kernel: everything moves",
        _random_plan(211, 0.5, 1, **_UNWEIGHTED),
    ),
    Case("intelligent_memory_compaction", "random", "half full, by weight", _random_plan(1009, 0.5, 2, **_ALWAYS)),
    Case("intelligent_memory_compaction", "sparse", "nearly empty", _random_plan(997, 0.05, 3, **_ALWAYS)),
    Case("intelligent_memory_compaction", "dense", "nearly full", _random_plan(997, 0.97, 4, **_ALWAYS)),
    Case(
        "intelligent_memory_compaction",
        "several_stretches",
        "a pool of several thread blocks",
        _random_plan(5003, 0.4, 7, **_ALWAYS | {"min_gain": 300}),
    ),
    Case(
        "intelligent_memory_compaction",
        "several_stretches_little_room",
        "the highest mover that stays is behind the list's end",
        _plan(np.tile([0, 1, 0], 1500), room=37, **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "beyond_a_cluster",
        "a pool of more blocks than a cluster takes",
        _random_plan(9_001, 0.4, 8, **_ALWAYS | {"min_gain": 300}),
    ),
    Case(
        "intelligent_memory_compaction",
        "beyond_a_cluster_little_room",
        "a long pool and a short list",
        _plan(np.tile([0, 1, 0], 3000), room=37, **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "long_list",
        "a list longer than the pool and than a cluster's rows",
        _plan(np.tile([0, 1, 0], 1500), room=9_000, **_ALWAYS),
    ),
    Case(
        "intelligent_memory_compaction",
        "defaults",
        "trigger, payback and weights as they come",
        _random_plan(600, 0.4, 5),
    ),
    Case(
        "intelligent_memory_compaction",
        "other_weights",
        "weights are parameters",
        _random_plan(300, 0.5, 6, **_ALWAYS, weight_uses=100, weight_level=7, weight_shared=1),
    ),
)


# --- fragmentation_analysis -------------------------------------------------------------------------------------------


def _fragments(
    tables: Any,
    lens: Sequence[int],
    num_blocks: int,
    cached: Sequence[int] = (),
    extra: Sequence[int] = (),
    **scalars: Any,
) -> Any:
    """Blocks of `tables` up to each length are referenced, so are `extra` ones (held by no sequence in the call)."""

    def make() -> Call:
        block_table = np.array(tables, np.int32)
        ref = np.zeros(num_blocks, np.int32)
        held = np.concatenate([block_table[block_table >= 0], np.array(extra, np.int32)]).astype(np.int64)
        np.add.at(ref, held[held < num_blocks], 1)
        flags = np.zeros(num_blocks, np.uint8)
        flags[list(cached)] = 1
        arrays: Arrays = {"ref": ref, "cached": flags, "block_table": block_table, "seq_lens": np.array(lens, np.int32)}
        return arrays, {"block_size": 16, "super_size": 4, **scalars}

    return make


def _big_pool(num_blocks: int, super_size: int) -> Any:
    def make() -> Call:
        rng = np.random.default_rng(9)
        width = num_blocks // 64
        block_table = np.full((53, width), -1, np.int32)
        lens = rng.integers(0, width * 16 + 1, 53).astype(np.int32)
        ids = rng.permutation(num_blocks).astype(np.int32)
        inside = np.arange(width) < -(-lens // 16)[:, None]
        block_table[inside] = ids[: inside.sum()]
        ref = np.bincount(block_table[inside], minlength=num_blocks).astype(np.int32)
        cached = ((ref == 0) & (rng.random(num_blocks) < 0.3)).astype(np.uint8)
        arrays: Arrays = {"ref": ref, "cached": cached, "block_table": block_table, "seq_lens": lens}
        return arrays, {"block_size": 16, "super_size": super_size}

    return make


def _nearly_empty_pool(num_blocks: int) -> Any:
    """A run that spans several thread blocks of 1024, ended by the last block."""
    return _fragments([[700, num_blocks - 1]], [32], num_blocks, super_size=1500)


_FRAGMENTS = (
    Case("fragmentation_analysis", "one_token", "one block, nearly all waste", _fragments([[2]], [1], 5)),
    Case("fragmentation_analysis", "empty_pool", "nothing is held: one free run", _fragments([[-1, -1]], [0], 8)),
    Case("fragmentation_analysis", "no_sequence", "a batch of nothing", _fragments(np.zeros((0, 3)), [], 8)),
    Case("fragmentation_analysis", "adjacent", "a sequence in one piece", _fragments([[3, 4, 5]], [40], 9)),
    Case(
        "fragmentation_analysis",
        "scattered",
        "going down is scattered too",
        _fragments([[5, 4, 3], [0, 2, 8]], [48, 33], 9),
    ),
    Case(
        "fragmentation_analysis",
        "shared",
        "a shared block counts once, with its fullest holder",
        _fragments([[1, 2], [1, 7]], [18, 24], 9),
    ),
    Case(
        "fragmentation_analysis",
        "shared_tail",
        "two lengths in one shared block",
        _fragments([[1, 2], [1, 2]], [20, 30], 9),
    ),
    Case(
        "fragmentation_analysis",
        "cached",
        "cached blocks are neither used nor free, and end a run",
        _fragments([[0, 6]], [32], 13, cached=[2, 3, 9]),
    ),
    Case("fragmentation_analysis", "full_pool", "no free block: no run", _fragments([[0, 1, 2, 3]], [64], 4)),
    Case("fragmentation_analysis", "runs", "runs of 1, 2, 4 and 5 blocks", _fragments([[1, 4, 9, 15]], [64], 16)),
    Case(
        "fragmentation_analysis",
        "ragged_super_page",
        "the last super-page is short",
        _fragments([[5, 12]], [32], 13, cached=[9]),
    ),
    Case(
        "fragmentation_analysis",
        "one_super_page",
        "a super-page larger than the pool",
        _fragments([[5, 12]], [32], 13, super_size=1000),
    ),
    Case(
        "fragmentation_analysis",
        "held_elsewhere",
        "blocks held by no sequence of the call are used, not live",
        _fragments([[1, 2]], [20], 9, extra=[5, 6]),
    ),
    Case(
        "fragmentation_analysis",
        "entries_behind_the_end",
        "what lies behind a length is not looked at",
        _fragments([[1, 2, 3]], [16], 9),
    ),
    Case(
        "fragmentation_analysis",
        "hole",
        "a missing block ends a pair",
        _fragments([[1, -1, 2, 3]], [64], 9),
        Status.UNMAPPED,
    ),
    Case("fragmentation_analysis", "id_beyond_pool", "no such block", _fragments([[1, 40, 2]], [48], 9), Status.RANGE),
    Case(
        "fragmentation_analysis",
        "beyond_table",
        "a length the table cannot hold",
        _fragments([[1, 2]], [99], 9),
        Status.RANGE,
    ),
    Case("fragmentation_analysis", "big_pool", "thousands of blocks", _big_pool(2003, 64)),
    Case("fragmentation_analysis", "cluster_of_blocks", "as many as a cluster has threads", _big_pool(8192, 128)),
    Case("fragmentation_analysis", "beyond_a_cluster", "one block more than that", _big_pool(8193, 128)),
    Case("fragmentation_analysis", "long_run", "a free run over many thread blocks", _nearly_empty_pool(4601)),
    Case("fragmentation_analysis", "longer_run", "the same beyond a cluster", _nearly_empty_pool(12_289)),
    Case("fragmentation_analysis", "all_free", "a free run as long as a large pool", _fragments([[-1]], [0], 5000)),
    Case(
        "fragmentation_analysis",
        "no_entry",
        "a table without columns still has lengths to check",
        _fragments(np.zeros((3, 0)), [0, 2, 0], 8),
        Status.RANGE,
    ),
    Case(
        "fragmentation_analysis",
        "wide_rows",
        "rows of more entries than a warp walks",
        _fragments(np.arange(900).reshape(3, 300) * 7 % 1001, [4800, 4793, 2000], 1001),
    ),
)

CASES: tuple[Case, ...] = (*_BALANCE, *_LEVELS, *_PLANS, *_FRAGMENTS)
