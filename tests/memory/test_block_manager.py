"""The paged allocator's answers on states made by hand, and the account of every prompt token."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.test_eviction import NUM, empty_state, filled
from tinyserve_viz.core import workload as wl
from tinyserve_viz.core.events import I32, BlocksCached
from tinyserve_viz.core.rules import profile
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.block_manager import BlockManager, explain_prompt, tokens_per_class

BLOCK = 16


def ids(values: list[int]) -> I32:
    return np.array(values, dtype=np.int32)


def caching(pairs: dict[int, int]) -> CacheState:
    """A state in which content → block."""
    state = empty_state()
    for content, block in pairs.items():
        state.block_of_hash[content] = block
        state.hash[block] = content
        state.ever_cached[content] = True
    return state


def test_a_lookup_takes_the_run_from_the_head_and_stops_at_the_first_gap() -> None:
    state = caching({0: 5, 1: 3, 3: 7})
    manager = BlockManager()
    assert manager.lookup(state, ids([0, 1, 2, 3]), 9).tolist() == [5, 3]
    assert manager.lookup(state, ids([0, 1, 2, 3]), 1).tolist() == [5]
    assert manager.lookup(state, ids([2, 3]), 9).tolist() == []
    assert manager.lookup(state, ids([]), 9).tolist() == []
    assert BlockManager(prefix_caching=False).lookup(state, ids([0, 1]), 9).tolist() == []


def test_the_free_order_names_where_each_block_came_from_and_who_would_be_next() -> None:
    state = filled([4, 9], list(range(NUM)), [1] * NUM, [0] * NUM, 0)  # 4 and 9 cached, all others in use
    state.free.push_back(ids([2, 6]))
    state.gen[:] = 1
    state.gen[2] = 0  # never used
    manager = BlockManager()
    for count, blocks, evicted, told in (
        (1, [2], [], (1, 0, 0, 6)),
        (2, [2, 6], [], (1, 1, 0, 4)),
        (3, [2, 6, 4], [4], (1, 1, 1, 9)),
        (4, [2, 6, 4, 9], [4, 9], (1, 1, 2, -1)),
    ):
        events, chosen, origin = manager.choose_blocks(state, count)
        assert (chosen.tolist(), origin) == (blocks, told)
        assert [block for event in events for block in event.blocks.tolist()] == evicted  # type: ignore[attr-defined]


def test_one_queue_evicts_what_carries_a_hash_where_it_stands() -> None:
    state = CacheState(empty_state().workload, 4, BLOCK, 1, True)
    state.hash[2], state.gen[2] = 5, 1
    manager = BlockManager(rules=profile("vllm"))
    events, chosen, origin = manager.choose_blocks(state, 2)
    assert (chosen.tolist(), origin) == ([1, 2], (1, 0, 1, 3))
    assert [event.blocks.tolist() for event in events] == [[2]]  # type: ignore[attr-defined]


def test_a_content_that_is_cached_already_is_not_indexed_again_unless_the_rules_say_so() -> None:
    state = caching({0: 5})
    blocks, hashes = ids([1, 2, 3]), ids([0, 4, 4])
    one = BlockManager().index(state, blocks, hashes)
    assert isinstance(one, BlocksCached)
    assert (one.blocks.tolist(), one.hashes.tolist()) == ([2], [4])
    all_of_them = BlockManager(rules=profile("vllm")).index(state, blocks, hashes)
    assert isinstance(all_of_them, BlocksCached)
    assert (all_of_them.blocks.tolist(), all_of_them.hashes.tolist()) == ([1, 2, 3], [0, 4, 4])
    assert BlockManager().index(state, ids([1]), ids([0])) is None
    assert BlockManager(prefix_caching=False).index(state, blocks, hashes) is None


def test_each_block_of_a_prompt_has_the_first_cause_that_fits() -> None:
    state = caching({0: 5, 2: 7, 5: 8})
    state.ever_cached[[1, 3]] = True
    # content 0 is cached; 1 was; 2 is, behind 1; 3 was; 4 never was; 5 is; then a block without a hash and a rest
    causes = explain_prompt(state, ids([0, 1, 2, 3, 4, 5]), 7 * BLOCK + 3, 1, 7, 0, None)
    assert [wl.MISS_CAUSES[cause] for cause in causes.tolist()] == [
        "hit", "evicted", "orphaned", "evicted", "cold", "orphaned", "tail", "tail",
    ]  # fmt: skip
    assert tokens_per_class(causes, 7 * BLOCK + 3, BLOCK).tolist() == [16, 1, 18, 16, 32, 0, 32]


def test_at_a_readmission_only_blocks_that_were_held_and_are_lost_change_their_cause() -> None:
    state = caching({0: 5})
    state.ever_cached[[1, 2]] = True
    old = np.array([wl.COLD, wl.HIT, wl.EVICTED, wl.TAIL], dtype=np.uint8)
    causes = explain_prompt(state, ids([0, 1, 2]), 3 * BLOCK + 5, 1, 3, 2, old)
    assert [wl.MISS_CAUSES[cause] for cause in causes.tolist()] == ["cold", "preempted", "evicted", "tail"]


@st.composite
def lookups(draw: st.DrawFn) -> tuple[CacheState, list[int], int]:
    cached = draw(st.lists(st.integers(0, NUM - 1), unique=True))
    state = caching({content: block for block, content in enumerate(cached)})
    state.ever_cached |= np.array(draw(st.lists(st.booleans(), min_size=NUM, max_size=NUM)))
    prompt = draw(st.integers(1, 8 * BLOCK))
    known = draw(st.permutations(range(NUM)))[: draw(st.integers(0, prompt // BLOCK))]
    return state, list(known), prompt


@given(lookups())
def test_the_classes_of_any_prompt_add_up_to_its_length(case: tuple[CacheState, list[int], int]) -> None:
    state, known, prompt = case
    most = (prompt - 1) // BLOCK
    hits = BlockManager().lookup(state, ids(known), most)
    causes = explain_prompt(state, ids(known), prompt, len(hits), most, 0, None)
    tokens = tokens_per_class(causes, prompt, BLOCK)
    assert int(tokens.sum()) == prompt
    assert (tokens >= 0).all()
    assert tokens[wl.HIT] == len(hits) * BLOCK
    assert tokens[wl.CAPPED] in (1, BLOCK)
    cold = [content for content in known[len(hits) :] if not state.ever_cached[content]]
    assert int((causes == wl.COLD).sum()) == len(cold)
