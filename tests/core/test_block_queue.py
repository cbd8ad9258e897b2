"""The queue of free blocks against a plain list."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyserve_viz.core.block_queue import BlockQueue

NUM = 23


def ids(blocks: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(blocks, dtype=np.int32)


@settings(max_examples=120)
@given(
    st.lists(
        st.tuples(st.sampled_from(["back", "front", "remove", "take", "copy", "restore"]), st.randoms()), max_size=120
    )
)
def test_it_keeps_the_order_of_a_list_through_any_history(history: list[tuple[str, object]]) -> None:
    queue, model = BlockQueue(NUM), []
    for what, random in history:
        absent = [block for block in range(NUM) if block not in model]
        random.shuffle(absent)  # type: ignore[attr-defined]
        some = absent[: random.randint(0, len(absent))]  # type: ignore[attr-defined]
        if what == "back":
            queue.push_back(ids(some))
            model += some
        elif what == "front":
            queue.push_front(ids(some))
            model = some + model
        elif what == "remove":
            gone = [block for block in model if random.random() < 0.4]  # type: ignore[attr-defined]
            queue.remove(ids(gone))
            model = [block for block in model if block not in gone]
        elif what == "take":
            count = random.randint(0, len(model))  # type: ignore[attr-defined]
            assert queue.front(count).tolist() == model[:count]
            queue.remove(queue.front(count))
            model = model[count:]
        elif what == "copy":
            queue = queue.copy()
        else:
            queue = BlockQueue.from_places(queue.pos.copy())
        assert queue.order().tolist() == model
        assert queue.size == len(model)
        assert queue.front(3).tolist() == model[:3]
        assert queue.front(9).tolist() == model[:9]


def test_a_copy_does_not_share_its_arrays() -> None:
    queue = BlockQueue(4)
    queue.push_back(ids([2, 0]))
    other = queue.copy()
    other.push_back(ids([1]))
    assert queue.order().tolist() == [2, 0]
    assert other.order().tolist() == [2, 0, 1]


def test_a_long_run_of_dead_entries_at_the_front_is_passed() -> None:
    queue = BlockQueue(5000)
    queue.push_back(np.arange(5000, dtype=np.int32))
    queue.remove(np.arange(1, 4990, dtype=np.int32))
    assert queue.front(2).tolist() == [0, 4990]
    queue.remove(ids([0]))
    assert queue.front(1).tolist() == [4990]
