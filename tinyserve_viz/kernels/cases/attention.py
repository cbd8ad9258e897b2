"""Cases of the three attention kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.cases.batch import Arrays, only, paged_batch
from tinyserve_viz.kernels.conformance import Case
from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

_INPUTS = ("query", "key_cache", "value_cache", "block_table", "seq_lens")
_KERNELS = ("paged_attention", "flash_paged_attention")
Call = tuple[Arrays, dict[str, Any]]


def _plain(seed: int, lens: Sequence[int], change: Any = None, scale: float | None = None, **shape: Any) -> Any:
    """A maker of a call on `paged_batch`; `change(arrays)` bends it before use."""

    def make() -> Call:
        arrays = paged_batch(np.random.default_rng(seed), lens, **shape)
        if change is not None:
            change(arrays)
        used = scale if scale is not None else arrays["query"].shape[2] ** -0.5
        return only(arrays, *_INPUTS), {"scale": used}

    return make


def _entry(row: int, logical: int, block: int) -> Any:
    def change(arrays: Arrays) -> None:
        arrays["block_table"][row, logical] = block

    return change


def _length(row: int, length: int) -> Any:
    def change(arrays: Arrays) -> None:
        arrays["seq_lens"][row] = length

    return change


def _same_keys(arrays: Arrays) -> None:
    arrays["key_cache"][...] = np.where(np.isnan(arrays["key_cache"]), np.nan, 1)


def _one_loud_token(arrays: Arrays) -> None:
    arrays["query"][...] = 2
    block = arrays["block_table"][0, 1]
    arrays["key_cache"][block, 3] = 4


def _shared_prefix(arrays: Arrays) -> None:
    arrays["block_table"][1, :2] = arrays["block_table"][0, :2]


def _quiet_then_loud(arrays: Arrays) -> None:
    # Each block's logits lie about 8 above the last one's: without rescaling, what came before counts e**8 too much.
    arrays["query"][...] = 1
    for logical, block in enumerate(arrays["block_table"][0]):
        if block >= 0:
            arrays["key_cache"][block][~np.isnan(arrays["key_cache"][block])] = logical


_SHARED: tuple[tuple[str, str, Any, Status], ...] = (
    (
        "one_token",
        "the smallest call there is",
        _plain(1, [1], num_heads=1, num_kv_heads=1, head_dim=32, block_size=8),
        Status.OK,
    ),
    (
        "ragged_tails",
        "ends on, before and behind a block's border, and an empty sequence",
        _plain(2, [1, 15, 16, 17, 0, 33, 7]),
        Status.OK,
    ),
    ("all_empty", "no token at all: output 0, lse -inf, no NaN", _plain(3, [0, 0]), Status.OK),
    ("no_sequence", "a batch of nothing launches and writes nothing", _plain(4, []), Status.OK),
    ("full_table", "the last entry of the table is in use", _plain(5, [48, 32, 48], spare_entries=0), Status.OK),
    (
        "prime_batch",
        "more rows than a launch tile, no multiple of anything",
        _plain(6, [5 + i % 23 for i in range(37)], head_dim=32),
        Status.OK,
    ),
    ("long", "many blocks: the sums of a long row", _plain(7, [2053], num_heads=2, num_kv_heads=1), Status.OK),
    ("head_dim_80", "no power of two", _plain(8, [40, 3], head_dim=80), Status.OK),
    ("head_dim_96", "no power of two", _plain(9, [40, 3], head_dim=96), Status.OK),
    ("head_dim_128", "the usual one", _plain(10, [40, 3], head_dim=128), Status.OK),
    ("head_dim_256", "the largest one", _plain(11, [40, 3], head_dim=256), Status.OK),
    ("block_size_8", "blocks smaller than a warp", _plain(12, [29, 8], block_size=8), Status.OK),
    ("block_size_32", "a block as long as a warp", _plain(13, [29, 65], block_size=32), Status.OK),
    ("block_size_64", "the published tile size", _plain(14, [29, 65], block_size=64), Status.OK),
    (
        "block_size_128",
        "longer than the published shared-memory tile",
        _plain(15, [129, 300], block_size=128),
        Status.OK,
    ),
    (
        "every_head_its_own_kv",
        "a group of one",
        _plain(16, [21, 34], num_heads=5, num_kv_heads=5, head_dim=32),
        Status.OK,
    ),
    ("group_of_3", "no power of two", _plain(17, [21, 34], num_heads=6, num_kv_heads=2, head_dim=32), Status.OK),
    (
        "group_of_8",
        "a full half tile of tensor-core rows",
        _plain(18, [21, 34], num_heads=16, num_kv_heads=2, head_dim=32),
        Status.OK,
    ),
    ("group_of_16", "a full tile of tensor-core rows", _plain(19, [21], num_heads=16, num_kv_heads=1), Status.OK),
    ("growing_maximum", "the running maximum grows from block to block", _plain(20, [80, 64], spread=1.7), Status.OK),
    (
        "quiet_then_loud",
        "each block outweighs all before it",
        _plain(21, [70], _quiet_then_loud, scale=0.125),
        Status.OK,
    ),
    ("equal_keys", "equal keys average the values", _plain(22, [45], _same_keys), Status.OK),
    ("one_loud_token", "softmax picks one token", _plain(23, [45], _one_loud_token, scale=1.0), Status.OK),
    ("large_scale", "exp of raw logits would overflow", _plain(24, [50], scale=20.0), Status.OK),
    ("shared_prefix", "two sequences read the same blocks", _plain(25, [40, 37], _shared_prefix), Status.OK),
    (
        "hole_in_table",
        "-1 inside the sequence is flagged and left out",
        _plain(26, [60, 20], _entry(0, 1, -1)),
        Status.UNMAPPED,
    ),
    ("id_beyond_pool", "no such block: flagged and left out", _plain(27, [60, 20], _entry(0, 2, 99)), Status.RANGE),
    ("negative_id", "an id below -1 is no hole but damage", _plain(28, [60, 20], _entry(1, 0, -7)), Status.RANGE),
    ("only_a_hole", "the only block is missing: as empty", _plain(29, [9], _entry(0, 0, -1)), Status.UNMAPPED),
    (
        "length_beyond_table",
        "a length the table cannot hold is cut",
        _plain(30, [48, 5], _length(0, 500), spare_entries=0),
        Status.RANGE,
    ),
    ("negative_length", "taken as empty", _plain(31, [20, 5], _length(1, -3)), Status.RANGE),
)


def _with_work(make: Any, num_workers: int, mode: str, selected: bool = False) -> Any:
    """The same call with a work list for `num_workers`."""

    def make_with() -> Call:
        arrays, scalars = make()
        size = arrays["key_cache"].shape[1]
        rows = len(arrays["seq_lens"])
        kept = {"kept": np.ascontiguousarray(arrays["count"][:, 0])} if selected else {}
        plan = NumpyBackend().run(
            kernel_named("dynamic_workload_balancing"),
            {"seq_lens": arrays["seq_lens"], **kept},
            {"num_workers": num_workers, "max_segments": rows + num_workers, "block_size": size, "mode": mode},
        )
        return arrays | only(plan, "segments", "segment_range", "seq_segments"), scalars

    return make_with


def _bad_segment(make: Any) -> Any:
    def make_bad() -> Call:
        arrays, scalars = _with_work(make, 3, "even-blocks")()
        arrays["segments"][0, 2] = 1000
        return arrays, scalars

    return make_bad


_RAGGED = _plain(40, [100, 0, 33, 16, 257])
_WORK: tuple[tuple[str, str, Any, Status], ...] = (
    ("split_over_5", "sequences cut between workers are merged", _with_work(_RAGGED, 5, "even-blocks"), Status.OK),
    ("split_over_300", "more workers than blocks: empty ranges", _with_work(_RAGGED, 300, "even-blocks"), Status.OK),
    (
        "split_loud",
        "parts with very different maxima are merged",
        _with_work(_plain(41, [130], _quiet_then_loud, scale=0.125), 4, "even-blocks"),
        Status.OK,
    ),
    ("whole_sequences", "the lpt list cuts nothing and is not in row order", _with_work(_RAGGED, 2, "lpt"), Status.OK),
    ("segment_outside", "a segment beyond its sequence is skipped and flagged", _bad_segment(_RAGGED), Status.RANGE),
)


def _selected(
    seed: int, lens: Sequence[int], keep: Any, per_head: bool = True, bend: Any = None, spare: int = 1, **shape: Any
) -> Any:
    """A call with a kept list: `keep(row, head, blocks)` names the logical blocks; `bend(arrays)` spoils it."""

    def make() -> Call:
        arrays = paged_batch(np.random.default_rng(seed), lens, **shape)
        heads = arrays["key_cache"].shape[2] if per_head else 1
        size = arrays["key_cache"].shape[1]
        lists = [
            [sorted(keep(row, head, -(-length // size))) for head in range(heads)] for row, length in enumerate(lens)
        ]
        width = max([len(x) for row in lists for x in row], default=0) + spare
        selected = np.full((len(lens), heads, width), -1, np.int32)
        count = np.zeros((len(lens), heads), np.int32)
        for row, by_head in enumerate(lists):
            for head, blocks in enumerate(by_head):
                selected[row, head, : len(blocks)] = blocks
                count[row, head] = len(blocks)
        arrays = only(arrays, *_INPUTS) | {"selected": selected, "count": count}
        if bend is not None:
            bend(arrays)
        return arrays, {"scale": arrays["query"].shape[2] ** -0.5}

    return make


def _everything(_row: int, _head: int, blocks: int) -> range:
    return range(blocks)


def _every_other(row: int, head: int, blocks: int) -> list[int]:
    return [b for b in range(blocks) if (b + row + head) % 2 == 0 or b == blocks - 1]


def _first_and_last(_row: int, _head: int, blocks: int) -> set[int]:
    return {0, blocks - 1} if blocks else set()


def _bend(name: str, at: tuple[int, ...], value: int) -> Any:
    def bend(arrays: Arrays) -> None:
        arrays[name][at] = value

    return bend


def _unordered(arrays: Arrays) -> None:
    arrays["selected"][0, 0, :3] = [2, 1, 2]


def _fused(seed: int, lens: Sequence[int], bend: Any = None, width: int = 40, scalars: Any = None, **shape: Any) -> Any:
    """The fused form: boxes given, lists to be made."""

    def make() -> Call:
        arrays = paged_batch(np.random.default_rng(seed), lens, **shape)
        heads = arrays["key_cache"].shape[2]
        arrays["selected"] = np.full((len(lens), heads, width), 7, np.int32)
        arrays["count"] = np.full((len(lens), heads), 7, np.int32)
        if bend is not None:
            bend(arrays)
        return only(arrays, *_INPUTS, "selected", "count", "box"), {
            "scale": arrays["query"].shape[2] ** -0.5,
            **(scalars or {}),
        }

    return make


def _same_boxes(arrays: Arrays) -> None:
    arrays["box"][:, :, 0] = np.float16(-1)
    arrays["box"][:, :, 1] = np.float16(1)


_LENS = [100, 0, 33, 16, 200, 7]
_WIDE = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 128}  # what one launch scores, chooses and attends for
_QUERY_AWARE: tuple[tuple[str, str, Any, Status], ...] = (
    ("everything_kept", "equals attention over the whole sequence", _selected(50, _LENS, _everything), Status.OK),
    ("every_other_per_head", "the heads keep different blocks", _selected(51, _LENS, _every_other), Status.OK),
    (
        "one_list_for_all_heads",
        "a shared list serves every KV head",
        _selected(52, _LENS, _every_other, per_head=False),
        Status.OK,
    ),
    (
        "first_and_last",
        "the middle is dropped, the partly filled last block is read",
        _selected(53, _LENS, _first_and_last),
        Status.OK,
    ),
    ("full_list", "the kept list has no spare place", _selected(54, [64, 64], _everything, spare=0), Status.OK),
    (
        "growing_maximum",
        "the maximum grows within the kept blocks",
        _selected(55, [90, 130], _every_other, spread=1.7),
        Status.OK,
    ),
    (
        "group_of_8",
        "the group shares the list of its KV head",
        _selected(56, [90, 31], _every_other, num_heads=16, num_kv_heads=2, head_dim=32),
        Status.OK,
    ),
    (
        "block_size_128",
        "blocks longer than the published tile",
        _selected(57, [300], _first_and_last, block_size=128, head_dim=256),
        Status.OK,
    ),
    (
        "block_size_8",
        "blocks smaller than a warp",
        _selected(58, [61, 9], _every_other, block_size=8, head_dim=80),
        Status.OK,
    ),
    (
        "prime_batch",
        "more rows than a launch tile",
        _selected(59, [3 + i % 41 for i in range(37)], _every_other, head_dim=32),
        Status.OK,
    ),
    (
        "nothing_kept",
        "tokens, but none kept: 0, -inf and a flag",
        _selected(60, [40, 40], lambda row, _h, n: range(n if row else 0)),
        Status.RANGE,
    ),
    ("no_sequence", "a batch of nothing", _selected(61, [], _everything), Status.OK),
    (
        "count_beyond_list",
        "a count that the list cannot hold is cut",
        _selected(62, [40, 40], _everything, bend=_bend("count", (0, 0), 99)),
        Status.RANGE,
    ),
    (
        "negative_count",
        "a negative count keeps nothing",
        _selected(63, [40, 40], _everything, bend=_bend("count", (0, 1), -1)),
        Status.RANGE,
    ),
    (
        "block_outside",
        "a kept block behind the sequence's end is skipped",
        _selected(64, [40, 40], _everything, bend=_bend("selected", (1, 0, 2), 3)),
        Status.RANGE,
    ),
    (
        "unordered_list",
        "a block is never counted twice",
        _selected(65, [48], _everything, bend=_unordered),
        Status.CONFLICT,
    ),
    (
        "kept_hole",
        "a kept block that is not mapped",
        _selected(66, [60], _everything, bend=_bend("block_table", (0, 1), -1)),
        Status.UNMAPPED,
    ),
    (
        "dropped_hole",
        "a hole that is not kept harms nobody",
        _selected(67, [60], _first_and_last, bend=_bend("block_table", (0, 1), -1)),
        Status.OK,
    ),
    (
        "split_over_5",
        "kept lists cut between workers are merged",
        _with_work(_selected(68, [200, 0, 90], _everything), 5, "even-blocks", selected=True),
        Status.OK,
    ),
    ("fused", "one launch keeps the same blocks as three", _fused(70, _LENS), Status.OK),
    ("fused_long", "a budget well below the sequence", _fused(71, [1000, 513], head_dim=32), Status.OK),
    (
        "fused_mean",
        "mean over the group",
        _fused(72, [300, 90], num_heads=8, head_dim=32, scalars={"reduction": "mean"}),
        Status.OK,
    ),
    (
        "fused_sum",
        "sum over the group",
        _fused(73, [300, 90], num_heads=8, head_dim=32, scalars={"reduction": "sum"}),
        Status.OK,
    ),
    (
        "fused_strict",
        "no block is always kept: the best ones only",
        _fused(74, [300, 90], scalars={"sinks": 0, "recent": 0, "ratio_permille": 100}),
        Status.OK,
    ),
    (
        "fused_fixed_budget",
        "the same number of blocks of every row, more than the short one has",
        _fused(77, [300, 90, 20], scalars={"budget_blocks": 7}),
        Status.OK,
    ),
    ("fused_everything", "a ratio of 1 keeps all", _fused(75, [300, 90], scalars={"ratio_permille": 1000}), Status.OK),
    (
        "fused_narrow_list",
        "a budget beyond the list is refused for that row",
        _fused(76, [1000, 90], width=10),
        Status.RANGE,
    ),
    (
        "fused_at_once",
        "heads of 128 channels: rows from nothing to long in one launch",
        _fused(78, [4000, 0, 7, 999, 16, 517], width=128, **_WIDE, scalars={"budget_blocks": 40}),
        Status.OK,
    ),
    (
        "fused_at_once_alone",
        "one long row by all multiprocessors",
        _fused(79, [20011], width=136, **_WIDE, scalars={"budget_blocks": 130}),
        Status.OK,
    ),
    (
        "fused_at_once_8",
        "a group of 8, 30 per cent of the blocks",
        _fused(80, [3000, 1777], width=64, num_heads=16, num_kv_heads=2, head_dim=128),
        Status.OK,
    ),
    (
        "fused_at_once_many",
        "more rows than multiprocessors",
        _fused(81, [20 + (i * 37) % 300 for i in range(80)], width=12, **_WIDE, scalars={"reduction": "sum"}),
        Status.OK,
    ),
    (
        "fused_at_once_everything",
        "all blocks, more than are handed on in shared memory",
        _fused(82, [9000, 100], width=570, **_WIDE, scalars={"ratio_permille": 1000}),
        Status.OK,
    ),
    (
        "fused_at_once_ties",
        "equal boxes, the lower blocks",
        _fused(83, [20000], _same_boxes, width=100, **_WIDE, scalars={"budget_blocks": 100}),
        Status.OK,
    ),
    (
        "fused_at_once_narrow_list",
        "a budget beyond the list is refused for that row",
        _fused(84, [1000, 90], width=10, **_WIDE),
        Status.RANGE,
    ),
    (
        "fused_at_once_hole",
        "a missing block scores -inf; kept it is flagged",
        _fused(85, [3000], _bend("block_table", (0, 0), -1), width=64, **_WIDE),
        Status.UNMAPPED,
    ),
    (
        "fused_at_once_beyond",
        "more blocks than one choice holds in registers",
        _fused(86, [16 * 8200], width=50, num_heads=4, num_kv_heads=1, head_dim=128, scalars={"budget_blocks": 50}),
        Status.OK,
    ),
    (
        "fused_hole",
        "a missing block scores -inf; kept it is flagged",
        _fused(77, [100], _bend("block_table", (0, 0), -1)),
        Status.UNMAPPED,
    ),
)

CASES: tuple[Case, ...] = (
    *(Case(kernel, name, why, make, status) for kernel in _KERNELS for name, why, make, status in _SHARED),
    *(Case("flash_paged_attention", name, why, make, status) for name, why, make, status in _WORK),
    *(Case("query_aware_paged_attention", name, why, make, status) for name, why, make, status in _QUERY_AWARE),
)
