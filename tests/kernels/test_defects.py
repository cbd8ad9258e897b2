"""Each published defect, put into a reference on purpose, must be caught by a case of its kernel.

The letters and numbers in the comments are those under which the defects of the published code are listed in
docs/published-defects.md.
"""

# ruff: noqa: E501 - one defect a line reads better than wrapped ones

import importlib
import inspect
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.kernels.binding import bind
from tinyserve_viz.kernels.cases import CASES
from tinyserve_viz.kernels.conformance import run_case
from tinyserve_viz.kernels.definition import KernelDef


@dataclass(frozen=True)
class Defect:
    """Replace `old` by `new` in the source of a kernel's reference, or of the module `where` that it builds on.

    `where` is a module of `kernels`, or with a dot one of the whole package.
    """

    name: str
    kernel: str
    old: str
    new: str
    where: str = ""
    more: tuple[tuple[str, str], ...] = ()  # further replacements that the same defect needs


# fmt: off
DEFECTS = (
    # Attention, published as paged_attention (A), query_aware_paged_attention (QA), and common to all (G)
    Defect("times_256_accumulation", "paged_attention", "out[:] = (merged /", "out[:] = (256 * merged /", "attention"),  # A1
    Defect("output_not_zeroed", "paged_attention", "out[:] = (merged", "out[:] = out + (merged", "attention"),  # A2
    Defect("half_accumulator", "paged_attention", "merged = (part *", "merged = (256 * part.astype(np.float16) *", "attention"),  # A3
    Defect("missing_head_stride", "paged_attention", "keys = blocks_of(self.key_cache, block)[:, :, kv_heads]", "keys = blocks_of(self.key_cache, block)[:, :, [0] * num_kv]", "attention"),  # A4, G8
    Defect("wrong_table_stride", "paged_attention", "self.block_table[seq, logical]", "self.block_table.reshape(-1)[(seq * int(self.lens.max()) // self.key_cache.shape[1] + logical) % self.block_table.size]", "attention"),  # A5, G9
    Defect("tail_of_last_block_read", "paged_attention", "valid = np.arange(size) < tokens[:, None]", "valid = np.ones((len(tokens), size), np.bool_)", "attention"),  # A6
    Defect("unmapped_block_read", "paged_attention", "held, status = mapped(block, self.key_cache.shape[0])", "held, status = np.ones(len(block), np.bool_), Status.OK", "attention"),  # G6
    Defect("nan_for_an_empty_sequence", "paged_attention", "out[:] = 0", "out[:] = np.nan", "attention"),  # A7
    Defect("no_query_groups", "paged_attention", "self.query[seq].reshape(self.num_kv_heads, -1, head_dim)", "self.query[seq].reshape(-1, self.num_kv_heads, head_dim).swapaxes(0, 1)", "attention"),  # A10
    Defect("softmax_without_maximum", "paged_attention", "np.where(high == -np.inf, 0, high)[..., None]", "0 * high[..., None]", "attention"),
    Defect("lse_without_maximum", "paged_attention", "lse[:] = (top + np.log(total))", "lse[:] = np.log(total)", "attention"),
    Defect("no_online_rescale", "flash_paged_attention", "rescale = np.exp(high - np.where(top == -np.inf, 0, top))", "rescale = np.ones_like(high)", "attention"),  # QA3
    Defect("sum_times_32", "flash_paged_attention", "total = (part_sum * rescale).sum(axis=0)", "total = 32 * (part_sum * rescale).sum(axis=0)", "attention"),  # QA2
    Defect("maximum_kept_by_one_lane", "flash_paged_attention", "top = high.max(axis=0)", "top = np.where(np.arange(high.shape[2]) == 0, high.max(axis=0), -np.inf)", "attention"),  # QA1
    Defect("tile_of_64_tokens", "query_aware_paged_attention", "tokens = np.minimum(self.lens[seq] - logical * size, size)", "tokens = np.minimum(self.lens[seq] - logical * size, min(size, 64))", "attention"),  # QA8
    Defect("one_heads_query_for_all", "query_aware_paged_attention", "q = self.query[seq].reshape(self.num_kv_heads, -1, head_dim)[kv_heads]", "q = np.repeat(self.query[seq, :1], self.query.shape[1], 0).reshape(self.num_kv_heads, -1, head_dim)[kv_heads]", "attention"),  # QA7
    Defect("selection_row_of_another_sequence", "query_aware_paged_attention", "_legal(selected[seq, head, : kept[seq, head]]", "_legal(selected.reshape(-1)[(seq * int(batch.lens[seq]) + np.arange(kept[seq, head])) % selected.size]"),  # QA5
    Defect("dropped_after_the_middle", "query_aware_paged_attention", "wanted = wanted[wanted >= 0]", "wanted = wanted[(wanted >= 0) & (wanted <= batch.num_seq_blocks[seq] // 2)]"),  # QA6
    Defect("selection_ignored", "query_aware_paged_attention", "wanted = logical[part]", "wanted = np.arange(batch.num_seq_blocks[seq])"),
    Defect("one_head_selects_for_all", "query_aware_paged_attention", "selected[seq, head, : kept[seq, head]]", "selected[seq, 0, : kept[seq, 0]]"),
    Defect("fused_budget_without_kept_blocks", "query_aware_paged_attention", "budget = paper_budget(batch.num_seq_blocks, ratio_permille, sinks, recent, budget_blocks)", "budget = paper_budget(batch.num_seq_blocks, ratio_permille, 0, 0, budget_blocks)"),
    Defect("work_list_ignored", "flash_paged_attention", "if segments is None or segment_range is None:", "if True:"),  # DW3
    # Write (W)
    Defect("padding_rewrites_shared_blocks", "fused_reshape_and_block_write", "owned &= refs == 1", "owned &= refs >= 1"),  # W2
    Defect("whole_sequence_rewritten", "fused_reshape_and_block_write", "start, end, row = start_pos.astype(np.int64),", "start, end, row = np.zeros(len(start_pos), np.int64),"),  # W2
    Defect("keys_and_values_not_split", "fused_reshape_and_block_write", "put_tokens(value_cache, block, slot, kv[source, 1])", "put_tokens(value_cache, block, slot, kv[source, 0])"),  # W1, G10
    Defect("values_forgotten", "fused_reshape_and_block_write", "    put_tokens(value_cache, block, slot, kv[source, 1])\n", ""),  # G10
    Defect("table_entry_unchecked", "fused_reshape_and_block_write", "owned, flags = mapped(block, num_blocks)", "owned, flags = np.ones(len(block), np.bool_), Status.OK\n    block = block % num_blocks"),  # W3
    Defect("no_box", "fused_reshape_and_block_write", "    put_bounds(box, touched, low.astype(np.float16), high.astype(np.float16))\n", ""),  # W5
    Defect("stale_box_widened", "fused_reshape_and_block_write", "fresh = block[starts], (slot[starts] == 0)[:, None, None]", "fresh = block[starts], np.zeros((len(starts), 1, 1), np.bool_)"),
    Defect("box_of_new_keys_only", "fused_reshape_and_block_write", "fresh = block[starts], (slot[starts] == 0)[:, None, None]", "fresh = block[starts], np.ones((len(starts), 1, 1), np.bool_)"),
    Defect("negative_zero_in_box", "fused_reshape_and_block_write", "old_low)) + np.float32(0)", "old_low))"),
    # Copy (C)
    Defect("unbounded_copy", "fused_block_copy", "(tokens < 1) | (tokens > size)", "(tokens < 1)", more=(("target[op], slot,", "target[op] + slot // size, slot % size,"), ("source[op], slot)", "source[op] + slot // size, slot % size)"))),  # C1
    Defect("ids_unchecked", "fused_block_copy", "if ((ids < 0) | (ids >= len(ref))).any() or ", "source, target = source % len(ref), target % len(ref)\n    if "),  # C2
    Defect("chained_copies", "fused_block_copy", " or np.isin(target, source).any()", ""),  # C3
    Defect("same_destination_twice", "fused_block_copy", "if not distinct or ", "if "),  # C4
    Defect("value_cache_not_copied", "fused_block_copy", "for cache in (key_cache[layer], value_cache[layer]):", "for cache in (key_cache[layer],):"),  # C5
    Defect("box_not_copied", "fused_block_copy", "put_bounds(box[layer], target, low, high)", "pass"),  # C5
    Defect("whole_box_for_a_part", "fused_block_copy", "partly = tokens < size", "partly = np.zeros(len(tokens), np.bool_)"),
    Defect("first_layer_only", "fused_block_copy", "for layer in range(len(key_cache)):", "for layer in range(1):"),
    Defect("shared_block_overwritten", "fused_block_copy", " or (ref[target] != 1).any()", ""),
    # Allocation (L), release (D), fork (G11)
    Defect("lowest_id_not_the_free_order", "block_allocation", "np.flatnonzero(ref == 0) if mode == 1 else free_order", "np.flatnonzero(ref == 0)"),  # L1
    Defect("mapping_overwritten", "block_allocation", "empty[inside] = block_table[seq[inside], logical[inside]] == -1", "pass"),  # L2
    Defect("duplicate_request_leaks", "block_allocation", "    empty[empty] = first_of_each(seq[empty] * block_table.shape[1] + logical[empty])\n", ""),  # L3
    Defect("request_range_unchecked", "block_allocation", "inside = (seq >= 0) & (seq < block_table.shape[0]) & (logical >= 0)", "inside = (seq < block_table.shape[0])"),  # L4
    Defect("partial_failure_not_rolled_back", "block_allocation", "asking = asking[: 0 if all_or_nothing else len(order)]", "asking = asking[: len(order)]"),  # L5
    Defect("recycled_counters", "block_allocation", "            counter[blocks] = 0\n", "            pass\n"),  # L6
    Defect("recycled_box", "block_allocation", "        reset_boxes(box, blocks)\n", "        pass\n"),  # L6
    Defect("generation_not_counted", "block_allocation", "    gen[blocks] += 1\n", ""),
    Defect("table_not_written", "block_allocation", "    block_table[where[:, 0], where[:, 1]] = blocks\n", ""),
    Defect("two_owners", "block_allocation", "blocks = order[: len(asking)]", "blocks = np.repeat(order, 2)[: len(asking)]"),  # AA1
    Defect("double_free_without_floor", "block_deallocation", "np.subtract.at(ref, block[good], 1)", "np.subtract.at(ref, block, 1)"),  # D1
    Defect("table_entry_not_cleared", "block_deallocation", "    block_table[seq[at], logical[at]] = -1\n", ""),  # D2
    Defect("minus_one_released", "block_deallocation", "held, flags = mapped(block, len(ref))", "held, flags = np.ones(len(block), np.bool_), Status.OK"),  # D3
    Defect("freed_in_id_order", "block_deallocation", "last = block[left == 1]", "last = np.sort(block[left == 1])"),  # D4
    Defect("freed_at_the_first_release", "block_deallocation", "last = block[left == 1]", "last = np.array(list(dict.fromkeys(b for b in block if ref[b] == 0)), np.int64)"),
    Defect("fork_does_not_count", "block_fork", "    np.add.at(ref, block, 1)\n", ""),  # G11
    Defect("siblings_counted_once", "block_fork", "np.add.at(ref, block, 1)", "ref[block] += 1"),
    Defect("fork_overwrites_child", "block_fork", "take = held & free", "take = held"),
    # Advanced allocation (AA)
    Defect("priority_never_advances", "advanced_block_allocation", "last_use[blocks] = clock + 1 + np.arange(len(asking))", "last_use[blocks] = last_use[blocks]"),  # AA2
    Defect("first_free_instead_of_oldest", "advanced_block_allocation", "free[np.lexsort((free, last_use[free], level[free], cached[free] != 0))]", "free"),  # AA2
    Defect("hot_region_not_reserved", "advanced_block_allocation", "cold = (request_freq[asking] <= hot_frequency).astype(np.int64)", "cold = np.zeros(len(asking), np.int64)"),  # AA5
    Defect("level_ignored", "advanced_block_allocation", "(free, last_use[free], level[free], cached[free] != 0)", "(free, last_use[free], cached[free] != 0)"),
    Defect("cached_block_stays_cached", "advanced_block_allocation", "    cached[blocks] = 0\n", ""),
    # Compaction (IC)
    Defect("two_blocks_into_one", "memory_compaction", "len(np.unique(both)) != len(both)\n        or ", ""),  # IC2
    Defect("chain_accepted", "memory_compaction", "        return Status.CONFLICT\n    for layer", "        pass\n    for layer"),  # IC1
    Defect("one_source_to_two_places", "memory_compaction", "len(np.unique(both)) != len(both)", "len(np.unique(target)) != len(target)"),
    Defect("destination_overwritten", "memory_compaction", "        or ((ref[target] != 0) | (cached[target] != 0)).any()\n", ""),  # IC3
    Defect("refs_not_moved", "memory_compaction", "for state in (ref, cached, *counters.values()):", "for state in (cached, *counters.values()):"),  # IC4
    Defect("counters_not_moved", "memory_compaction", "for state in (ref, cached, *counters.values()):", "for state in (ref, cached):"),  # IC4
    Defect("tables_not_remapped", "memory_compaction", "    block_table[entries] = plan[block_table[entries]]\n", ""),  # IC4
    Defect("rows_beyond_the_bound_not_remapped", "memory_compaction", "block_table[entries] = plan[block_table[entries]]", "block_table[:1][entries[:1]] = plan[block_table[:1][entries[:1]]]"),
    Defect("v_not_moved", "memory_compaction", "for cache in (key_cache[layer], value_cache[layer]):", "for cache in (key_cache[layer],):"),  # IC4
    Defect("box_not_moved", "memory_compaction", "put_bounds(box[layer], target, *box_bounds(box[layer], source))", "pass"),  # IC4
    Defect("no_notion_of_live", "intelligent_memory_compaction", "holes = np.flatnonzero(~live & (cached == 0))", "holes = np.flatnonzero(~live)", where="core.compaction"),  # IC5
    Defect("weights_ignored", "intelligent_memory_compaction", "movable = live & (heavy < rule.threshold)", "movable = live", where="core.compaction"),  # IC3
    Defect("half_mapping", "intelligent_memory_compaction", "old_to_new[:] = np.arange(len(ref))", "old_to_new[:] = np.arange(len(ref)) // 2"),  # IC2
    Defect("move_upwards", "intelligent_memory_compaction", "movers[:pairs] - holes[:pairs] >= rule.min_gain", "np.abs(movers[:pairs] - holes[:pairs]) >= rule.min_gain", where="core.compaction"),
    Defect("no_payback_test", "intelligent_memory_compaction", "elif (top - new_top) * 1000 < rule.payback * planned:", "elif False:", where="core.compaction"),
    # Query analysis (Q) and selection (S)
    Defect("channel_0_only_complexity", "query_analysis", "value = lane_sum(flat * flat)", "value = np.float32(flat.shape[1]) * flat[:, 0] * flat[:, 0]"),  # Q1
    Defect("unnormalised_energy", "query_analysis", " / np.float32(max(1, flat.shape[1]))", ""),  # Q5
    Defect("last_writer_wins", "query_analysis", "np.where(complexity > permille(medium_permille), 1, 0)", "np.where(query[:, 0, -1] ** 2 > permille(medium_permille), 1, 0)"),  # Q3
    Defect("requirement_at_the_threshold", "query_analysis", "complexity > permille(high_permille)", "complexity >= permille(high_permille)"),
    Defect("entropy_not_normalised", "query_analysis", "decision_log2(np.where(several, counted, 2).astype(np.float32))", "np.float32(1)"),
    Defect("three_id_spaces", "cache_selection", "selected[seq, head, (np.cumsum(mask, axis=2) - 1)[seq, head, logical]] = logical", "selected[seq, head, (np.cumsum(mask, axis=2) - 1)[seq, head, logical]] = np.where(logical * 4 < num_seq_blocks[seq], logical * 4, logical)"),  # S1
    Defect("medium_and_high_never_cleared", "cache_selection", "    selected[:] = -1\n", "", more=(("np.nonzero(selected >= 0)", "np.nonzero((selected >= 0) & (selected < width))"),)),  # S4
    Defect("complexity_unbounded", "cache_selection", "np.where(complexity < 1, complexity, np.float32(1))", "complexity"),  # S5
    Defect("blocks_by_position", "cache_selection", "np.where(kept[:, None], np.int64(1) << 40, _ordered(value))", "np.where(kept[:, None], np.int64(1) << 40, -at)"),  # S6
    Defect("last_block_not_kept", "cache_selection", "((at < sinks) | (at >= blocks - recent))", "(at < sinks)"),  # S6
    Defect("kept_blocks_beside_the_budget", "cache_selection", "return np.minimum(num_seq_blocks, np.maximum(always, share))", "return np.minimum(num_seq_blocks, always + share)"),
    Defect("budget_forgotten", "cache_selection", "budget_blocks or num_seq_blocks * ratio_permille // 1000", "num_seq_blocks * ratio_permille // 1000"),
    Defect("newest_half_kept", "cache_selection", "num_seq_blocks // 2 + 1), num_seq_blocks)", "num_seq_blocks // 2), num_seq_blocks)"),
    Defect("ties_to_the_higher_block", "cache_selection", 'np.argsort(-key, axis=2, kind="stable")', 'width - 1 - np.argsort(-key[..., ::-1], axis=2, kind="stable")'),
    Defect("negative_scores_turned_round", "cache_selection", "np.where(bits < 0, np.int64(-(1 << 31)) - bits, bits)", "bits"),
    Defect("nan_chosen_first", "cache_selection", "value = np.where(np.isnan(scores), np.float32(-np.inf), scores)", "value = np.where(np.isnan(scores), np.float32(np.inf), scores)"),
    Defect("history_counted_per_head", "cache_selection", "history += kept", "history += (selected[:, :, :, None] == np.arange(width)).sum(axis=(1, 2))"),
    Defect("shared_blocks_counted_once", "cache_selection", "np.add.at(counter, block[held], 1)", "counter[block[held]] += 1"),
    # Scores and masses
    Defect("only_the_upper_bound", "block_scoring", "np.where(rows < 0, rows * low,", "np.where(rows < 0, rows * high,"),
    Defect("score_of_the_first_query_head", "block_scoring", "scores = reduce_group(scores, reduction, axis=2)", "scores = scores[:, :, 0]"),
    Defect("nan_lost_in_the_maximum", "block_scoring", "largest: F32 = np.max(", "largest: F32 = np.fmax.reduce(", "decision_math"),
    Defect("sum_in_another_order", "block_scoring", "scores = lane_sum(products)", "scores = products.sum(axis=-1, dtype=np.float32)"),
    Defect("library_exp2", "block_mass", "weight = decision_exp2(", "weight = np.exp2("),
    Defect("peak_of_the_tail", "block_mass", "block_peak[seq][:, held.logical[part]] = peaks", "block_peak[seq] = peaks.max()"),
    Defect("total_in_another_order", "block_mass", "total = lane_sum(mass)[..., None]", "total = mass.sum(axis=-1, dtype=np.float32)[..., None]"),
    Defect("mass_of_the_tail", "block_mass", "valid = np.arange(size) < held.tokens[part, None]", "valid = np.ones((part.stop - part.start, size), np.bool_)"),
    # Adaptive levels (M), balancing (DW), fragmentation
    Defect("integer_hit_rate", "adaptive_cache_management", "up = kept & (hit * 1000 < theta * looked)", "up = kept & (hit // np.maximum(looked, 1) < 1)"),  # M2
    Defect("every_call_is_an_access", "adaptive_cache_management", "freq[:] = busy * decay_permille // 1000", "freq[:] = busy + 1"),  # M3
    Defect("hit_rate_products_in_32_bits", "adaptive_cache_management", "hits.astype(np.int64), lookups.astype(np.int64)", "hits, lookups"),  # G5
    Defect("level_without_ceiling", "adaptive_cache_management", "np.clip(level + decision, 0, MAX_LEVEL)", "np.maximum(level + decision, 0)"),
    Defect("free_block_keeps_its_level", "adaptive_cache_management", "np.where(kept, np.clip(level + decision, 0, MAX_LEVEL), 0)", "np.clip(level + decision, 0, MAX_LEVEL)"),
    Defect("even_split_for_8_workers_only", "dynamic_workload_balancing", "ranges[:] = before[segment_range]", "ranges[:8] = before[segment_range][:8]"),  # DW1
    Defect("remainder_to_the_last_worker", "dynamic_workload_balancing", "shares = np.arange(num_workers + 1) * total // num_workers", "shares = np.append(np.arange(num_workers) * (total // num_workers), total)"),
    Defect("tail_blocks_weigh_full", "dynamic_workload_balancing", "size = (high - low) * block_size - np.where(high == units[seq], units[seq] * block_size - tokens[seq], 0)", "size = (high - low) * block_size"),
    Defect("utilisation_for_fragmentation", "fragmentation_analysis", "lengths.max(initial=0)", "used.sum()"),
    Defect("runs_end_at_32_blocks", "fragmentation_analysis", "edges = np.diff(np.r_[False, free, False].astype(np.int8))", "edges = np.diff(np.r_[False, free & (np.arange(len(free)) % 32 != 31), False].astype(np.int8))"),
    Defect("shared_tokens_counted_twice", "fragmentation_analysis", "fill.sum(dtype=np.int64)", "held.tokens.sum()"),
    # Bookkeeping and content
    Defect("additions_to_one_entry_counted_once", "block_bookkeeping", "np.add.at(flat, index[adds], value[adds].astype(flat.dtype))", "flat[index[adds]] += value[adds].astype(flat.dtype)"),
    Defect("flag_counted_up", "block_bookkeeping", " & ~((array == len(EDITED) - 1) & (operation == ADD))", ""),
    Defect("edit_outside_wraps", "block_bookkeeping", "(index >= 0) & (index < len(flat))", "(index < len(flat))"),
    Defect("content_of_every_layer_alike", "content_generation", "mix(seed, STREAM_KEY, layer, head, d)", "mix(seed, STREAM_KEY, 0, head, d)"),
    Defect("sinks_everywhere", "content_generation", "(position[part] >= 0) & (position[part] < NUM_SINKS)", "position[part] >= 0"),
    Defect("query_of_another_head", "content_generation", "np.repeat(centre[:, of[asked]].transpose(1, 0, 2), group, axis=1)", "np.tile(centre[:, of[asked]].transpose(1, 0, 2), (1, group, 1))"),
    Defect("stale_query_rows", "content_generation", "    query[:] = 0\n", ""),
    Defect("cached_blocks_are_free", "fragmentation_analysis", "free = ~used & ~kept", "free = ~used"),
)
# fmt: on


