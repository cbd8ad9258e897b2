"""The fragmentation of literal pools, and of random histories against the kernel's count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.histories import settings_for, traces
from tests.memory.test_eviction import NUM, empty_state
from tinyserve_viz.analysis.fragmentation import Fragmentation, fragmentation, measure, verdict_in_words
from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.defs.fragmentation_analysis import METRICS, ratios
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.trace.request import Trace


def ids(*blocks: int) -> ev.I32:
    return np.array(blocks, dtype=np.int32)


def pool(used: list[int], fill: list[int], cached: tuple[int, ...] = ()) -> CacheState:
    """Twelve blocks of 16 tokens, of which `used` hold `fill` tokens in one sequence and `cached` are only indexed."""
    state = empty_state()
    state.ref[used] = 1
    state.fill[used] = fill
    state.hash[list(cached)] = np.arange(len(cached))
    state.tables = np.full((1, NUM), -1, dtype=np.int32)
    state.tables[0, : len(used)] = used
    state.slot[0], state.num_held[0], state.ctx[0] = 0, len(used), sum(fill)
    return state


@pytest.mark.parametrize(
    ("used", "fill", "cached", "expected"),
    [
        # nothing used: one run of all
        ([], [], (), {"internal": None, "external": 0.0, "frag_ratio": None, "stranded": None, "scatter": None,
                      "num_free_runs": 1, "longest_free_run": 12, "run_histogram": [0, 0, 0, 1]}),
        # packed: 12 tokens are missing in the last block
        ([0, 1, 2], [16, 16, 4], (), {"internal": 1 - 36 / 48, "external": 0.0, "frag_ratio": 1.0, "stranded": 0.25,
                                      "scatter": 0.0, "num_free_runs": 1, "longest_free_run": 9,
                                      "run_histogram": [0, 0, 0, 1]}),
        # U···U····UU·: runs of 3, 4 and 1; of super-pages of 4, three are held, with 8 unused blocks
        ([0, 4, 9, 10], [16, 16, 16, 8], (), {"internal": 1 - 56 / 64, "external": 1 - 4 / 8, "frag_ratio": 11 / 4,
                                              "stranded": 8 / 12, "scatter": 2 / 3, "num_free_runs": 3,
                                              "longest_free_run": 4, "run_histogram": [1, 1, 1]}),
        # cached blocks are neither used nor free: U··· CC·· ····, the cached super-page can be given back
        ([0], [16], (4, 5), {"internal": 0.0, "external": 1 - 6 / 9, "frag_ratio": 1.0, "stranded": 3 / 8,
                             "scatter": None, "num_free_runs": 2, "longest_free_run": 6, "run_histogram": [0, 1, 1]}),
        (list(range(12)), [16] * 12, (), {"internal": 0.0, "external": None, "frag_ratio": 1.0, "stranded": 0.0,
                                          "scatter": 0.0, "num_free_runs": 0, "longest_free_run": 0,
                                          "run_histogram": []}),
    ],
)  # fmt: skip
def test_measures_of_a_paged_pool(
    used: list[int], fill: list[int], cached: tuple[int, ...], expected: dict[str, Any]
) -> None:
    found = measure(pool(used, fill, cached), super_size=4).as_dict()
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_a_null_block_is_not_live() -> None:
    state = pool([3], [16])
    state.ref[0], state.null_blocks = 1, 1
    assert measure(state).frag_ratio == 4.0


def test_fragmentation_of_reserved_ranges() -> None:
    state = empty_state()  # 192 slots
    state.reserved_start = np.array([100, 20, -1], dtype=np.int64)
    state.reserved_len = np.array([40, 60, 0], dtype=np.int64)
    state.ctx = ids(10, 40, 0)
    found = fragmentation(state)  # holes of 20, 20 and 52 slots
    assert found["run_histogram"] == [0, 0, 0, 0, 2, 1]
    assert {name: value for name, value in found.items() if name != "run_histogram"} == {
        "internal": 0.5,
        "internal_per_sequence": 0.5,
        "external": 1 - 52 / 92,
        "frag_ratio": 1.4,
        "stranded": None,
        "scatter": None,
        "num_free_runs": 3,
        "longest_free_run": 3,
    }


def counted_by_the_kernel(state: CacheState, super_size: int) -> tuple[dict[str, Any], Any, dict[str, int]]:
    rows = np.flatnonzero(state.slot >= 0)
    lens = np.zeros(len(state.slot_used), dtype=np.int32)
    lens[state.slot[rows]] = state.num_held[rows] * state.block_size
    lens[state.slot[rows]] = np.minimum(lens[state.slot[rows]], np.maximum(state.ctx[rows], 0))
    outputs = NumpyBackend().run(
        kernel_named("fragmentation_analysis"),
        {
            "ref": state.ref,
            "cached": ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8),
            "block_table": np.ascontiguousarray(state.tables),
            "seq_lens": lens,
        },
        {"block_size": state.block_size, "super_size": super_size},
    )
    named = dict(zip(METRICS, outputs["metrics"].tolist(), strict=True))
    return ratios(outputs["metrics"], state.block_size), outputs["run_histogram"], named


@settings(max_examples=25, deadline=None)
@given(traces(), settings_for(), st.sampled_from([1, 2, 3, 8]))
def test_the_kernel_counts_the_same_at_the_end_of_every_step(trace: Trace, chosen: Settings, super_size: int) -> None:
    header = prepare(trace, chosen)
    if header.engine.allocator != "paged" or header.rules.null_block:
        return

    def compare(_step: int, event: ev.Event) -> None:
        if not isinstance(event, ev.StepEnded):
            return
        found: Fragmentation = measure(engine.state, super_size)
        measures, histogram, named = counted_by_the_kernel(engine.state, super_size)
        if engine.state.has_forks:  # a block that a parent left may hold more tokens than its child reads of it
            measures.pop("internal")
        ours = {name: getattr(found, name) for name in measures}
        assert ours == pytest.approx(measures)
        assert np.array_equal(found.run_histogram, histogram)
        assert (found.num_free_runs, found.longest_free_run) == (named["num_runs"], named["longest_free_run"])

    engine = Engine(header.workload, header.engine, header.rules, compare)
    while engine.step():
        pass


def test_the_verdict_says_what_costs_nothing_and_what_may() -> None:
    found = measure(pool([0, 4, 9, 10], [16, 16, 16, 8]), super_size=4)
    external, internal, scatter, stranded = verdict_in_words(found, 4096)
    assert external == (
        "external 50 %: any free block serves any request, so external fragmentation costs no capacity here, "
        "at any value"
    )
    assert internal == "internal 12 %: this is what a paged pool loses; smaller blocks lose less"
    assert "4,096 bytes of a block in a row, 128 memory sectors, so scatter makes it fetch no more bytes" in scatter
    assert stranded.startswith("stranded 67 %")
    assert "gaps between blocks waste part of a memory burst" in verdict_in_words(found, 64)[2]
