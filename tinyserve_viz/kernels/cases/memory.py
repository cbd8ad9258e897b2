"""Cases of the kernels that hand out, share, write, copy and move blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.cases.batch import Arrays, layered, paged_batch
from tinyserve_viz.kernels.conformance import Case
from tinyserve_viz.kernels.definition import Status

Call = tuple[Arrays, dict[str, Any]]
Change = Callable[[Arrays], None]

OK, RANGE, UNMAPPED, CONFLICT = Status.OK, Status.RANGE, Status.UNMAPPED, Status.CONFLICT


def _i32(rows: Any, *shape: int) -> NDArray[np.int32]:
    return np.array(rows, np.int32).reshape(*shape) if shape else np.array(rows, np.int32)


def _set(name: str, at: Any, value: Any) -> Change:
    def change(arrays: Arrays) -> None:
        arrays[name][at] = value

    return change


def _drop(*names: str) -> Change:
    def change(arrays: Arrays) -> None:
        for name in names:
            del arrays[name]

    return change


# --- allocation -------------------------------------------------------------------------------------------------------


def _pool(seed: int, rows: int, width: int, num_blocks: int, held: int) -> Arrays:
    """Tables with `held` mapped entries, some of them shared, and counters that are no zeros."""
    rng = np.random.default_rng(seed)
    block_table = np.full((rows, width), -1, np.int32)
    ids = rng.permutation(num_blocks).astype(np.int32)
    cells = rng.permutation(rows * width)[:held]
    block_table.reshape(-1)[cells] = ids[:held]
    if held > 1:
        block_table.reshape(-1)[cells[-1]] = ids[0]
    ref = np.bincount(block_table[block_table >= 0], minlength=num_blocks).astype(np.int32)
    counters = {
        name: rng.integers(1, 9, num_blocks).astype(np.int32) for name in ("uses", "freq", "level", "hits", "lookups")
    }
    box = layered(rng, 2, num_blocks + 1, 4, 2, 32)["box"]
    return {
        "block_table": block_table, "ref": ref, "gen": rng.integers(0, 5, num_blocks).astype(np.int32), "box": box,
        "history": rng.integers(1, 9, (rows, width)).astype(np.int32), **counters,
    }  # fmt: skip


def _alloc(
    reqs: Any,
    seed: int = 1,
    num_blocks: int = 12,
    held: int = 5,
    rows: int = 4,
    bend: Change | None = None,
    **scalars: Any,
) -> Any:
    """A call whose `reqs` are places in the list of empty entries, or (sequence, logical) pairs."""

    def make() -> Call:
        arrays = _pool(seed, rows, 5, num_blocks, held)
        empty = np.argwhere(arrays["block_table"] == -1)
        pairs = [tuple(empty[r]) if isinstance(r, int) else r for r in reqs]
        arrays["reqs"] = _i32(pairs, -1, 2)
        free = np.flatnonzero(arrays["ref"] == 0).astype(np.int32)
        arrays["free_order"] = np.random.default_rng(seed + 100).permutation(free)
        if bend is not None:
            bend(arrays)
        return arrays, scalars

    return make


def _held_in_order(arrays: Arrays) -> None:
    arrays["free_order"][1] = arrays["block_table"].max()


def _no_free(arrays: Arrays) -> None:
    arrays["ref"][:] = 1
    arrays["free_order"] = arrays["free_order"][:0].copy()


def _crowd(mode: str, num_requests: int = 10_000) -> Any:
    def make() -> Call:
        rows, width = 97, 110
        arrays = {
            "block_table": np.full((rows, width), -1, np.int32),
            "ref": np.zeros(11_003, np.int32),
            "gen": np.zeros(11_003, np.int32),
        }
        cells = np.random.default_rng(7).permutation(rows * width)[:num_requests]
        arrays["reqs"] = np.stack(np.divmod(cells, width), axis=1).astype(np.int32)
        arrays["free_order"] = np.random.default_rng(8).permutation(11_003).astype(np.int32)
        return arrays, {"mode": mode}

    return make


def _many_mistakes(shortage: bool, all_or_nothing: int, num_requests: int = 3301) -> Any:
    """Requests of several thread blocks; among them: taken entries, repeated and impossible ones, ids that are held."""

    def make() -> Call:
        rng = np.random.default_rng(17)
        rows, width, num_blocks = 61, 59, 4001
        arrays = _pool(18, rows, width, num_blocks, 701)
        cells = rng.integers(0, rows * width, num_requests)
        reqs = np.stack(np.divmod(cells, width), axis=1).astype(np.int32)
        reqs[rng.permutation(num_requests)[:40]] = (rows, 3)
        reqs[rng.permutation(num_requests)[:40]] = (2, -1)
        free = rng.permutation(np.flatnonzero(arrays["ref"] == 0)).astype(np.int32)
        if not shortage:
            spoilt = min(1500, num_requests // 2)
            free[rng.permutation(spoilt)[:25]] = np.flatnonzero(arrays["ref"])[:25]
            free[rng.permutation(spoilt)[:5]] = num_blocks
        arrays |= {"reqs": reqs, "free_order": free[: num_requests * 4 // 11] if shortage else free}
        return arrays, {"all_or_nothing": all_or_nothing}

    return make


def _unique_owners(inputs: Arrays, expected: Arrays, found: Arrays) -> str:
    """cas: any assignment is right in which nobody shares, nobody is left out and the tables say the same."""
    served = found["allocated"] >= 0
    blocks = found["allocated"][served]
    seq, logical = inputs["reqs"][served].T
    if served.sum() != (expected["allocated"] >= 0).sum() or found["num_allocated"][0] != served.sum():
        return "allocated: another number of requests was served"
    if len(np.unique(blocks)) != len(blocks) or (inputs["ref"][blocks] != 0).any():
        return "allocated: a block has two owners"
    if (found["block_table"][seq, logical] != blocks).any() or (found["ref"][blocks] != 1).any():
        return "block_table: it does not hold what was allocated"
    if (found["gen"] - inputs["gen"]).sum() != len(blocks) or (found["block_table"] >= 0).sum() != (
        inputs["block_table"] >= 0
    ).sum() + len(blocks):
        return "block_table: something else was changed"
    return ""


_TWICE = ((0, 0), (0, 0), (0, 1))
_ALLOCATION = (
    Case("block_allocation", "one", "the smallest request", _alloc([0])),
    Case(
        "block_allocation", "in_free_order", "the i-th request gets the i-th id, not the lowest", _alloc([3, 0, 6, 2])
    ),
    Case("block_allocation", "no_request", "nothing asked, nothing given", _alloc([])),
    Case("block_allocation", "the_last_block", "exactly as many requests as free ids", _alloc(range(7), num_blocks=11)),
    Case("block_allocation", "shortage", "all or nothing: nobody is served", _alloc(range(9)), Status.OOM),
    Case(
        "block_allocation",
        "shortage_partial",
        "the first ones keep their blocks",
        _alloc(range(9), all_or_nothing=0),
        Status.OOM,
    ),
    Case(
        "block_allocation",
        "pool_full",
        "no free id at all",
        _alloc([0, 1], num_blocks=5, held=5, bend=_no_free),
        Status.OOM,
    ),
    Case(
        "block_allocation",
        "mapped_entry",
        "a mapped entry is never overwritten",
        _alloc([1, (2, 3), 0], seed=2, bend=_set("block_table", (2, 3), 0)),
        Status.ALREADY_MAPPED,
    ),
    Case(
        "block_allocation",
        "same_entry_twice",
        "the second request would leak a block",
        _alloc(_TWICE, held=0),
        Status.ALREADY_MAPPED,
    ),
    Case(
        "block_allocation",
        "outside_table",
        "ids outside the table take no block",
        _alloc([0, (4, 0), (-1, 0), (0, 5), (0, -1), 1]),
        RANGE,
    ),
    Case(
        "block_allocation",
        "held_id_in_order",
        "a free order that names a held block",
        _alloc([0, 1, 2], bend=_held_in_order),
        CONFLICT,
    ),
    Case(
        "block_allocation",
        "bad_id_in_order",
        "a free order that names no block",
        _alloc([0, 1, 2], bend=_set("free_order", 0, 77)),
        RANGE,
    ),
    Case(
        "block_allocation",
        "counters_absent",
        "optional arrays may be missing",
        _alloc([0, 1], bend=_drop("uses", "freq", "level", "hits", "lookups", "history", "box")),
    ),
    Case("block_allocation", "ten_thousand", "unique owners far beyond one thread block", _crowd("scan")),
    Case(
        "block_allocation",
        "many_mistakes",
        "repeated, taken and impossible entries, ids that are held, over several thread blocks",
        _many_mistakes(shortage=False, all_or_nothing=1),
        RANGE | CONFLICT | Status.ALREADY_MAPPED,
    ),
    Case("block_allocation", "one_cluster", "as many as a cluster serves", _crowd("scan", 1024)),
    Case("block_allocation", "two_hundred", "as many as one thread block serves", _crowd("scan", 256)),
    *(
        Case(
            "block_allocation",
            f"{count}_{name}",
            "the same mistakes where all requests are served at once",
            _many_mistakes(name != "mistakes", int(name == "or_none"), count),
            RANGE | (CONFLICT if name == "mistakes" else Status.OOM) | Status.ALREADY_MAPPED,
        )
        for count in (251, 1021)
        for name in ("mistakes", "and_short", "or_none")
    ),
    Case(
        "block_allocation",
        "many_and_short",
        "more requests than ids over several thread blocks: the first ones are served",
        _many_mistakes(shortage=True, all_or_nothing=0),
        RANGE | Status.ALREADY_MAPPED | Status.OOM,
    ),
    Case(
        "block_allocation",
        "many_or_none",
        "the same, all or nothing: no mark stays in the table",
        _many_mistakes(shortage=True, all_or_nothing=1),
        RANGE | Status.ALREADY_MAPPED | Status.OOM,
    ),
    Case(
        "block_allocation",
        "cas",
        "the published search: any unique assignment is right",
        _alloc([3, 0, 5], mode="cas"),
        OK,
        _unique_owners,
    ),
    Case("block_allocation", "cas_crowd", "ten thousand threads race", _crowd("cas"), OK, _unique_owners),
)


def _advanced(reqs: Any, freq: Sequence[int], seed: int = 3, bend: Change | None = None, **scalars: Any) -> Any:
    def make() -> Call:
        arrays, _ = _alloc(reqs, seed, num_blocks=24, held=9, rows=6)()
        del arrays["free_order"]
        rng = np.random.default_rng(seed)
        arrays["cached"] = ((arrays["ref"] == 0) & (rng.random(24) < 0.4)).astype(np.uint8)
        arrays["last_use"] = rng.integers(0, 6, 24).astype(np.int64)
        arrays["level"] = rng.integers(0, 3, 24).astype(np.int32)
        arrays["request_freq"] = _i32(freq)
        if bend is not None:
            bend(arrays)
        return arrays, {"cache_size": 8, "clock": 100, **scalars}

    return make


def _equal_stamps(arrays: Arrays) -> None:
    for name in ("last_use", "level", "cached"):
        arrays[name][:] = 0


def _advanced_many(hot_share: float, spread: bool = True, cache_size: int = 900, short: bool = False) -> Any:
    """Requests of several thread blocks, with mistakes; without `spread` one bucket of keys holds nearly all."""

    def make() -> Call:
        rng = np.random.default_rng(23)
        num_blocks, num_requests = 3607, 1301
        arrays = _pool(24, 61, 59, num_blocks, 701)
        reqs = np.stack(np.divmod(rng.integers(0, 61 * 59, num_requests), 59), axis=1).astype(np.int32)
        reqs[7], reqs[1200] = (61, 3), reqs[3]
        arrays["reqs"] = reqs
        arrays["request_freq"] = np.where(rng.random(num_requests) < hot_share, _HOT, _COLD).astype(np.int32)
        if short:
            arrays["ref"][rng.permutation(num_blocks)[:2600]] += 1
        free = arrays["ref"] == 0
        arrays["cached"] = (free & (rng.random(num_blocks) < (0.4 if spread else 0))).astype(np.uint8)
        arrays["level"] = rng.integers(-2 if spread else 0, 3 if spread else 1, num_blocks).astype(np.int32)
        stamps = rng.integers(-(1 << 60), 1 << 60, num_blocks)
        if not spread:
            stamps = (1 << 40) - stamps % 99
        arrays["last_use"] = np.where(rng.random(num_blocks) < 0.3, -(1 << 60), stamps).astype(np.int64)
        if not spread:
            arrays["last_use"][free] = stamps[free]
            arrays["last_use"][np.flatnonzero(free)[-1]] = 0
        return arrays, {"cache_size": cache_size, "clock": 1 << 50, "all_or_nothing": 0}

    return make


_COLD, _HOT = 0, 9
_ADVANCED = (
    Case(
        "advanced_block_allocation",
        "many",
        "requests of several thread blocks, with mistakes among them",
        _advanced_many(0.3),
        RANGE | Status.ALREADY_MAPPED,
    ),
    Case(
        "advanced_block_allocation",
        "many_in_one_bucket",
        "keys that hardly differ",
        _advanced_many(0.2, spread=False, cache_size=300),
        RANGE | Status.ALREADY_MAPPED,
    ),
    Case(
        "advanced_block_allocation",
        "many_and_the_hot_run_dry",
        "from some request on the hot ones go to the cold region",
        _advanced_many(0.9, cache_size=500),
        RANGE | Status.ALREADY_MAPPED,
    ),
    Case(
        "advanced_block_allocation",
        "many_and_short",
        "the pool runs dry",
        _advanced_many(0.5, short=True),
        RANGE | Status.ALREADY_MAPPED | Status.OOM,
    ),
    Case("advanced_block_allocation", "one_cold", "a cold request avoids the hot region", _advanced([0], [_COLD])),
    Case("advanced_block_allocation", "one_hot", "a hot request takes the hot region", _advanced([0], [_HOT])),
    Case("advanced_block_allocation", "no_request", "nothing asked", _advanced([], [])),
    Case(
        "advanced_block_allocation",
        "at_the_threshold",
        "hot is strictly above the threshold",
        _advanced([0, 1], [5, 6]),
    ),
    Case(
        "advanced_block_allocation",
        "hot_spills",
        "more hot requests than hot blocks: they spill",
        _advanced(range(9), [_HOT] * 9),
    ),
    Case(
        "advanced_block_allocation",
        "cold_spills",
        "cold requests enter the hot region only when nothing else is left",
        _advanced(range(10), [_HOT] + [_COLD] * 9, cache_size=16),
    ),
    Case("advanced_block_allocation", "mixed", "both kinds in turn", _advanced(range(10), [_HOT, _COLD] * 5)),
    Case(
        "advanced_block_allocation",
        "whole_pool",
        "every free block is handed out, cached ones last",
        _advanced(range(16), [_COLD, _HOT, _COLD, _COLD] * 4),
    ),
    Case(
        "advanced_block_allocation",
        "all_hot",
        "the cold region serves hot requests to its last block",
        _advanced(range(16), [_HOT] * 16, seed=4),
    ),
    Case("advanced_block_allocation", "shortage", "all or nothing", _advanced(range(17), [_COLD] * 17), Status.OOM),
    Case(
        "advanced_block_allocation",
        "shortage_partial",
        "the first ones are served",
        _advanced(range(20), [_COLD, _HOT] * 10, all_or_nothing=0),
        Status.OOM,
    ),
    Case(
        "advanced_block_allocation",
        "no_hot_region",
        "a region of nothing",
        _advanced(range(5), [_HOT, _COLD] * 2 + [_HOT], cache_size=0),
    ),
    Case(
        "advanced_block_allocation",
        "all_hot_region",
        "a region of everything",
        _advanced(range(5), [_HOT, _COLD] * 2 + [_COLD], cache_size=24),
    ),
    Case(
        "advanced_block_allocation",
        "equal_stamps",
        "ties go to the lower id",
        _advanced(range(6), [_COLD, _HOT] * 3, bend=_equal_stamps),
    ),
    Case(
        "advanced_block_allocation",
        "bad_requests",
        "outside the table, and one entry twice",
        _advanced([0, (9, 9), 1, 1, 2], [_COLD, _HOT, _COLD, _HOT, _COLD]),
        RANGE | Status.ALREADY_MAPPED,
    ),
)


# --- release and fork -------------------------------------------------------------------------------------------------


def _release(reqs: Any, bend: Change | None = None) -> Any:
    """Three rows over nine blocks: row 1 shares row 0's first two blocks."""

    def make() -> Call:
        block_table = _i32([[4, 1, 7, -1], [4, 1, 2, 8], [0, -1, -1, -1]])
        ref = np.bincount(block_table[block_table >= 0], minlength=9).astype(np.int32)
        arrays = {"block_table": block_table, "ref": ref, "reqs": _i32(reqs, -1, 2)}
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