class Mutant:
    """The NumPy backend with one reference broken."""

    name = "mutant"

    def __init__(self, defect: Defect) -> None:
        definition = importlib.import_module(f"tinyserve_viz.kernels.defs.{defect.kernel}")
        broken = definition
        if defect.where:
            package = "tinyserve_viz" if "." in defect.where else "tinyserve_viz.kernels"
            broken = importlib.import_module(f"{package}.{defect.where}")
        elif defect.old not in inspect.getsource(definition):
            # The line lives in a definition that this one builds on.
            broken = next(
                module
                for name in ("block_allocation", "flash_paged_attention", "cache_selection")
                if defect.old
                in inspect.getsource(module := importlib.import_module(f"tinyserve_viz.kernels.defs.{name}"))
            )
        mutated = _executed(broken, defect)
        if broken is definition:
            self.reference: Any = mutated["reference"]
        else:
            namespace = _executed(definition, None)
            namespace.update({name: mutated[name] for name in mutated if name in namespace and name[:2] != "__"})
            self.reference = namespace["reference"] if broken.__name__.count(".defs.") == 0 else mutated["reference"]

    def supports(self, kernel: KernelDef) -> bool:
        return True

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, Any]:
        call = bind(kernel, arrays, scalars)
        given = {arg.name: call.arrays[arg.name] for arg in kernel.args if arg.role != "scratch"}
        with np.errstate(all="ignore"):
            status = self.reference(**given, **call.scalars)
        return {**call.outputs(), "status": np.array([int(status)], np.int32)}


def _executed(module: types.ModuleType, defect: Defect | None) -> dict[str, Any]:
    source = inspect.getsource(module)
    if defect:
        for old, new in ((defect.old, defect.new), *defect.more):
            assert old in source, f"{defect.name}: the reference no longer has {old!r}"
            source = source.replace(old, new)
    copy = types.ModuleType(module.__name__)
    exec(compile(source, module.__file__ or "", "exec"), copy.__dict__)
    return copy.__dict__


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_the_cases_catch(defect: Defect) -> None:
    mutant = Mutant(defect)
    results = [run_case(mutant, case) for case in CASES if case.kernel == defect.kernel]
    # A mutant that merely crashes would prove nothing about the comparison.
    caught = [result for result in results if result.outcome == "FAIL" and not result.detail.startswith("raised")]
    assert caught, f"no case of {defect.kernel} notices {defect.name}"


def test_defects_have_names_of_their_own() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


def test_the_page_of_published_defects_names_only_mutations_that_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "published-defects.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| [A-Z]+\d", line)]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.rsplit("|", 2)[1])} - {"pool_offset"}
    assert len(rows) > 50
    assert named <= {defect.name for defect in DEFECTS}
