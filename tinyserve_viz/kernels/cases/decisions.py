"""Cases of the kernels that steer: scores, masses, complexities and the choice of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyserve_viz.kernels.cases.batch import Arrays, only, paged_batch
from tinyserve_viz.kernels.conformance import Case
from tinyserve_viz.kernels.definition import Status

Call = tuple[Arrays, dict[str, Any]]
Change = Callable[[Arrays], None]


def _set(name: str, at: Any, value: Any) -> Change:
    def change(arrays: Arrays) -> None:
        arrays[name][at] = value

    return change


# --- block_scoring and block_mass -------------------------------------------------------------------------------------


def _score(
    seed: int,
    lens: Sequence[int],
    bend: Change | None = None,
    per_head: bool = False,
    reduction: str = "max",
    **shape: Any,
) -> Any:
    def make() -> Call:
        arrays = paged_batch(np.random.default_rng(seed), lens, **shape)
        size, heads = arrays["key_cache"].shape[1:3]
        arrays["num_seq_blocks"] = -(-arrays["seq_lens"] // size)
        if bend is not None:
            bend(arrays)
        heads = arrays["query"].shape[1] if per_head else heads
        used = only(arrays, "query", "box", "block_table", "num_seq_blocks")
        return used, {"num_score_heads": heads, "reduction": reduction}

    return make


def _signs(arrays: Arrays) -> None:
    arrays["query"][0, 0] = 0
    arrays["query"][0, 1, ::2] = np.float16(-0.0)
    arrays["query"][0, 2] = -np.abs(arrays["query"][0, 2])


def _empty_box(arrays: Arrays) -> None:
    block = arrays["block_table"][0, 1]
    arrays["box"][block, :, 0], arrays["box"][block, :, 1] = np.inf, -np.inf


def _cancelling(arrays: Arrays) -> None:
    # Large terms of both signs: another order of summation gives other last bits, and often another sign.
    arrays["query"] *= np.float16(30)
    low = arrays["box"][..., 0, :]
    low[(low < 0) & np.isfinite(low)] *= np.float16(40)


_SCORING = (
    Case("block_scoring", "one_block", "the smallest call", _score(1, [3], num_heads=1, num_kv_heads=1, head_dim=32)),
    Case("block_scoring", "ragged", "rows of different length and an empty one", _score(2, [100, 0, 33, 16, 1])),
    Case("block_scoring", "no_sequence", "a batch of nothing", _score(3, [])),
    Case(
        "block_scoring", "mean", "mean of the group in head order", _score(4, [70, 20], num_heads=6, reduction="mean")
    ),
    Case("block_scoring", "sum", "sum of the group in head order", _score(5, [70, 20], num_heads=6, reduction="sum")),
    Case("block_scoring", "per_query_head", "no reduction", _score(6, [70, 20], per_head=True)),
    Case("block_scoring", "head_dim_80", "the last row of lanes is half empty", _score(7, [70, 20], head_dim=80)),
    Case("block_scoring", "head_dim_96", "three rows of lanes", _score(8, [70, 20], head_dim=96)),
    Case("block_scoring", "head_dim_256", "eight rows of lanes", _score(9, [70, 20], head_dim=256, num_kv_heads=1)),
    Case("block_scoring", "group_of_16", "a full tile", _score(10, [40], num_heads=16, num_kv_heads=1, head_dim=128)),
    Case(
        "block_scoring",
        "group_of_6",
        "four heads at a time, then two",
        _score(20, [300, 40], num_heads=6, num_kv_heads=1, head_dim=128, reduction="mean"),
    ),
    Case(
        "block_scoring",
        "group_of_6_per_head",
        "a score for each of them",
        _score(21, [300, 40], num_heads=6, num_kv_heads=1, head_dim=128, per_head=True),
    ),
    Case(
        "block_scoring",
        "several_thread_blocks",
        "rows that end within the second and the fourth",
        _score(22, [1700, 3500, 5], num_heads=8, num_kv_heads=2, head_dim=128),
    ),
    Case(
        "block_scoring",
        "infinite_query",
        "infinity and zero in one product, and infinities that are not the score's own",
        _score(23, [200], _set("query", (0, 1, 5), np.inf), num_heads=8, num_kv_heads=2, head_dim=128),
    ),
    Case("block_scoring", "block_size_8", "many small blocks", _score(11, [203], block_size=8, head_dim=32)),
    Case(
        "block_scoring",
        "prime_batch",
        "more rows than a tile",
        _score(12, [7 * i % 50 for i in range(37)], head_dim=32),
    ),
    Case("block_scoring", "signs", "zero, negative zero and wholly negative queries", _score(13, [70], _signs)),
    Case(
        "block_scoring", "cancelling", "the order of the sum decides the last bits", _score(14, [200, 90], _cancelling)
    ),
    Case("block_scoring", "empty_box", "a box without keys bounds nothing: -inf", _score(15, [40], _empty_box)),
    Case("block_scoring", "nan_query", "NaN passes the reduction", _score(16, [40], _set("query", (0, 1, 5), np.nan))),
    Case(
        "block_scoring",
        "hole",
        "a missing block scores -inf",
        _score(17, [60, 20], _set("block_table", (0, 1), -1)),
        Status.UNMAPPED,
    ),
    Case(
        "block_scoring",
        "id_beyond_pool",
        "no such block",
        _score(18, [60, 20], _set("block_table", (1, 0), 500)),
        Status.RANGE,
    ),
    Case(
        "block_scoring",
        "beyond_table",
        "more blocks than entries: cut",
        _score(19, [60, 20], _set("num_seq_blocks", 1, 50)),
        Status.RANGE | Status.UNMAPPED,
    ),
)


def _with_peaks(arrays: Arrays) -> None:
    rows, heads = arrays["query"].shape[:2]
    arrays["block_peak"] = np.empty((rows, heads, arrays["block_table"].shape[1]), np.float32)


def _holes_and_peaks(arrays: Arrays) -> None:
    _with_peaks(arrays)
    arrays["block_table"][0, 1] = -1
    arrays["key_cache"][arrays["block_table"][1, 0], 3] = np.nan


def _mass(
    seed: int,
    lens: Sequence[int],
    bend: Change | None = None,
    per_head: bool = False,
    reduction: str = "mean",
    scale: float = 0.125,
    **shape: Any,
) -> Any:
    def make() -> Call:
        arrays = paged_batch(np.random.default_rng(seed), lens, **{"head_dim": 32, **shape})
        if bend is not None:
            bend(arrays)
        heads = arrays["query"].shape[1] if per_head else arrays["key_cache"].shape[2]
        used = only(arrays, "query", "key_cache", "block_table", "seq_lens")
        if "block_peak" in arrays:
            used["block_peak"] = arrays["block_peak"]
        return used, {"num_score_heads": heads, "reduction": reduction, "scale": scale}

    return make


def _loud_key(arrays: Arrays) -> None:
    arrays["query"][...] = 10
    arrays["key_cache"][arrays["block_table"][0, 1], 2] = 10


_MASSES = (
    Case("block_mass", "one_token", "all mass on the only token", _mass(1, [1], num_heads=1, num_kv_heads=1)),
    Case("block_mass", "ragged", "rows of different length and an empty one", _mass(2, [50, 0, 33, 16])),
    Case("block_mass", "no_sequence", "a batch of nothing", _mass(3, [])),
    Case("block_mass", "per_query_head", "no reduction", _mass(4, [50, 20], per_head=True)),
    Case("block_mass", "peaks", "the largest logit of every block and head", _mass(16, [50, 0, 33, 16], _with_peaks)),
    Case(
        "block_mass",
        "peaks_hole",
        "no logit in a missing block, none that is NaN",
        _mass(17, [60, 20], _holes_and_peaks, num_heads=6),
        Status.UNMAPPED | Status.NOT_A_NUMBER,
    ),
    Case("block_mass", "max", "the largest share in the group", _mass(5, [50, 20], reduction="max")),
    Case("block_mass", "sum", "the sum over a group of three", _mass(6, [50, 20], num_heads=6, reduction="sum")),
    Case("block_mass", "head_dim_80", "the last row of lanes is half empty", _mass(7, [20], head_dim=80)),
    Case("block_mass", "block_size_64", "two rows of lanes per block", _mass(8, [150], block_size=64)),
    Case("block_mass", "forty_blocks", "more blocks than lanes in the total", _mass(9, [317], block_size=8)),
    Case("block_mass", "one_loud_token", "other weights underflow to 0", _mass(10, [60], _loud_key, scale=1.0)),
    Case("block_mass", "steep", "weights over many powers of two, subnormal ones too", _mass(11, [90], scale=8.0)),
    Case(
        "block_mass",
        "nan_key",
        "a NaN logit weighs nothing",
        _mass(12, [40], lambda a: a["key_cache"].__setitem__((a["block_table"][0, 0], 1), np.nan)),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "block_mass",
        "infinite_query",
        "no shares can be formed",
        _mass(13, [40], _set("query", (0, 1, 3), np.inf)),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "block_mass",
        "hole",
        "a missing block has no mass",
        _mass(14, [60], _set("block_table", (0, 1), -1)),
        Status.UNMAPPED,
    ),
    Case(
        "block_mass",
        "beyond_table",
        "a length beyond the table is cut",
        _mass(15, [64], _set("seq_lens", 0, 900), spare_entries=0),
        Status.RANGE,
    ),
)


# --- query_analysis ---------------------------------------------------------------------------------------------------


def _energy(rows: int, heads: int, dim: int, bend: Change | None = None, factor: float = 0.7, **scalars: Any) -> Any:
    def make() -> Call:
        rng = np.random.default_rng(rows * heads * dim)
        arrays = {"query": (rng.standard_normal((rows, heads, dim)) * factor).astype(np.float16)}
        if bend is not None:
            bend(arrays)
        return arrays, scalars

    return make


def _first_channel_only(arrays: Arrays) -> None:
    # Channel 0 says nothing about a row: the published kernel squares it alone.
    arrays["query"][:, 0, 0] = [0, 3, 0, 3]
    arrays["query"][:2, :, 1:] = 0.9


def _at_the_thresholds(arrays: Arrays) -> None:
    # Mean squares of exactly 1/2, 1/4, and one step of fp16 to either side of 1/2.
    arrays["query"][...] = 0
    arrays["query"][0, 0, :16] = 1
    arrays["query"][1, 0, :8] = 1
    arrays["query"][2, 0, :16] = np.nextafter(np.float16(1), np.float16(2))
    arrays["query"][3, 0, :16] = np.nextafter(np.float16(1), np.float16(0))


def _entropy(mode: str, heads: int, values: Any, num_scored: Any, **scalars: Any) -> Any:
    """`values(rng)` fp32 [rows][heads][blocks]; blocks that do not count hold NaN."""

    def make() -> Call:
        scores = np.asarray(values(np.random.default_rng(3)), np.float32).copy()
        counted = np.array(num_scored, np.int32)
        scores[np.broadcast_to((np.arange(scores.shape[2]) >= counted[:, None])[:, None], scores.shape)] = np.nan
        query = np.zeros((len(counted), heads, 32), np.float16)
        return {"query": query, "block_score": scores, "num_scored": counted}, {"mode": mode, **scalars}

    return make


def _one_hot(_rng: Any) -> Any:
    scores = np.full((2, 1, 40), -1000.0)
    scores[0, 0, 7] = scores[1, 0, 0] = 1000
    return scores


def _shares(rng: Any) -> Any:
    mass = rng.random((3, 2, 50)) ** 6
    mass[0, :, 3] = 0
    return mass / mass.sum(axis=2, keepdims=True)


_ANALYSIS = (
    Case("query_analysis", "energy_one", "the smallest row", _energy(1, 1, 32)),
    Case("query_analysis", "energy", "mean square over all heads and channels", _energy(5, 8, 64)),
    Case("query_analysis", "energy_ragged", "no multiple of the lanes, a prime number of rows", _energy(37, 3, 80)),
    Case("query_analysis", "energy_wide", "a large hidden size: the order of the sum shows", _energy(3, 32, 128)),
    Case("query_analysis", "energy_none", "no rows", _energy(0, 4, 64)),
    Case(
        "query_analysis",
        "not_channel_0",
        "rows that differ only behind channel 0",
        _energy(4, 2, 32, _first_channel_only),
    ),
    Case("query_analysis", "levels", "low, medium and high rows", _energy(41, 2, 32, factor=0.55)),
    Case(
        "query_analysis",
        "thresholds",
        "a value on a threshold is not above it",
        _energy(4, 1, 32, _at_the_thresholds, medium_permille=250),
    ),
    Case(
        "query_analysis",
        "other_thresholds",
        "thresholds are parameters",
        _energy(41, 2, 32, high_permille=900, medium_permille=0),
    ),
    Case(
        "query_analysis",
        "energy_nan",
        "a NaN query has no energy",
        _energy(3, 2, 32, _set("query", (1, 1, 4), np.nan)),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "query_analysis",
        "energy_infinite",
        "an infinite energy is high",
        _energy(3, 2, 32, _set("query", (1, 1, 4), np.inf)),
    ),
    Case(
        "query_analysis",
        "entropy",
        "entropy of scores, rows of different length",
        _entropy("entropy", 2, lambda rng: rng.standard_normal((4, 2, 70)), [70, 33, 2, 5]),
    ),
    Case(
        "query_analysis",
        "entropy_uniform",
        "equal scores: exactly 1",
        _entropy("entropy", 1, lambda _rng: np.full((3, 1, 50), 2.5), [50, 3, 2]),
    ),
    Case("query_analysis", "entropy_one_hot", "one block outweighs all: 0", _entropy("entropy", 1, _one_hot, [40, 12])),
    Case(
        "query_analysis",
        "entropy_short",
        "one block or none: 0",
        _entropy("entropy", 1, lambda rng: rng.standard_normal((3, 1, 4)), [1, 0, 2]),
    ),
    Case(
        "query_analysis",
        "entropy_scaled",
        "the scale sharpens the softmax",
        _entropy("entropy", 2, lambda rng: rng.standard_normal((4, 2, 70)) * 9, [70, 33, 2, 5], scale=0.25),
    ),
    Case(
        "query_analysis",
        "entropy_missing",
        "a block without score (-inf) weighs nothing",
        _entropy("entropy", 1, lambda _rng: [[[0, -np.inf, 1, 2]]], [4]),
    ),
    Case(
        "query_analysis",
        "entropy_no_scores",
        "only -inf: no entropy",
        _entropy("entropy", 1, lambda _rng: np.full((2, 1, 4), -np.inf), [4, 0]),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "query_analysis",
        "entropy_cut",
        "more blocks than scores: cut",
        _entropy("entropy", 1, lambda rng: rng.standard_normal((2, 1, 6)), [9, -1]),
        Status.RANGE,
    ),
    Case("query_analysis", "mass_entropy", "entropy of shares", _entropy("mass_entropy", 2, _shares, [50, 50, 31])),
    Case(
        "query_analysis",
        "mass_uniform",
        "equal shares: 1",
        _entropy("mass_entropy", 1, lambda _rng: np.full((1, 1, 64), 1 / 64), [64]),
    ),
    Case(
        "query_analysis",
        "mass_none",
        "no mass at all: no entropy",
        _entropy("mass_entropy", 1, lambda _rng: np.zeros((1, 1, 8)), [8]),
        Status.NOT_A_NUMBER,
    ),
)


# --- cache_selection --------------------------------------------------------------------------------------------------


def _select(
    lens: Sequence[int],
    heads: int = 2,
    width: int = 40,
    select_heads: int | None = None,
    bend: Change | None = None,
    **scalars: Any,
) -> Any:
    """Rows of `lens` blocks; complexity, requirement and history such that all three priorities occur."""

    def make() -> Call:
        rng = np.random.default_rng(len(lens) * 7 + sum(lens))
        rows, longest = len(lens), max(lens, default=0) + 2
        arrays = {
            "complexity": (rng.random(rows) * 1.4).astype(np.float32),
            "requirement": rng.integers(0, 3, rows).astype(np.int32),
            "block_score": rng.standard_normal((rows, heads, longest)).astype(np.float32),
            "num_seq_blocks": np.array(lens, np.int32),
            "history": rng.integers(0, 150, (rows, longest)).astype(np.int32),
        }
        past = np.arange(longest) >= arrays["num_seq_blocks"][:, None]
        arrays["block_score"][np.broadcast_to(past[:, None], arrays["block_score"].shape)] = 99  # must never be chosen
        if bend is not None:
            bend(arrays)
        chosen = {"num_select_heads": heads if select_heads is None else select_heads, "max_selected": width}
        return arrays, {**chosen, **scalars}

    return make


def _ties(arrays: Arrays) -> None:
    arrays["block_score"][...] = np.float32(1)
    arrays["block_score"][:, :, ::3] = np.float32(0)
    arrays["block_score"][:, 1, ::6] = np.float32(-0.0)


def _meeting(arrays: Arrays) -> None:
    at = np.arange(arrays["block_score"].shape[2])
    arrays["block_score"][:, 0] += np.where(at % 512 < 200, np.float32(30), 0)
    arrays["block_score"][:, 1] += np.where(at % 1536 < 20, np.float32(30), 0)


def _rounded(arrays: Arrays) -> None:
    np.round(arrays["block_score"] * np.float32(0.5), out=arrays["block_score"])


def _lowest(arrays: Arrays) -> None:
    arrays["block_score"][...] = -np.inf
    arrays["block_score"][:, 1, 700] = np.float32(-3)


def _extremes(arrays: Arrays) -> None:
    score = arrays["block_score"]
    score[0, 0, 5:8000:7] = -np.inf
    score[0, 0, 9:8000:90] = np.inf
    score[0, 1, 3:8000:2] = np.nan
    score[1, 0, 100] = np.float32(3e38)
    score[1, 0, 200] = np.float32(-3e38)
    score[1, 1, 1:4000] *= np.float32(1e-44)
    score[2, 0] = np.where(np.arange(score.shape[2]) % 3, score[2, 0], np.inf)


def _negatives(arrays: Arrays) -> None:
    arrays["block_score"] -= np.float32(50)


def _infinities(arrays: Arrays) -> None:
    arrays["block_score"][:, :, 1:4] = [np.inf, -np.inf, np.inf]


def _priorities(arrays: Arrays) -> None:
    # Row scores of .7, 0.5 (not above the threshold), .25 (not above half of it) and 0.
    arrays["complexity"][:] = [1, 0.5, 0.625, 0]
    arrays["requirement"][:] = [1, 1, 0, 0]
    arrays["history"][:] = 0


def _priorities_again(arrays: Arrays) -> None:
    # As above, then low rows of even and odd length; the first block scores highest, as the policy has it.
    arrays["complexity"][:] = [1, 0.5, 0.625, 0, 0, 0, 0, 0]
    arrays["requirement"][:] = [1, 1, 0, 0, 0, 0, 0, 0]
    arrays["history"][:] = 0
    arrays["block_score"][...] = -np.arange(arrays["block_score"].shape[2], dtype=np.float32)


def _counted(arrays: Arrays) -> None:
    rng = np.random.default_rng(5)
    arrays["block_table"] = rng.integers(0, 30, arrays["history"].shape).astype(np.int32)  # shared blocks abound
    arrays["uses"], arrays["freq"] = (rng.integers(0, 9, 31).astype(np.int32) for _ in range(2))
    arrays["last_use"] = rng.integers(0, 9, 31).astype(np.int64)


def _counted_hole(arrays: Arrays) -> None:
    _counted(arrays)
    arrays["block_table"][0, 0] = -1


_ROWS = [30, 0, 1, 2, 7, 64, 100]
_SELECTION = (
    Case("cache_selection", "one_block", "a sequence of one block keeps it", _select([1], heads=1)),
    Case("cache_selection", "paper", "thirty per cent, rows from empty to long", _select(_ROWS)),
    Case("cache_selection", "seed", "the published weights and priorities", _select(_ROWS, mode="seed")),
    Case(
        "cache_selection",
        "seed_published",
        "low priority drops what lies after the middle, by the published rule",
        _select([9, 9, 9, 9, 8, 2, 1, 0], bend=_priorities_again, mode="seed-published", sinks=0, recent=0),
    ),
    Case("cache_selection", "fixed_budget", "eight blocks of every row", _select(_ROWS, budget_blocks=8)),
    Case(
        "cache_selection",
        "fixed_budget_within",
        "the always-kept blocks are inside a smaller budget, and exceed it",
        _select(_ROWS, budget_blocks=3, sinks=2, recent=2),
    ),
    Case("cache_selection", "no_sequence", "a batch of nothing", _select([])),
    Case("cache_selection", "shared", "one list by the summed scores", _select(_ROWS, heads=3, select_heads=1)),
    Case(
        "cache_selection",
        "shared_seed",
        "one list, published priorities",
        _select(_ROWS, heads=3, select_heads=1, mode="seed"),
    ),
    Case("cache_selection", "everything", "a ratio of 1 keeps all", _select([30, 5], ratio_permille=1000)),
    Case("cache_selection", "tiny_ratio", "the always-kept blocks are the budget", _select(_ROWS, ratio_permille=1)),
    Case(
        "cache_selection",
        "strict",
        "no block is always kept, at least one remains",
        _select(_ROWS, ratio_permille=1, sinks=0, recent=0),
    ),
    Case("cache_selection", "many_kept", "sinks and recent meet in short rows", _select(_ROWS, sinks=4, recent=5)),
    Case(
        "cache_selection", "ties", "equal scores, and -0 equal to 0: the lower block", _select([30, 61, 7], bend=_ties)
    ),
    Case("cache_selection", "negative_scores", "all scores below 0", _select([30, 61, 7], bend=_negatives)),
    Case(
        "cache_selection",
        "infinite_scores",
        "+inf first, -inf last, always-kept before both",
        _select([30, 61, 7], bend=_infinities, ratio_permille=100),
    ),
    Case(
        "cache_selection",
        "priorities",
        "strictly above the threshold and half of it",
        _select([9, 9, 9, 9], bend=_priorities, mode="seed"),
    ),
    Case(
        "cache_selection",
        "other_weights",
        "weights and threshold are parameters",
        _select(
            _ROWS, mode="seed", weight_complexity=100, weight_requirement=0, weight_history=900, threshold_permille=700
        ),
    ),
    Case("cache_selection", "full_list", "the list holds exactly the budget", _select([64], width=19)),
    Case(
        "cache_selection",
        "narrow_list",
        "a budget beyond the list refuses that row alone",
        _select([100, 30], width=10),
        Status.RANGE,
    ),
    Case(
        "cache_selection",
        "row_cut",
        "more blocks than scores: cut",
        _select([30, 5], bend=_set("num_seq_blocks", 0, 99)),
        Status.RANGE,
    ),
    Case(
        "cache_selection",
        "negative_row",
        "a negative count is empty",
        _select([30, 5], bend=_set("num_seq_blocks", 1, -4)),
        Status.RANGE,
    ),
    Case(
        "cache_selection",
        "nan_score",
        "NaN is chosen last",
        _select([30, 7], bend=_set("block_score", (0, 1, slice(3, 20)), np.nan)),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "cache_selection",
        "nan_shared",
        "NaN in one head, choice by the sum",
        _select([30, 7], select_heads=1, bend=_set("block_score", (0, 1, slice(3, 20)), np.nan)),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "cache_selection",
        "nan_behind_the_end",
        "what lies behind a row is not looked at",
        _select([30, 7], bend=_set("block_score", (1, slice(None), slice(7, None)), np.nan)),
    ),
    Case(
        "cache_selection",
        "nan_complexity",
        "counts as 0",
        _select([30, 7], mode="seed", bend=_set("complexity", 0, np.nan)),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "cache_selection",
        "counts_accesses",
        "blocks kept by several rows are counted for each",
        _select(_ROWS, bend=_counted, clock=77),
    ),
    Case(
        "cache_selection",
        "counts_hole",
        "a kept block that is not mapped",
        _select([30, 7], bend=_counted_hole, clock=77),
        Status.UNMAPPED,
    ),
    Case(
        "cache_selection", "prime_batch", "more rows than a tile", _select([(i * 5) % 43 for i in range(37)], heads=1)
    ),
    Case("cache_selection", "long_row", "thousands of blocks in a row", _select([3001], heads=1, width=1000)),
    Case(
        "cache_selection",
        "few_of_many",
        "a small budget of rows from one block to one more than fit in registers",
        _select([8192, 1, 8193, 7919, 513, 512, 0], width=128, budget_blocks=128),
    ),
    Case(
        "cache_selection",
        "few_of_many_strict",
        "the same, nothing kept whatever its score",
        _select([8192, 1, 8193, 7919, 513], width=100, budget_blocks=100, sinks=0, recent=0),
    ),
    Case(
        "cache_selection",
        "more_of_many",
        "a budget of half the row",
        _select([8192, 8191, 8193], width=4096, heads=1, ratio_permille=500),
    ),
    Case(
        "cache_selection",
        "many_kept_of_many",
        "hundreds are always kept, a few are chosen",
        _select([8192, 700, 640], width=660, budget_blocks=655, sinks=300, recent=350),
    ),
    Case(
        "cache_selection",
        "best_meet",
        "the best lie so that few threads hold them all",
        _select([8192, 4001], width=128, budget_blocks=128, bend=_meeting),
    ),
    Case(
        "cache_selection",
        "many_equal",
        "more equal scores than are ranked, the budget ends among them",
        _select([8192, 4001, 2000], width=128, budget_blocks=128, bend=_rounded),
    ),
    Case(
        "cache_selection",
        "all_equal",
        "the lower blocks",
        _select([8192, 999], width=128, budget_blocks=128, bend=_set("block_score", ..., 1)),
    ),
    Case(
        "cache_selection",
        "all_lowest",
        "nothing but -inf, and one score",
        _select([8192, 999], width=128, budget_blocks=128, bend=_lowest),
    ),
    Case(
        "cache_selection",
        "long_infinite",
        "NaN, both infinities and a range beyond fp32 in long rows",
        _select([8192, 4001, 3000], width=128, budget_blocks=128, bend=_extremes),
        Status.NOT_A_NUMBER,
    ),
    Case(
        "cache_selection",
        "long_shared",
        "one list by the summed scores of long rows",
        _select([8192, 8193, 3001], heads=3, select_heads=1, width=200, budget_blocks=200),
    ),
)

# --- content_generation -----------------------------------------------------------------------------------------------


def _content(
    tokens: int,
    rows: Sequence[int],
    topics: bool = True,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    bend: Change | None = None,
    **scalars: Any,
) -> Any:
    def make() -> Call:
        rng = np.random.default_rng(tokens)
        arrays: Arrays = {
            "token": rng.integers(-(1 << 63), (1 << 63) - 1, tokens, dtype=np.int64),
            "position": np.arange(tokens, dtype=np.int32) * 2,
            "query_token": np.array(rows, np.int32),
        }
        if topics:
            arrays["topic"] = rng.integers(0, 3, tokens).astype(np.int32)
            arrays["centre"] = rng.standard_normal((num_kv_heads, 3, head_dim)).astype(np.float32)
            arrays["sink"] = rng.standard_normal((num_kv_heads, head_dim)).astype(np.float32)
        if bend:
            bend(arrays)
        axes = {"num_kv_heads": num_kv_heads, "num_heads": num_heads, "head_dim": head_dim}
        return arrays, {"seed": 5, "layer": 1, **axes, **scalars}

    return make


_CONTENT = (
    Case("content_generation", "topics", "sinks at the first positions, rows without a query", _content(7, [3, -1, 6])),
    Case("content_generation", "iid", "noise alone, the control", _content(5, [0, 4], topics=False)),
    Case("content_generation", "no_query", "a step that only prefills", _content(9, [-1, -1])),
    Case("content_generation", "no_rows", "nobody could ask", _content(3, [])),
    Case("content_generation", "no_token", "nothing to make", _content(0, [-1])),
    Case("content_generation", "odd_head_dim", "no multiple of the threads", _content(3, [1], head_dim=37)),
    Case("content_generation", "eight_heads_share_one", "a group of eight", _content(2, [1], True, 8, 1)),
    Case("content_generation", "largest_seed", "the seed's upper end", _content(2, [0], seed=(1 << 63) - 1, layer=255)),
    Case(
        "content_generation",
        "unknown_topic",
        "taken for topic 0",
        _content(4, [2], bend=_set("topic", slice(1, 3), (3, -1))),
        Status.RANGE,
    ),
    Case(
        "content_generation", "unknown_token", "a row asks for no token of the step", _content(4, [4, -2]), Status.RANGE
    ),
)

CASES: tuple[Case, ...] = (*_SCORING, *_MASSES, *_ANALYSIS, *_SELECTION, *_CONTENT)