def _release_many() -> Call:
    rng = np.random.default_rng(5)
    block_table = rng.integers(0, 700, (61, 67)).astype(np.int32)
    ref = np.bincount(block_table.reshape(-1), minlength=701).astype(np.int32)
    cells = rng.permutation(block_table.size)[:3001]
    return {"block_table": block_table, "ref": ref, "reqs": np.stack(np.divmod(cells, 67), axis=1).astype(np.int32)}, {}


def _release_alone(num_requests: int, shared_last: bool = False) -> Any:
    """Blocks with one reference each; with `shared_last` the last one stands in two entries."""

    def make() -> Call:
        rng = np.random.default_rng(15)
        block_table = rng.permutation(61 * 67).reshape(61, 67).astype(np.int32)
        cells = rng.permutation(block_table.size)[:num_requests]
        if shared_last:
            block_table.reshape(-1)[cells[-1]] = block_table.reshape(-1)[cells[0]]
        ref = np.bincount(block_table.reshape(-1), minlength=block_table.size).astype(np.int32)
        reqs = np.stack(np.divmod(cells, 67), axis=1).astype(np.int32)
        return {"block_table": block_table, "ref": ref, "reqs": reqs}, {}

    return make


def _release_mistakes(num_requests: int, largest_id: bool = False) -> Any:
    """Shared blocks, entries named twice, empty and bad ones, counts that are too low, in no order."""

    def make() -> Call:
        rng = np.random.default_rng(6)
        arrays, _ = _release_many()
        block_table = arrays["block_table"]
        block_table[rng.random(block_table.shape) < 0.05] = -1
        block_table[3, :9] = 5_000
        block_table[4, :9] = -7
        if largest_id:
            block_table[5, :3] = np.iinfo(np.int32).max
        arrays["ref"][rng.permutation(701)[:60]] //= 3 if num_requests > 500 else 99  # few requests find none at all
        cells = rng.integers(0, block_table.size, num_requests)
        cells[: num_requests // 8] = np.arange(num_requests // 8)
        reqs = np.stack(np.divmod(rng.permutation(cells), 67), axis=1).astype(np.int32)
        reqs[7], reqs[-1] = (61, 0), (0, 67)
        return arrays | {"reqs": reqs}, {}

    return make


_MISTAKEN = RANGE | UNMAPPED | Status.DOUBLE_FREE
_RELEASE = (
    Case("block_deallocation", "one", "the smallest release", _release([(2, 0)])),
    Case("block_deallocation", "no_request", "nothing to do", _release([])),
    Case("block_deallocation", "tail_first", "freed in the order of the requests", _release([(0, 2), (0, 1), (0, 0)])),
    Case(
        "block_deallocation",
        "shared",
        "a shared block is freed by its last holder, in that holder's place",
        _release([(0, 0), (1, 3), (1, 0), (1, 1), (0, 1)]),
    ),
    Case(
        "block_deallocation",
        "everything",
        "back to an empty pool",
        _release([(2, 0), (1, 3), (1, 2), (1, 1), (1, 0), (0, 2), (0, 1), (0, 0)]),
    ),
    Case("block_deallocation", "empty_entry", "-1 is no block", _release([(0, 3), (2, 0)]), UNMAPPED),
    Case(
        "block_deallocation",
        "same_entry_twice",
        "the entry is cleared by the first, so the second finds none",
        _release([(2, 0), (2, 0)]),
        UNMAPPED,
    ),
    Case(
        "block_deallocation",
        "double_free",
        "a count of 0 stays 0, or the block is lost for ever",
        _release([(2, 0), (0, 2)], _set("ref", 0, 0)),
        Status.DOUBLE_FREE,
    ),
    Case(
        "block_deallocation",
        "too_many_releases",
        "two entries, one reference: the second is refused",
        _release([(0, 0), (1, 0), (1, 2)], _set("ref", 4, 1)),
        Status.DOUBLE_FREE,
    ),
    Case("block_deallocation", "outside_table", "no such entry", _release([(3, 0), (0, 4), (-1, 0), (2, 0)]), RANGE),
    Case(
        "block_deallocation",
        "bad_id",
        "an entry that names no block is cleared",
        _release([(2, 0), (0, 0)], _set("block_table", (2, 0), 40)),
        RANGE,
    ),
    Case("block_deallocation", "thousands", "shared blocks over many thread blocks", _release_many),
    Case("block_deallocation", "alone", "nobody shares, one thread block", _release_alone(256)),
    Case("block_deallocation", "alone_in_a_cluster", "nobody shares, eight thread blocks", _release_alone(1024)),
    Case("block_deallocation", "alone_in_many", "nobody shares, more than a cluster", _release_alone(2047)),
    Case("block_deallocation", "all_but_one", "the first and the last share a block", _release_alone(1023, True)),
    Case(
        "block_deallocation",
        "two_hundred_mistakes",
        "every mistake at once within one thread block",
        _release_mistakes(253),
        _MISTAKEN,
    ),
    Case(
        "block_deallocation",
        "a_thousand_mistakes",
        "every mistake at once within one cluster",
        _release_mistakes(1021),
        _MISTAKEN,
    ),
    Case(
        "block_deallocation",
        "many_mistakes",
        "every mistake at once over several thread blocks",
        _release_mistakes(4507),
        _MISTAKEN,
    ),
    Case(
        "block_deallocation",
        "largest_id",
        "the largest number that an entry can hold is no id either",
        _release_mistakes(4507, largest_id=True),
        _MISTAKEN,
    ),
)


def _fork(forks: Any, bend: Change | None = None) -> Any:
    def make() -> Call:
        block_table = np.full((6, 5), -1, np.int32)
        block_table[0, :4], block_table[1, :2], block_table[5, 1] = [3, 9, 1, 4], [7, 3], 6
        arrays = {
            "block_table": block_table,
            "ref": np.bincount(block_table[block_table >= 0], minlength=10).astype(np.int32),
            "history": np.arange(30, dtype=np.int32).reshape(6, 5),
            "forks": _i32(forks, -1, 3),
        }
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


_FORK = (
    Case("block_fork", "one", "the child shares and every count rises", _fork([(0, 2, 3)])),
    Case("block_fork", "nothing_shared", "a fork of no block", _fork([(0, 2, 0)])),
    Case("block_fork", "no_fork", "nothing to do", _fork([])),
    Case("block_fork", "siblings", "one block rises by as many as share it", _fork([(0, 2, 4), (0, 3, 2), (1, 4, 2)])),
    Case("block_fork", "parent_too_short", "entries that the parent lacks are skipped", _fork([(1, 2, 4)]), UNMAPPED),
    Case(
        "block_fork",
        "child_in_use",
        "what the child holds is not overwritten",
        _fork([(0, 5, 3)]),
        Status.ALREADY_MAPPED,
    ),
    Case(
        "block_fork",
        "child_is_parent",
        "the outcome would depend on the order: nothing happens",
        _fork([(0, 2, 2), (2, 3, 1)]),
        CONFLICT,
    ),
    Case(
        "block_fork",
        "child_twice",
        "two parents for one child: nothing happens",
        _fork([(0, 2, 2), (1, 2, 2)]),
        CONFLICT,
    ),
    Case("block_fork", "own_child", "a row cannot be its own child", _fork([(0, 0, 2)]), CONFLICT),
    Case(
        "block_fork",
        "outside_table",
        "that fork is skipped, the others are done",
        _fork([(0, 6, 1), (-1, 2, 1), (0, 2, 6), (0, 2, -1), (0, 3, 2)]),
        RANGE,
    ),
    Case(
        "block_fork",
        "freed_block",
        "a block that nobody holds is not revived",
        _fork([(0, 2, 4)], _set("ref", 9, 0)),
        UNMAPPED,
    ),
    Case(
        "block_fork",
        "bad_id",
        "an entry that names no block",
        _fork([(0, 2, 4)], _set("block_table", (0, 1), 10)),
        RANGE,
    ),
    Case("block_fork", "history_absent", "the access history is optional", _fork([(0, 2, 3)], _drop("history"))),
)


# --- copy and compaction ----------------------------------------------------------------------------------------------


def _copy(
    ops: Any,
    bend: Change | None = None,
    num_layers: int = 1,
    spare: int = 0,
    size: int = 16,
    heads: int = 2,
    dim: int = 64,
) -> Any:
    """Ten blocks, the odd ones with one reference; `spare` blocks lie between two layers and must stay as they are."""

    def make() -> Call:
        arrays = layered(np.random.default_rng(11), num_layers, 10 + spare, size, heads, dim)
        arrays["ref"] = _i32([2, 1, 3, 1, 2, 1, 2, 1, 0, 1])
        arrays["ops"] = _i32(ops, -1, 3)
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


def _copy_many(bend: Change | None = None) -> Any:
    """More operations than one thread block checks, on small blocks."""

    def make() -> Call:
        rng = np.random.default_rng(12)
        arrays = layered(rng, 1, 2700, 2, 1, 8)
        ids = rng.permutation(2700).astype(np.int32)
        arrays["ref"] = np.ones(2700, np.int32)
        arrays["ops"] = np.stack([ids[:1300], ids[1300:2600], rng.integers(1, 3, 1300)], axis=1).astype(np.int32)
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


def _late_chain(arrays: Arrays) -> None:
    arrays["ops"][1299, 1] = arrays["ops"][3, 0]


def _late_mistakes(arrays: Arrays) -> None:
    _late_chain(arrays)
    arrays["ops"][1200, 2] = 3


def _zeros_and_nan(arrays: Arrays) -> None:
    arrays["key_cache"][0, 0, :3, 0, :4] = np.float16(-0.0)
    arrays["key_cache"][0, 0, 1, 1, :] = np.nan


_COPY = (
    Case("fused_block_copy", "one_block", "K, V and the box of one block", _copy([(0, 1, 16)])),
    Case("fused_block_copy", "no_operation", "nothing to copy", _copy([])),
    Case("fused_block_copy", "part", "five tokens: the rest stays, the box holds the five", _copy([(0, 1, 5)])),
    Case("fused_block_copy", "one_token", "the smallest part", _copy([(2, 3, 1)])),
    Case(
        "fused_block_copy",
        "several",
        "whole and partial operations in one launch",
        _copy([(0, 1, 16), (2, 5, 7), (4, 9, 15), (6, 3, 16)]),
    ),
    Case("fused_block_copy", "one_source_twice", "two copies of one source", _copy([(0, 1, 16), (0, 3, 9)])),
    Case(
        "fused_block_copy",
        "layers",
        "all layers in one launch; blocks between layers stay",
        _copy([(0, 1, 16), (2, 7, 3)], num_layers=3, spare=2),
    ),
    Case(
        "fused_block_copy",
        "odd_shape",
        "96 channels of 3 heads in blocks of 8",
        _copy([(0, 1, 8), (2, 7, 3)], size=8, heads=3, dim=96),
    ),
    Case("fused_block_copy", "box_absent", "boxes are optional", _copy([(0, 1, 16), (2, 7, 3)], _drop("box"))),
    Case(
        "fused_block_copy",
        "zeros_and_nan",
        "a box made again has no -0 and ignores NaN",
        _copy([(0, 1, 4)], _zeros_and_nan),
    ),
    Case(
        "fused_block_copy",
        "onto_itself",
        "source = destination does nothing and breaks no rule",
        _copy([(0, 0, 16), (2, 3, 16)]),
    ),
    Case(
        "fused_block_copy",
        "too_many_tokens",
        "a count beyond the block would run into the next one",
        _copy([(0, 1, 17)]),
        RANGE,
    ),
    Case("fused_block_copy", "no_tokens", "a count of 0 is a mistake", _copy([(2, 3, 16), (0, 1, 0)]), RANGE),
    Case(
        "fused_block_copy",
        "id_outside",
        "source or destination outside the pool",
        _copy([(2, 3, 16), (0, 10, 16), (-1, 1, 16)]),
        RANGE,
    ),
    Case(
        "fused_block_copy",
        "chained",
        "a destination that is a source: the outcome would be a race",
        _copy([(0, 1, 16), (1, 3, 16)]),
        CONFLICT,
    ),
    Case(
        "fused_block_copy",
        "same_destination",
        "two sources for one destination",
        _copy([(0, 1, 16), (2, 1, 16)]),
        CONFLICT,
    ),
    Case(
        "fused_block_copy",
        "shared_destination",
        "a destination that others read",
        _copy([(0, 1, 16), (0, 2, 16)]),
        CONFLICT,
    ),
    Case("fused_block_copy", "free_destination", "a destination that nobody allocated", _copy([(0, 8, 16)]), CONFLICT),
    Case("fused_block_copy", "many", "a batch that several thread blocks check", _copy_many()),
    Case(
        "fused_block_copy",
        "many_with_a_chain",
        "a chain across thread blocks refuses them all",
        _copy_many(_late_chain),
        CONFLICT,
    ),
    Case(
        "fused_block_copy",
        "many_with_two_mistakes",
        "a count outside is reported before a conflict",
        _copy_many(_late_mistakes),
        RANGE,
    ),
)


def _compact(
    moves: Any, bend: Change | None = None, spare_rows: int = 2, num_layers: int = 2, optional: bool = True
) -> Any:
    """Twelve blocks; 7, 9 and 11 are live (9 shared), 8 is cached, 0, 2, 3 and 10 are free."""

    def make() -> Call:
        rng = np.random.default_rng(13)
        arrays = layered(rng, num_layers, 13, 8, 2, 32)
        arrays["block_table"] = _i32([[1, 9, 4, -1], [5, 9, 11, -1], [6, 7, -1, -1]])
        arrays["ref"] = _i32([0, 1, 0, 0, 1, 1, 1, 1, 0, 2, 0, 1])
        arrays["gen"] = np.arange(12, dtype=np.int32)
        arrays["cached"] = (np.arange(12) == 8).astype(np.uint8)
        if optional:
            for name in ("level", "uses", "freq", "hits", "lookups"):
                arrays[name] = rng.integers(1, 9, 12).astype(np.int32)
            arrays["last_use"] = rng.integers(1, 99, 12).astype(np.int64)
        else:
            del arrays["box"]
        arrays["moves"] = np.full((len(moves) + spare_rows, 2), -1, np.int32)
        arrays["moves"][: len(moves)] = _i32(moves, -1, 2)
        arrays["num_moves"] = _i32([len(moves)])
        arrays["old_to_new"] = np.arange(12, dtype=np.int32)
        for source, target in moves:
            if 0 <= source < 12:
                arrays["old_to_new"][source] = target
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


def _compact_many(bend: Change | None = None) -> Any:
    """A pool and a plan that several thread blocks check, on small blocks."""

    def make() -> Call:
        rng = np.random.default_rng(14)
        num_blocks, count = 3001, 1301
        arrays = layered(rng, 1, num_blocks, 2, 1, 8)
        ids = rng.permutation(num_blocks).astype(np.int32)
        source, target = ids[:count], ids[count : 2 * count]
        arrays["ref"] = np.ones(num_blocks, np.int32)
        arrays["ref"][target] = 0
        arrays["gen"] = rng.integers(0, 9, num_blocks).astype(np.int32)
        arrays["cached"] = np.zeros(num_blocks, np.uint8)
        arrays["block_table"] = rng.permutation(ids[arrays["ref"][ids] > 0]).reshape(-1, 17)
        arrays["moves"] = np.stack([source, target], axis=1)
        arrays["num_moves"] = _i32([count])
        arrays["old_to_new"] = np.arange(num_blocks, dtype=np.int32)
        arrays["old_to_new"][source] = target
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


def _stray_mapping(arrays: Arrays) -> None:
    stays = np.setdiff1d(np.arange(3001), arrays["moves"])
    arrays["old_to_new"][stays[-1]] = stays[0]


_COMPACT = (
    Case("memory_compaction", "many", "a plan that several thread blocks check", _compact_many()),
    Case(
        "memory_compaction",
        "many_and_stray",
        "a block that does not move is mapped elsewhere, far from the moves",
        _compact_many(_stray_mapping),
        CONFLICT,
    ),
    Case("memory_compaction", "one_move", "K, V, box, tables, references and counters follow", _compact([(11, 0)])),
    Case(
        "memory_compaction",
        "several",
        "a shared block moves and both tables follow",
        _compact([(11, 0), (9, 2), (7, 3)]),
    ),
    Case("memory_compaction", "no_move", "an empty plan", _compact([])),
    Case("memory_compaction", "one_layer", "the plain case", _compact([(11, 0), (9, 2)], num_layers=1, spare_rows=0)),
    Case("memory_compaction", "cached_moves", "a cached block may move", _compact([(8, 0)])),
    Case("memory_compaction", "bare", "no box, no counters", _compact([(11, 0), (9, 2)], optional=False)),
    Case(
        "memory_compaction",
        "rows_beyond_count",
        "rows behind num_moves do not count",
        _compact([(11, 0)], _set("moves", 1, [9, 2])),
    ),
    Case(
        "memory_compaction",
        "damaged_entries",
        "table entries that are no ids stay",
        _compact([(11, 0)], _set("block_table", (0, 3), 99)),
    ),
    Case(
        "memory_compaction",
        "two_to_one",
        "the published mapping i/2: two blocks into one",
        _compact([(11, 3), (9, 3)]),
        CONFLICT,
    ),
    Case("memory_compaction", "same_source", "one block to two places", _compact([(11, 0), (11, 2)]), CONFLICT),
    Case("memory_compaction", "destination_in_use", "a live block would be overwritten", _compact([(11, 5)]), CONFLICT),
    Case(
        "memory_compaction", "destination_cached", "a cached block would be overwritten", _compact([(11, 8)]), CONFLICT
    ),
    Case(
        "memory_compaction",
        "chain",
        "a destination that is a source",
        _compact([(11, 0), (9, 11)], _set("ref", 0, 0)),
        CONFLICT,
    ),
    Case("memory_compaction", "free_source", "nothing there to move", _compact([(10, 0)]), CONFLICT),
    Case(
        "memory_compaction",
        "map_disagrees",
        "old_to_new moves a block that the moves do not",
        _compact([(11, 0)], _set("old_to_new", 9, 2)),
        CONFLICT,
    ),
    Case("memory_compaction", "id_outside", "no such block", _compact([(11, 0), (12, 2)]), RANGE),
    Case(
        "memory_compaction",
        "count_outside",
        "more moves than rows",
        _compact([(11, 0)], _set("num_moves", 0, 9)),
        RANGE,
    ),
)


# --- write ------------------------------------------------------------------------------------------------------------


def _write(
    starts: Sequence[int], ends: Sequence[int], bend: Change | None = None, seed: int = 21, pad: int = 0, **shape: Any
) -> Any:
    """Sequences that hold `starts` tokens and grow to `ends`; `pad` rows of `kv` lie unused between the sequences."""

    def make() -> Call:
        rng = np.random.default_rng(seed)
        grown = paged_batch(rng, ends, **shape)
        num_kv_heads, head_dim = grown["key_cache"].shape[2:]
        new = np.array(ends) - np.array(starts)
        token_start = np.cumsum(new + pad) - new
        kv = rng.standard_normal((int((new + pad).sum()), 2, num_kv_heads, head_dim)).astype(np.float16)
        arrays = {
            "kv": kv, "token_start": token_start.astype(np.int64),
            "start_pos": _i32(starts), "seq_lens": grown["seq_lens"],
            **{name: grown[name] for name in ("block_table", "ref", "key_cache", "value_cache", "box")},
        }  # fmt: skip
        _forget_new(arrays, starts)
        if bend is not None:
            bend(arrays)
        return arrays, {}

    return make


def _with_work_list(make: Any) -> Any:
    """The same write with the grid of the fast form: one thread block per block that is touched."""

    def make_with() -> Call:
        arrays, _ = make()
        size = arrays["key_cache"].shape[1]
        start, end = arrays["start_pos"].astype(np.int64), arrays["seq_lens"].astype(np.int64)
        touched = np.where(end > start, -(-end // size) - start // size, 0)
        arrays["work_start"] = np.cumsum(touched) - touched
        return arrays, {"num_work": int(touched.sum())}

    return make_with


def _forget_new(arrays: Arrays, starts: Sequence[int]) -> None:
    """Leave only the first tokens of each sequence in pools and boxes; the boxes of untouched blocks are stale."""
    size = arrays["key_cache"].shape[1]
    for row, start in enumerate(starts):
        for logical, block in enumerate(arrays["block_table"][row]):
            old = min(max(start - logical * size, 0), size)
            if block < 0 or old == size:
                continue
            for cache in (arrays["key_cache"], arrays["value_cache"]):
                cache[block, old:] = np.nan
            if old:
                arrays["box"][block, :, 0] = arrays["key_cache"][block, :old].min(axis=0)
                arrays["box"][block, :, 1] = arrays["key_cache"][block, :old].max(axis=0)
            else:
                arrays["box"][block, :, 0], arrays["box"][block, :, 1] = -9, 9


def _release_first(arrays: Arrays) -> None:
    arrays["ref"][arrays["block_table"][0, 0]] = 0


def _share_first(arrays: Arrays) -> None:
    freed = arrays["block_table"][1, 0]
    arrays["block_table"][1, 0] = arrays["block_table"][0, 0]
    arrays["ref"][arrays["block_table"][0, 0]], arrays["ref"][freed] = 2, 0


def _signed_zeros(arrays: Arrays) -> None:
    arrays["kv"][:, 0, :, ::2] = np.float16(-0.0)
    arrays["kv"][0, 0, :, 1] = np.nan
    arrays["kv"][1, 0, :, 3] = np.inf


_WRITE = (
    Case(
        "fused_reshape_and_block_write",
        "work_list",
        "prefill, decode and a row without new tokens over a list of touched blocks",
        _with_work_list(_write([0, 31, 20, 7, 15], [50, 32, 20, 60, 17])),
    ),
    Case(
        "fused_reshape_and_block_write",
        "empty_work_list",
        "a work list of nothing writes nothing",
        _with_work_list(_write([4, 0], [4, 0])),
    ),
    Case("fused_reshape_and_block_write", "one_token", "the smallest write", _write([0], [1], head_dim=32)),
    Case(
        "fused_reshape_and_block_write",
        "prefill",
        "whole and partly filled blocks from the start",
        _write([0, 0, 0], [40, 16, 33]),
    ),
    Case(
        "fused_reshape_and_block_write",
        "decode",
        "one token each; everything else stays",
        _write([39, 16, 32, 0], [40, 17, 33, 1]),
    ),
    Case(
        "fused_reshape_and_block_write",
        "chunk",
        "a chunk that starts and ends inside blocks",
        _write([5, 20], [39, 70]),
    ),
    Case(
        "fused_reshape_and_block_write",
        "mixed",
        "prefill, decode and a row without new tokens",
        _write([0, 31, 20, 7], [50, 32, 20, 60]),
    ),
    Case("fused_reshape_and_block_write", "empty", "no sequence has tokens", _write([0, 0], [0, 0])),
    Case("fused_reshape_and_block_write", "no_sequence", "a batch of nothing", _write([], [])),
    Case(
        "fused_reshape_and_block_write",
        "padded_rows",
        "rows of kv that belong to nobody",
        _write([0, 3], [20, 9], pad=5),
    ),
    Case(
        "fused_reshape_and_block_write",
        "block_size_8",
        "small blocks, 80 channels",
        _write([3, 0], [29, 8], block_size=8, head_dim=80),
    ),
    Case(
        "fused_reshape_and_block_write",
        "block_size_128",
        "large blocks, 256 channels",
        _write([100, 0], [140, 300], block_size=128, head_dim=256, num_kv_heads=1),
    ),
    Case(
        "fused_reshape_and_block_write",
        "five_heads",
        "a prime number of heads",
        _write([3, 0], [29, 8], num_heads=5, num_kv_heads=5, head_dim=96),
    ),
    Case(
        "fused_reshape_and_block_write",
        "prime_batch",
        "more rows than a launch tile",
        _write([i % 19 for i in range(37)], [i % 19 + i % 7 for i in range(37)], head_dim=32),
    ),
    Case(
        "fused_reshape_and_block_write",
        "full_table",
        "the last entry is written to its end",
        _write([20, 0], [48, 48], spare_entries=0),
    ),
    Case(
        "fused_reshape_and_block_write",
        "behind_shared_prefix",
        "two sequences write behind what they share",
        _write([16, 16], [20, 40], _share_first),
    ),
    Case(
        "fused_reshape_and_block_write",
        "into_shared_block",
        "a shared block is never written",
        _write([3, 20], [20, 40], _share_first),
        Status.SHARED_WRITE,
    ),
    Case(
        "fused_reshape_and_block_write",
        "padding_rewrites_prefix",
        "a decode must not touch the shared first block",
        _write([33, 33], [34, 34], _share_first),
    ),
    Case(
        "fused_reshape_and_block_write",
        "signed_zeros",
        "no -0 in a box, NaN ignored, infinities kept",
        _write([0, 2], [7, 9], _signed_zeros),
    ),
    Case(
        "fused_reshape_and_block_write",
        "hole_in_table",
        "no block, no write",
        _write([0, 0], [40, 5], _set("block_table", (0, 1), -1)),
        UNMAPPED,
    ),
    Case(
        "fused_reshape_and_block_write",
        "freed_block",
        "a block that nobody holds is not written",
        _write([0, 0], [10, 5], _release_first),
        UNMAPPED,
    ),
    Case(
        "fused_reshape_and_block_write",
        "id_beyond_pool",
        "no such block",
        _write([0, 0], [10, 5], _set("block_table", (0, 0), 1000)),
        RANGE,
    ),
    Case(
        "fused_reshape_and_block_write",
        "beyond_table",
        "a length that the table cannot hold",
        _write([0, 0], [16, 5], _set("seq_lens", 0, 400)),
        RANGE,
    ),
    Case(
        "fused_reshape_and_block_write",
        "ends_before_start",
        "fewer tokens than before",
        _write([0, 0], [16, 5], _set("start_pos", 0, 17)),
        RANGE,
    ),
    Case(
        "fused_reshape_and_block_write",
        "rows_missing",
        "kv has fewer rows than the sequence needs",
        _write([0, 0], [16, 5], _set("token_start", 1, 17)),
        RANGE,
    ),
)

# --- edits ------------------------------------------------------------------------------------------------------------


def _edits(*edits: tuple[int, int, int], rows: int = 3, width: int = 5, blocks: int = 11) -> Any:
    def make() -> Call:
        rng = np.random.default_rng(7)
        arrays: Arrays = {"edits": np.array(edits, np.int64).reshape(-1, 3)}
        for name in ("block_table", "history"):
            arrays[name] = rng.integers(-1, 50, (rows, width)).astype(np.int32)
        for name in ("ref", "gen", "level", "freq", "hits", "lookups"):
            arrays[name] = rng.integers(0, 50, blocks).astype(np.int32)
        arrays["cached"] = rng.integers(0, 2, blocks).astype(np.uint8)
        return arrays, {}

    return make


def _many_edits() -> Call:
    """More edits than a thread block has threads: each entry of the table set once, one counter added to by all."""
    rng = np.random.default_rng(8)
    places = rng.permutation(40 * 9)
    edits = [(0, int(at), int(at) * 3) for at in places] + [(5, int(at) % 7, 1) for at in places]
    arrays, scalars = _edits(*edits, rows=40, width=9)()
    return arrays, scalars


_EDITS = (
    Case(
        "block_bookkeeping", "one_of_each", "every array, set", _edits(*((2 * k, 3 + k % 5, 100 + k) for k in range(9)))
    ),
    Case(
        "block_bookkeeping", "adds", "every array that can be added to", _edits(*((2 * k + 1, 2, -1) for k in range(8)))
    ),
    Case("block_bookkeeping", "nothing", "an empty batch is legal", _edits()),
    Case("block_bookkeeping", "one_counter_often", "additions to one entry add up", _edits(*[(5, 4, 1)] * 37)),
    Case("block_bookkeeping", "hundreds", "more edits than threads", _many_edits),
    Case("block_bookkeeping", "last_entries", "the ends of the arrays", _edits((0, 14, -1), (4, 10, 9), (16, 10, 1))),
    Case(
        "block_bookkeeping",
        "outside",
        "indices behind the ends",
        _edits((0, 15, 1), (4, 11, 1), (4, -1, 1), (2, 3, 8)),
        RANGE,
    ),
    Case(
        "block_bookkeeping", "unknown_array", "numbers that name none", _edits((18, 0, 1), (-1, 0, 1), (4, 0, 7)), RANGE
    ),
    Case("block_bookkeeping", "adds_to_a_flag", "cached is set, never counted", _edits((17, 0, 1), (16, 1, 1)), RANGE),
)

CASES: tuple[Case, ...] = (*_ALLOCATION, *_ADVANCED, *_RELEASE, *_FORK, *_COPY, *_COMPACT, *_WRITE, *_EDITS)
