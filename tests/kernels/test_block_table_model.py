"""Allocation, fork and release against a dictionary of who holds what, over random histories."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.cases.batch import Arrays
from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

ROWS, WIDTH, BLOCKS = 5, 6, 17


def run(name: str, arrays: Arrays, **scalars: int | str) -> Arrays:
    return NumpyBackend().run(kernel_named(name), arrays, scalars)


class BlockTable(RuleBasedStateMachine):
    """The kernels on arrays beside `held`: {(row, logical): block}, and the list of free ids in order."""

    @initialize()
    def start(self) -> None:
        self.table = np.full((ROWS, WIDTH), -1, np.int32)
        self.ref, self.gen = np.zeros(BLOCKS, np.int32), np.zeros(BLOCKS, np.int32)
        self.held: dict[tuple[int, int], int] = {}
        self.free = list(range(BLOCKS))

    @rule(
        wanted=st.lists(st.tuples(st.integers(-1, ROWS), st.integers(0, WIDTH)), max_size=12),
        all_or_nothing=st.booleans(),
    )
    def allocate(self, wanted: list[tuple[int, int]], all_or_nothing: bool) -> None:
        found = run(
            "block_allocation",
            {
                "reqs": np.array(wanted, np.int32).reshape(-1, 2), "free_order": np.array(self.free, np.int32),
                "block_table": self.table, "ref": self.ref, "gen": self.gen,
            },
            all_or_nothing=int(all_or_nothing),
        )  # fmt: skip
        inside = [(r, c) for r, c in wanted if 0 <= r < ROWS and c < WIDTH]
        valid = [cell for cell in dict.fromkeys(inside) if cell not in self.held]
        flags = Status.OK if len(inside) == len(wanted) else Status.RANGE
        flags |= Status.OK if len(valid) == len(inside) else Status.ALREADY_MAPPED
        flags |= Status.OOM if len(valid) > len(self.free) else Status.OK
        served = [] if len(valid) > len(self.free) and all_or_nothing else valid[: len(self.free)]
        assert Status(int(found["status"][0])) == flags
        assert found["allocated"][found["allocated"] >= 0].tolist() == self.free[: len(served)]
        for cell in served:
            self.held[cell] = self.free.pop(0)

    @rule(wanted=st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, WIDTH - 1)), max_size=12))
    def release(self, wanted: list[tuple[int, int]]) -> None:
        arrays = {"reqs": np.array(wanted, np.int32).reshape(-1, 2), "block_table": self.table, "ref": self.ref}
        found = run("block_deallocation", arrays)
        freed = []
        for cell in wanted:
            if cell in self.held:
                block = self.held.pop(cell)
                if block not in self.held.values():
                    freed.append(block)
        assert found["freed"][: found["num_freed"][0]].tolist() == freed
        self.free += freed

    @rule(parent=st.integers(0, ROWS - 1), child=st.integers(0, ROWS - 1), shared=st.integers(0, WIDTH))
    def fork(self, parent: int, child: int, shared: int) -> None:
        forks = np.array([[parent, child, shared]], np.int32)
        found = run("block_fork", {"forks": forks, "block_table": self.table, "ref": self.ref})
        if parent == child:
            assert found["status"][0] == Status.CONFLICT
            return
        for logical in range(shared):
            if (parent, logical) in self.held and (child, logical) not in self.held:
                self.held[child, logical] = self.held[parent, logical]

    @invariant()
    def arrays_say_what_the_dictionary_says(self) -> None:
        cells = {tuple(map(int, cell)): int(self.table[tuple(cell)]) for cell in np.argwhere(self.table >= 0)}
        assert cells == self.held
        owners = Counter(self.held.values())
        assert self.ref.tolist() == [owners[block] for block in range(BLOCKS)]
        assert sorted(self.free) == [block for block in range(BLOCKS) if not owners[block]]


BlockTable.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_random_histories_agree_with_a_dictionary = BlockTable.TestCase


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, WIDTH))
def test_forks_and_as_many_releases_return_to_the_beginning(children: int, blocks: int) -> None:
    table = np.full((ROWS, WIDTH), -1, np.int32)
    table[0, :blocks] = np.arange(3, 3 + blocks)
    ref = np.bincount(table[table >= 0], minlength=BLOCKS).astype(np.int32)
    before = table.copy(), ref.copy()
    forks = np.array([[0, child, blocks] for child in range(1, children + 1)], np.int32)
    run("block_fork", {"forks": forks, "block_table": table, "ref": ref})
    assert ref[3] == children + 1
    reqs = np.array([[c, b] for c in range(1, children + 1) for b in reversed(range(blocks))], np.int32)
    found = run("block_deallocation", {"reqs": reqs, "block_table": table, "ref": ref})
    assert found["num_freed"][0] == 0
    assert np.array_equal(table, before[0])
    assert np.array_equal(ref, before[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 30))
def test_advanced_allocation_never_gives_a_block_to_two_and_takes_the_oldest_of_a_region(
    seed: int, cache_size: int, requests: int
) -> None:
    rng = np.random.default_rng(seed)
    size = 40
    ref = (rng.random(size) < 0.3).astype(np.int32)
    last_use = rng.integers(0, 9, size).astype(np.int64)
    stamps = last_use.copy()
    hot = rng.integers(0, 12, requests).astype(np.int32)
    found = run(
        "advanced_block_allocation",
        {
            "reqs": np.stack(np.divmod(np.arange(requests), 6), axis=1).astype(np.int32), "request_freq": hot,
            "block_table": np.full((5, 6), -1, np.int32), "ref": ref, "gen": np.zeros(size, np.int32),
            "cached": np.zeros(size, np.uint8), "level": np.zeros(size, np.int32), "last_use": last_use,
            "uses": np.zeros(size, np.int32),
        },
        cache_size=cache_size, clock=50, all_or_nothing=0,
    )  # fmt: skip
    got = found["allocated"][found["allocated"] >= 0]
    assert len(np.unique(got)) == len(got) == found["num_allocated"][0]
    assert last_use[got].tolist() == list(range(51, 51 + len(got)))
    for wants_hot in (True, False):
        own = [b for b, f in zip(found["allocated"], hot, strict=True) if b >= 0 and (f > 5) == wants_hot]
        inside = [int(b) for b in own if (b < cache_size) == wants_hot]
        assert [stamps[b] for b in inside] == sorted(stamps[b] for b in inside)
        # Nobody leaves its region while that region still has a free block.
        if len(inside) < len(own):
            left = [b for b in range(size) if ref[b] == 0 and (b < cache_size) == wants_hot]
            assert not left
