"""What must hold of every kernel's result, whatever the input: the contracts' own properties."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.cases.batch import Arrays, only, paged_batch
from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.defs.advanced_block_allocation import resized_hot_region
from tinyserve_viz.kernels.defs.fragmentation_analysis import METRICS, ratios
from tinyserve_viz.kernels.defs.intelligent_memory_compaction import METRICS as PLAN_METRICS
from tinyserve_viz.kernels.layout import empty_boxes
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

ATTENDED = ("query", "key_cache", "value_cache", "block_table", "seq_lens")
lengths = st.lists(st.integers(0, 150), min_size=1, max_size=5)
seeds = st.integers(0, 2**31)


def run(name: str, arrays: Arrays, **scalars: Any) -> Arrays:
    return NumpyBackend().run(kernel_named(name), arrays, scalars)


def batch(seed: int, lens: list[int], **shape: Any) -> Arrays:
    return paged_batch(np.random.default_rng(seed), lens, **shape)


def blocks_of(arrays: Arrays) -> Any:
    return (-(-arrays["seq_lens"] // arrays["key_cache"].shape[1])).astype(np.int32)


def scores_of(arrays: Arrays, **scalars: Any) -> Any:
    inputs = only(arrays, "query", "box", "block_table") | {"num_seq_blocks": blocks_of(arrays)}
    return run("block_scoring", inputs, **({"num_score_heads": arrays["box"].shape[1]} | scalars))["block_score"]


def select(scores: Any, num_seq_blocks: Any, **scalars: Any) -> Arrays:
    rows, heads, width = scores.shape
    inputs = {
        "complexity": np.zeros(rows, np.float32),
        "requirement": np.zeros(rows, np.int32),
        "block_score": scores,
        "num_seq_blocks": num_seq_blocks,
        "history": np.zeros((rows, width), np.int32),
    }
    return run("cache_selection", inputs, **({"num_select_heads": heads, "max_selected": width} | scalars))


# --- attention --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seeds, lengths)
def test_moving_the_blocks_of_a_pool_changes_no_bit_of_the_attention(seed: int, lens: list[int]) -> None:
    arrays = batch(seed, lens)
    before = run("paged_attention", only(arrays, *ATTENDED), scale=0.125)
    order = np.random.default_rng(seed + 1).permutation(len(arrays["ref"])).astype(np.int32)
    moved = dict(arrays)
    for name in ("key_cache", "value_cache"):
        moved[name] = np.empty_like(arrays[name])
        moved[name][order] = arrays[name]
    moved["block_table"] = np.where(arrays["block_table"] < 0, -1, order[arrays["block_table"]]).astype(np.int32)
    after = run("paged_attention", only(moved, *ATTENDED), scale=0.125)
    assert all(np.array_equal(before[name], after[name]) for name in ("output", "lse"))


@settings(max_examples=25, deadline=None)
@given(seeds, lengths, st.integers(1, 40), st.sampled_from(["even-blocks", "per-seq", "lpt"]))
def test_any_split_over_workers_gives_the_unsplit_attention(
    seed: int, lens: list[int], workers: int, mode: str
) -> None:
    arrays = batch(seed, lens)
    whole = run("flash_paged_attention", only(arrays, *ATTENDED), scale=0.125)
    plan = run(
        "dynamic_workload_balancing", only(arrays, "seq_lens"),
        block_size=16, num_workers=workers, max_segments=len(lens) + workers, mode=mode,
    )  # fmt: skip
    work = only(plan, "segments", "segment_range", "seq_segments")
    split = run("flash_paged_attention", only(arrays, *ATTENDED) | work, scale=0.125)
    assert np.allclose(split["output"], whole["output"], atol=1e-3)
    assert np.allclose(split["lse"], whole["lse"], atol=1e-5)


def test_equal_keys_average_the_values_and_a_loud_token_wins() -> None:
    arrays = batch(1, [37])
    values = np.concatenate([arrays["value_cache"][b] for b in arrays["block_table"][0, :3]])[:37]
    arrays["key_cache"][...] = 1
    even = run("paged_attention", only(arrays, *ATTENDED), scale=0.125)["output"]
    assert np.allclose(even[0, 0], values[:, 0].astype(np.float64).mean(axis=0), atol=1e-3)
    arrays["query"][...] = 4
    arrays["key_cache"][arrays["block_table"][0, 1], 4] = 4
    loud = run("paged_attention", only(arrays, *ATTENDED), scale=0.125)["output"]
    assert np.allclose(loud[0, 3], values[20, 1], atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(seeds, lengths.filter(any))
def test_selecting_every_block_equals_exact_attention(seed: int, lens: list[int]) -> None:
    arrays = batch(seed, lens)
    exact = run("paged_attention", only(arrays, *ATTENDED), scale=0.125)
    kept = select(scores_of(arrays), blocks_of(arrays), ratio_permille=1000)
    chosen = run("query_aware_paged_attention", only(arrays, *ATTENDED) | only(kept, "selected", "count"), scale=0.125)
    assert np.array_equal(chosen["output"], exact["output"])
    assert np.array_equal(chosen["tokens_read"], np.repeat(arrays["seq_lens"][:, None], 4, axis=1))
    assert chosen["status"][0] == 0


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_adding_a_block_never_lowers_the_retained_mass_which_is_the_directly_summed_attention(seed: int) -> None:
    arrays = batch(seed, [203, 90])
    full = run("paged_attention", only(arrays, *ATTENDED), scale=0.125)["lse"]
    mass = run(
        "block_mass", only(arrays, "query", "key_cache", "block_table", "seq_lens"), scale=0.125, num_score_heads=4
    )["block_mass"]
    before = np.zeros_like(full)
    for ratio in (100, 300, 500, 800, 1000):
        kept = select(scores_of(arrays), blocks_of(arrays), ratio_permille=ratio)
        inputs = only(arrays, *ATTENDED) | only(kept, "selected", "count")
        retained = np.exp(run("query_aware_paged_attention", inputs, scale=0.125)["lse"] - full)
        assert (retained >= before - 1e-6).all()
        assert (retained <= 1 + 1e-6).all()
        for row in range(2):
            for head in range(4):
                blocks = kept["selected"][row, head // 2, : kept["count"][row, head // 2]]
                assert abs(mass[row, head, blocks].sum() - retained[row, head]) < 1e-3
        before = retained


@settings(max_examples=20, deadline=None)
@given(seeds, lengths, st.integers(1, 1000), st.integers(0, 2), st.sampled_from(["max", "mean", "sum"]))
def test_the_fused_form_keeps_exactly_the_blocks_of_the_three_launches(
    seed: int, lens: list[int], ratio: int, sinks: int, reduction: str
) -> None:
    arrays = batch(seed, lens, num_heads=6, num_kv_heads=2, head_dim=32)
    policy = {"ratio_permille": ratio, "sinks": sinks}
    kept = select(scores_of(arrays, reduction=reduction), blocks_of(arrays), **policy)
    three = run("query_aware_paged_attention", only(arrays, *ATTENDED) | only(kept, "selected", "count"), scale=0.2)
    lists = {"selected": np.zeros_like(kept["selected"]), "count": np.zeros_like(kept["count"])}
    inputs = only(arrays, *ATTENDED, "box") | lists
    fused = run("query_aware_paged_attention", inputs, scale=0.2, reduction=reduction, **policy)
    for name in ("selected", "count", "output", "lse", "blocks_read", "tokens_read"):
        assert np.array_equal(fused[name], three[name]), name


# --- scores and selection ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 150), st.sampled_from([8, 16, 64]), st.sampled_from([32, 80, 128]))
def test_a_box_score_is_an_upper_bound_of_every_logit_in_its_block(
    seed: int, length: int, block_size: int, head_dim: int
) -> None:
    arrays = batch(seed, [length], block_size=block_size, head_dim=head_dim)
    scores = scores_of(arrays, num_score_heads=4)
    for logical, block in enumerate(arrays["block_table"][0, : -(-length // block_size)]):
        keys = arrays["key_cache"][block][: length - logical * block_size].astype(np.float64)
        logits = np.einsum("hd,thd->ht", arrays["query"][0].astype(np.float64), np.repeat(keys, 2, axis=1))
        assert (scores[0, :, logical] >= logits.max(axis=1) - 1e-4).all()


def test_a_box_score_is_the_sign_selected_sum_and_the_maximum_of_products() -> None:
    arrays = batch(5, [90])
    q = arrays["query"][0].astype(np.float64)
    box = np.repeat(arrays["box"][arrays["block_table"][0, 2]], 2, axis=0).astype(np.float64)
    selected = np.where(q > 0, q * box[:, 1], q * box[:, 0]).sum(axis=1)
    largest = np.maximum(q * box[:, 1], q * box[:, 0]).sum(axis=1)
    assert np.array_equal(selected, largest)
    assert np.allclose(scores_of(arrays, num_score_heads=4)[0, :, 2], largest, rtol=1e-6, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seeds, st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 1000))
def test_a_selection_is_the_sorted_top_of_its_row_whatever_else_is_in_the_batch(
    seed: int, blocks: list[int], ratio: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-4, 5, (len(blocks), 2, 60)).astype(np.float32)  # few values: many ties
    counts = np.array(blocks, np.int32)
    together = select(scores, counts, ratio_permille=ratio)
    for row, total in enumerate(blocks):
        budget = min(total, max(total * ratio // 1000, 1, min(total, 2)))
        assert together["count"][row].tolist() == [budget, budget]
        alone = select(scores[row : row + 1], counts[row : row + 1], ratio_permille=ratio)
        assert np.array_equal(alone["selected"][0], together["selected"][row])
        for head in range(2):
            middle = sorted(range(1, total - 1), key=lambda b: (-scores[row, head, b], b))
            wanted = sorted([0, total - 1, *middle][:budget]) if total > 1 else list(range(total))
            assert together["selected"][row, head, :budget].tolist() == wanted
            assert (together["selected"][row, head, budget:] == -1).all()


def test_shuffling_the_channels_of_a_query_leaves_its_energy() -> None:
    rng = np.random.default_rng(2)
    query = rng.standard_normal((20, 4, 64)).astype(np.float16)
    shuffled = np.ascontiguousarray(query.reshape(20, -1)[:, rng.permutation(256)].reshape(20, 4, 64))
    energy = run("query_analysis", {"query": query})["complexity"]
    assert np.allclose(energy, run("query_analysis", {"query": shuffled})["complexity"], rtol=1e-6)
    assert np.allclose(energy, (query.astype(np.float64) ** 2).mean(axis=(1, 2)), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 200))
def test_entropy_lies_between_one_hot_and_uniform_and_equals_its_definition(seed: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.stack([rng.standard_normal(blocks) * 3, np.full(blocks, 7.0), np.eye(blocks)[0] * 500])
    inputs = {
        "query": np.zeros((3, 1, 32), np.float16),
        "block_score": scores[:, None].astype(np.float32),
        "num_scored": np.full(3, blocks, np.int32),
    }
    found = run("query_analysis", inputs, mode="entropy")["complexity"]
    weights = np.exp(scores[0] - scores[0].max())
    share = weights / weights.sum()
    assert found[0] == pytest.approx(-(share * np.log(share)).sum() / np.log(blocks), abs=1e-5)
    assert found[1:].tolist() == [1, 0]
    masses = inputs | {"block_score": share[None, None].repeat(3, axis=0).astype(np.float32)}
    assert np.allclose(run("query_analysis", masses, mode="mass_entropy")["complexity"], found[0], atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seeds, lengths)
def test_the_masses_of_a_row_add_up_to_one_and_equal_softmax(seed: int, lens: list[int]) -> None:
    arrays = batch(seed, lens, head_dim=32)
    inputs = only(arrays, "query", "key_cache", "block_table", "seq_lens")
    mass = run("block_mass", inputs, scale=0.3, num_score_heads=4)["block_mass"]
    assert np.allclose(mass.sum(axis=2), (arrays["seq_lens"] > 0)[:, None], atol=1e-5)
    for row, length in enumerate(lens):
        for head in range(4 if length else 0):
            keys = np.concatenate(
                [arrays["key_cache"][b, :, head // 2] for b in arrays["block_table"][row, : -(-length // 16)]]
            )
            weights = np.exp(0.3 * keys[:length].astype(np.float64) @ arrays["query"][row, head].astype(np.float64))
            share = np.add.reduceat(weights, np.arange(0, length, 16)) / weights.sum()
            assert np.allclose(mass[row, head, : len(share)], share, atol=1e-5)


# --- writing, copying, moving -----------------------------------------------------------------------------------------


def writable(seed: int, lens: list[int]) -> Arrays:
    arrays = batch(seed, lens, head_dim=32)
    arrays["key_cache"][...] = arrays["value_cache"][...] = 0
    arrays["box"] = empty_boxes(*arrays["box"].shape[:2], 32)
    return arrays


def gather(arrays: Arrays, name: str, row: int, length: int) -> Any:
    blocks = arrays["block_table"][row, : -(-length // 16)]
    return arrays[name][blocks].reshape(-1, *arrays[name].shape[2:])[:length]


@settings(max_examples=20, deadline=None)
@given(seeds, lengths, st.data())
def test_what_is_written_in_chunks_is_gathered_again_bit_for_bit_and_lies_in_its_boxes(
    seed: int, lens: list[int], data: st.DataObject
) -> None:
    arrays = writable(seed, lens)
    rng = np.random.default_rng(seed)
    content = [rng.standard_normal((length, 2, 2, 32)).astype(np.float16) for length in lens]
    cuts = [sorted({0, length, data.draw(st.integers(0, length))}) for length in lens]
    for i in range(max(map(len, cuts)) - 1):
        ends = [cut[min(i + 1, len(cut) - 1)] for cut in cuts]
        starts = [cut[min(i, len(cut) - 1)] for cut in cuts]
        new = np.array(ends) - np.array(starts)
        inputs = only(arrays, "block_table", "ref", "key_cache", "value_cache", "box") | {
            "kv": np.concatenate([c[s:e] for c, s, e in zip(content, starts, ends, strict=True)]),
            "token_start": (np.cumsum(new) - new).astype(np.int64),
            "start_pos": np.array(starts, np.int32),
            "seq_lens": np.array(ends, np.int32),
        }
        assert run("fused_reshape_and_block_write", inputs)["status"][0] == 0
    for row, length in enumerate(lens):
        assert np.array_equal(gather(arrays, "key_cache", row, length), content[row][:, 0])
        assert np.array_equal(gather(arrays, "value_cache", row, length), content[row][:, 1])
        for logical in range(-(-length // 16)):
            keys = content[row][logical * 16 : (logical + 1) * 16, 0]
            box = arrays["box"][arrays["block_table"][row, logical]]
            assert np.array_equal(box[:, 0], keys.min(axis=0))
            assert np.array_equal(box[:, 1], keys.max(axis=0))


def test_appending_one_token_changes_one_slot_and_only_widens_its_box() -> None:
    arrays = writable(3, [40])
    before = {name: arrays[name].copy() for name in ("key_cache", "value_cache", "box")}
    arrays["box"][arrays["block_table"][0, 2], :, 0] = -0.5
    arrays["box"][arrays["block_table"][0, 2], :, 1] = 0.5
    kv = np.random.default_rng(0).standard_normal((1, 2, 2, 32)).astype(np.float16)
    inputs = only(arrays, "block_table", "ref", "key_cache", "value_cache", "box") | {
        "kv": kv, "token_start": np.zeros(1, np.int64),
        "start_pos": np.array([37], np.int32), "seq_lens": np.array([38], np.int32),
    }  # fmt: skip
    run("fused_reshape_and_block_write", inputs)
    block = arrays["block_table"][0, 2]
    changed = np.argwhere((arrays["key_cache"] != before["key_cache"]).any(axis=(2, 3)))
    assert changed.tolist() == [[block, 5]]
    box = arrays["box"][block]
    assert (box[:, 0] == np.minimum(-0.5, kv[0, 0])).all()
    assert (box[:, 1] == np.maximum(0.5, kv[0, 0])).all()


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(0, 1), st.booleans(), st.integers(0, 8000))
def test_a_compaction_leaves_every_sequence_as_it_was_and_never_raises_the_highest_id(
    seed: int, density: float, unweighted: bool, threshold: int
) -> None:
    rng = np.random.default_rng(seed)
    size, rows, width = 60, 5, 12
    live = np.flatnonzero(rng.random(size) < density * 0.9)
    block_table = np.full((rows, width), -1, np.int32)
    cells = rng.permutation(rows * width)[: len(live)]
    block_table.reshape(-1)[cells] = live[: len(cells)]
    if len(cells) > 1 and len(cells) < rows * width:
        spare = np.setdiff1d(np.arange(rows * width), cells)[0]
        block_table.reshape(-1)[spare] = block_table.reshape(-1)[cells[0]]  # one block is shared
    ref = np.bincount(block_table[block_table >= 0], minlength=size).astype(np.int32)
    state = {
        "ref": ref,
        "cached": ((ref == 0) & (rng.random(size) < 0.3)).astype(np.uint8),
        "uses": rng.integers(0, 3, size).astype(np.int32),
        "level": rng.integers(0, 3, size).astype(np.int32),
    }
    key_cache = rng.standard_normal((2, size, 8, 2, 32)).astype(np.float16)
    value_cache = rng.standard_normal((2, size, 8, 2, 32)).astype(np.float16)
    rows_before = [(key_cache[:, r[r >= 0]].copy(), value_cache[:, r[r >= 0]].copy()) for r in block_table]
    cached_before, total = key_cache[:, state["cached"] == 1].copy(), int(ref.sum())
    scalars = {"trigger_permille": 0, "min_moves": 0, "payback_permille": 0}
    limit = {"threshold_permille": 1 << 62 if unweighted else threshold}
    plan = run("intelligent_memory_compaction", state, max_moves=size, **scalars, **limit)
    metrics = dict(zip(PLAN_METRICS, plan["metrics"].tolist(), strict=True))
    pinned = np.flatnonzero((ref > 0) & (plan["weight"] * 1000 >= limit["threshold_permille"]))
    applied = run(
        "memory_compaction",
        only(plan, "moves", "num_moves", "old_to_new") | state
        | {"block_table": block_table, "key_cache": key_cache, "value_cache": value_cache}
        | {"gen": np.zeros(size, np.int32)},
    )  # fmt: skip
    assert applied["status"][0] == 0
    for row, (keys, values) in zip(block_table, rows_before, strict=True):
        assert np.array_equal(key_cache[:, row[row >= 0]], keys)
        assert np.array_equal(value_cache[:, row[row >= 0]], values)
    assert np.array_equal(key_cache[:, state["cached"] == 1], cached_before)
    assert np.array_equal(state["ref"], np.bincount(block_table[block_table >= 0], minlength=size))
    assert (int(state["ref"].sum()), metrics["live"]) == (total, int((state["ref"] > 0).sum()))
    assert metrics["max_live_after"] == max(np.flatnonzero(state["ref"]), default=-1) <= metrics["max_live_before"]
    assert (plan["old_to_new"][pinned] == pinned).all()
    if unweighted:
        holes = np.flatnonzero((state["ref"] == 0) & (state["cached"] == 0))
        assert not len(holes) or metrics["max_live_after"] < holes[0] or not metrics["live"]


# --- upkeep -----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3000), max_size=20), st.integers(1, 320), st.sampled_from(["even-blocks", "per-seq", "lpt"])
)
def test_the_workers_cover_every_block_once(lens: list[int], workers: int, mode: str) -> None:
    inputs = {"seq_lens": np.array(lens, np.int32)}
    plan = run(
        "dynamic_workload_balancing", inputs,
        block_size=16, num_workers=workers, max_segments=len(lens) + workers, mode=mode,
    )  # fmt: skip
    total = sum(-(-length // 16) for length in lens)
    ranges = plan["ranges"]
    assert ranges[0, 0] == 0
    assert ranges[-1, 1] == total
    assert (ranges[1:, 0] == ranges[:-1, 1]).all()
    assert (ranges[:, 0] <= ranges[:, 1]).all()
    assert plan["load"].sum() == sum(lens)
    covered = [(s, u) for s, lo, hi in plan["segments"][: plan["num_segments"][0]].tolist() for u in range(lo, hi)]
    assert sorted(covered) == [(s, u) for s, length in enumerate(lens) for u in range(-(-length // 16))]
    if mode == "even-blocks":
        shares = ranges[:, 1] - ranges[:, 0]
        assert shares.max() - shares.min() <= 1


def test_balancing_pays_on_a_skewed_batch_and_costs_nothing_on_an_even_one() -> None:
    def imbalance(lens: list[int], workers: int) -> list[int]:
        inputs = {"seq_lens": np.array(lens, np.int32)}
        scalars = {"block_size": 16, "num_workers": workers, "max_segments": len(lens) + workers}
        return list(run("dynamic_workload_balancing", inputs, **scalars)["imbalance_permille"])

    assert imbalance([65_536] + [1024] * 31, 32) == [21557, 1000]
    assert imbalance([1024] * 32, 32) == [1000, 1000]


def test_fragmentation_in_words() -> None:
    inputs = {
        "ref": np.array([1, 0, 2, 0, 0, 1, 0, 0], np.int32),
        "cached": np.array([0, 1, 0, 0, 0, 0, 0, 0], np.uint8),
        "block_table": np.array([[2, 5], [2, 0]], np.int32),
        "seq_lens": np.array([20, 24], np.int32),
    }
    found = run("fragmentation_analysis", inputs, block_size=16, super_size=4)
    assert dict(zip(METRICS, found["metrics"].tolist(), strict=True)) == {
        "used": 3, "cached_free": 1, "free": 4, "live": 3, "tokens": 28, "longest_free_run": 2, "num_runs": 2,
        "max_live_id": 5, "super_held": 8, "super_pinned": 5, "adjacent": 0, "pairs": 2,
    }  # fmt: skip
    assert ratios(found["metrics"], 16) == {
        "internal": 20 / 48, "external": 0.5, "frag_ratio": 2.0, "stranded": 5 / 8, "scatter": 1.0,
    }  # fmt: skip
    nothing = {name: np.zeros_like(array) for name, array in inputs.items()}
    assert ratios(run("fragmentation_analysis", nothing, block_size=16)["metrics"], 16) == {
        "internal": None, "external": 0.0, "frag_ratio": None, "stranded": None, "scatter": None,
    }  # fmt: skip


def test_the_hot_region_grows_on_misses_shrinks_without_and_stays_within_its_limits() -> None:
    assert resized_hot_region(256, 10, 6, 1024) == 288
    assert resized_hot_region(256, 10, 5, 1024) == 256
    assert resized_hot_region(256, 100, 9, 1024) == 224
    assert resized_hot_region(256, 100, 10, 1024) == 256
    assert resized_hot_region(256, 0, 0, 1024) == 256
    assert resized_hot_region(512, 10, 10, 1024) == 512
    assert resized_hot_region(64, 10, 0, 1024) == 64


def test_a_busy_block_that_misses_climbs_to_the_top_level_and_falls_again() -> None:
    state = {
        "ref": np.ones(1, np.int32), "cached": np.zeros(1, np.uint8),
        "freq": np.zeros(1, np.int32), "level": np.zeros(1, np.int32),
        "lookups": np.full(1, 10, np.int32), "hits": np.zeros(1, np.int32),
    }  # fmt: skip
    seen = []
    for hits, freq in [(5, 20)] * 6 + [(10, 2)] * 6:
        state["hits"][:], state["freq"][:] = hits, freq
        decision = run("adaptive_cache_management", state)["decision"]
        seen.append((int(state["level"][0]), int(decision[0])))
    assert seen == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (4, 1),
        (4, 1),
        (3, -1),
        (2, -1),
        (1, -1),
        (0, -1),
        (0, -1),
        (0, -1),
    ]


def test_the_status_bits_are_the_contracts() -> None:
    assert [flag.name for flag in Status] == [
        "UNMAPPED", "RANGE", "SHARED_WRITE", "DOUBLE_FREE", "ALREADY_MAPPED", "OOM", "CONFLICT", "NOT_A_NUMBER",
    ]  # fmt: skip
    assert [int(flag) for flag in Status] == [1 << i for i in range(8)]
