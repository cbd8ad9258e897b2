"""Content ids of blocks: equal where and only where the block and all before it are equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.trace import Request, Trace, block_hashes, prefix_references, read_trace


def by_ids(index: int, prompt_len: int, *ids: int, output_len: int = 0, n: int = 1) -> Request:
    return Request(f"r{index}", 0, prompt_len, output_len, prefix_hash_ids=np.array(ids, dtype=np.int64), n=n)


def by_tokens(index: int, prompt: list[int], output: list[int] | None = None, output_len: int = 0) -> Request:
    tokens = np.array(prompt, dtype=np.int32)
    made = None if output is None else np.array(output, dtype=np.int32)
    length = output_len if output is None else len(output)
    return Request(f"r{index}", 0, len(prompt), length, prompt_tokens=tokens, output_tokens=made)


def ids_of(trace: Trace, block_size: int, outputs: bool = False) -> list[list[int]]:
    hashes = block_hashes(trace, block_size, outputs)
    assert hashes.flat.dtype == np.int32
    assert hashes.offsets.dtype == np.int64
    lists = [hashes.of(index).tolist() for index in range(len(trace.requests))]
    assert sorted({block for blocks in lists for block in blocks}) == list(range(hashes.num_hashes))
    return lists


def test_ids_are_numbered_by_first_appearance_and_only_full_blocks_have_one() -> None:
    trace = Trace("t", "json", (by_ids(0, 10, 900, 7, 31), by_ids(1, 8, 900, 55), by_ids(2, 3)), hash_block=4)
    assert ids_of(trace, 4) == [[0, 1], [0, 2], []]


def test_an_id_of_a_large_block_is_split_and_its_partly_filled_last_blocks_are_left_out() -> None:
    trace = Trace("t", "mooncake", (by_ids(0, 11, 40, 41), by_ids(1, 16, 40, 42), by_ids(2, 9, 40, 41)), hash_block=8)
    assert ids_of(trace, 4) == [[0, 1], [0, 1, 2, 3], [0, 1]]
    assert ids_of(trace, 2) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 5, 6, 7, 8], [0, 1, 2, 3]]


def test_an_id_first_seen_partly_filled_keeps_its_number_when_seen_full() -> None:
    trace = Trace("t", "json", (by_ids(0, 5, 3), by_ids(1, 8, 3)), hash_block=8)
    assert ids_of(trace, 4) == [[0], [0, 1]]


def test_fewer_ids_than_blocks_leave_the_rest_of_the_prompt_unknown() -> None:
    trace = Trace("t", "json", (by_ids(0, 16, 5, output_len=8),), hash_block=4)
    assert ids_of(trace, 4) == [[0]]
    assert ids_of(trace, 4, outputs=True) == [[0]]


def test_blocks_that_reach_into_an_unknown_output_have_ids_of_their_own() -> None:
    trace = Trace(
        "t",
        "json",
        (by_ids(0, 6, 5, 6, output_len=6), by_ids(1, 6, 5, 6, output_len=2), by_ids(2, 6, 5, 6, output_len=6, n=2)),
        hash_block=4,
    )
    assert ids_of(trace, 4, outputs=True) == [[0, 1, 2], [0, 3], [0]]


def test_real_tokens_are_chained_over_prompt_and_output() -> None:
    trace = Trace(
        "t",
        "tokens",
        (
            by_tokens(0, [1, 2, 3, 4, 5], [6, 7]),
            by_tokens(1, [1, 2, 3, 4, 5, 6]),
            by_tokens(2, [9, 9, 3, 4]),
            by_tokens(3, [1, 2, 3], output_len=3),
        ),
    )
    assert ids_of(trace, 2) == [[0, 1], [0, 1, 2], [3, 4], [0]]
    assert ids_of(trace, 2, outputs=True) == [[0, 1, 2], [0, 1, 2], [3, 4], [0, 5, 6]]


def test_requests_with_ids_with_tokens_and_with_neither_live_in_one_trace() -> None:
    both = Request("r3", 0, 4, 0, prefix_hash_ids=np.array([8]), prompt_tokens=np.array([1, 2, 3, 4], dtype=np.int32))
    trace = Trace(
        "t", "json", (by_tokens(0, [1, 2, 3, 4]), Request("r1", 0, 40, 9), by_ids(2, 4, 8), both), hash_block=4
    )
    assert ids_of(trace, 4) == [[1], [], [0], [0]]
    assert ids_of(trace, 4, outputs=True) == [[1], [], [0], [0]]


def test_a_block_size_that_does_not_divide_the_hash_block_is_refused() -> None:
    trace = Trace("t", "json", (by_ids(0, 10, 1),), hash_block=16)
    with pytest.raises(ConfigError) as raised:
        block_hashes(trace, 24)
    assert str(raised.value) == (
        "block_size is 24, expected a divisor of t's hash_block 16 (one prefix hash id covers that many tokens)"
    )
    assert ids_of(Trace("t", "json", (by_tokens(0, [1]),), hash_block=16), 24) == [[]]


def test_more_ids_than_the_replay_block_size_allows_are_refused() -> None:
    trace = Trace("t", "json", (by_ids(0, 10, 1, 2, 3),))
    assert ids_of(trace, 4) == [[0, 1]]
    with pytest.raises(ConfigError) as raised:
        block_hashes(trace, 16)
    assert str(raised.value) == (
        "t: request 'r0' has 3 prefix_hash_ids, expected at most ceil(10 / 16) = 1; "
        "hash_block sets how many tokens an id covers"
    )


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=6), st.integers(1, 4))
def test_ids_are_equal_exactly_where_all_tokens_so_far_are_equal(
    texts: list[tuple[list[int], list[int]]], block_size: int
) -> None:
    trace = Trace("t", "tokens", tuple(by_tokens(i, prompt, output) for i, (prompt, output) in enumerate(texts)))
    for outputs in (False, True):
        known = [prompt + output if outputs else prompt for prompt, output in texts]
        expected: dict[tuple[int, ...], int] = {}
        lists = [
            [
                expected.setdefault(tuple(text[:end]), len(expected))
                for end in range(block_size, len(text) + 1, block_size)
            ]
            for text in known
        ]
        assert ids_of(trace, block_size, outputs) == lists


@given(
    st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 9), unique=True)), min_size=1, max_size=6),
    st.sampled_from([1, 2, 4, 8]),
)
def test_split_ids_are_equal_exactly_where_id_and_place_are_equal(
    rows: list[tuple[int, list[int]]], block_size: int
) -> None:
    rows = [(length, ids[: -(-length // 8)]) for length, ids in rows]
    trace = Trace("t", "json", tuple(by_ids(i, length, *ids) for i, (length, ids) in enumerate(rows)), hash_block=8)
    names = [
        [
            (ids[start // 8], start % 8)
            for start in range(0, length - block_size + 1, block_size)
            if start < 8 * len(ids)
        ]
        for length, ids in rows
    ]
    found = ids_of(trace, block_size)
    assert [len(row) for row in found] == [len(row) for row in names]
    pairs = {(name, id_) for row, ids in zip(names, found, strict=True) for name, id_ in zip(row, ids, strict=True)}
    assert len(pairs) == len({name for name, _ in pairs}) == len({id_ for _, id_ in pairs})


def test_references_include_a_last_partly_filled_block_that_an_id_covers() -> None:
    trace = Trace("t", "json", (by_ids(0, 11, 40, 41), by_ids(1, 16, 40), Request("r2", 0, 7, 0)), hash_block=8)
    hashes, tokens = prefix_references(trace, 8)
    assert (hashes.flat.tolist(), hashes.offsets.tolist(), tokens.tolist()) == ([0, 1, 0], [0, 2, 3, 3], [8, 3, 8])
    hashes, tokens = prefix_references(trace, 2)
    assert tokens.tolist() == [2, 2, 2, 2, 2, 1, 2, 2, 2, 2]
    assert hashes.flat.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


def test_mooncake_has_nine_million_references_in_blocks_of_16(real_traces: Path) -> None:
    trace = read_trace(real_traces / "mooncake_conversation.jsonl")
    hashes = block_hashes(trace, 16)
    assert (len(hashes.flat), hashes.num_hashes) == (9_044_013, 5_662_916)
    references, tokens = prefix_references(trace, 512)
    assert (len(references.flat), references.num_hashes) == (288_500, 182_790)
    assert tokens.sum() == sum(request.prompt_len for request in trace.requests)
