"""The tokens that choices read, counted from the lists of blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyserve_viz.engine.quality import tokens_of


@given(st.data())
def test_tokens_read_are_those_of_the_listed_blocks_one_by_one(data: st.DataObject) -> None:
    block_size, heads = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    context = data.draw(st.lists(st.integers(1, 23), min_size=1, max_size=4))
    most = 24
    selected = np.full((len(context), heads, most), -1, np.int32)
    count = np.zeros((len(context), heads), np.int32)
    expected = 0
    for row, length in enumerate(context):
        for head in range(heads):
            blocks = sorted(data.draw(st.sets(st.integers(0, -(-length // block_size) - 1))))
            selected[row, head, : len(blocks)] = blocks
            count[row, head] = len(blocks)
            expected += sum(min(block_size, length - block * block_size) for block in blocks)
    assert tokens_of(selected, count, np.array(context, np.int32), block_size, 2 * heads) == 2 * expected
