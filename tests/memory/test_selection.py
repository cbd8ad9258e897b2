"""The list of selection policies, and the whole numbers by which some of them rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinyserve_viz.memory.policies.selection as folder
from tinyserve_viz.core.config import SELECTIONS
from tinyserve_viz.kernels.defs.cache_selection import MODES
from tinyserve_viz.memory.policies.selection import SELECTION, selection_named
from tinyserve_viz.memory.policies.selection.policy import BUDGETS, RANKINGS, Asked, SelectionPolicy


def asked(seed: int = 0, layer: int = 0) -> Asked:
    """Two sequences of 3 and 5 blocks, two heads, tables of 6."""
    seqs, context = np.array([4, 9], dtype=np.int32), np.array([40, 70], dtype=np.int32)
    return Asked(seqs, context, np.array([3, 5], dtype=np.int32), layer, 2, 6, seed)


def test_every_file_of_the_folder_is_a_policy_on_the_list_and_can_be_asked_for() -> None:
    files = {path.stem.replace("_", "-") for path in Path(folder.__file__).parent.glob("*.py")}
    names = [policy.name for policy in SELECTION]
    assert set(names) == files - {"--init--", "policy"}
    assert len(set(names)) == len(names)
    assert set(names) == set(SELECTIONS)
    assert [selection_named(name).name for name in names] == names


@pytest.mark.parametrize("policy", SELECTION, ids=lambda policy: policy.name)
def test_a_policy_is_complete(policy: SelectionPolicy) -> None:
    assert policy.ranks_by in RANKINGS
    assert policy.budget in BUDGETS
    assert set(BUDGETS) == set(MODES)
    assert (policy.order is not None) == (policy.ranks_by == "order")
    assert policy.source
    assert policy.summary


@pytest.mark.parametrize("policy", [p for p in SELECTION if p.order], ids=lambda policy: policy.name)
def test_orders_are_whole_numbers_that_float32_holds_and_depend_on_nothing_but_what_is_asked(
    policy: SelectionPolicy,
) -> None:
    assert policy.order is not None
    found = policy.order(asked())
    assert found.shape == (2, 2, 6)
    assert found.dtype == np.float32
    assert (found == np.floor(found)).all()
    assert 0 <= found.min() <= found.max() < 1 << 24
    assert np.array_equal(found, policy.order(asked()))


def test_recency_and_streaming_rank_the_newest_first_and_the_published_drop_the_oldest() -> None:
    for name, expected in (("recency", [0, 1, 2, 3, 4, 5]), ("streaming", [0, 1, 2, 3, 4, 5]),
                           ("seed-published", [6, 5, 4, 3, 2, 1])):  # fmt: skip
        order = selection_named(name).order
        assert order is not None
        assert order(asked())[1, 1].tolist() == expected


def test_lots_differ_by_seed_layer_head_sequence_and_step() -> None:
    order = selection_named("random").order
    assert order is not None
    first = order(asked())
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert not np.array_equal(first, order(asked(seed=1)))
    assert not np.array_equal(first, order(asked(layer=1)))
    wide = Asked(np.arange(400, dtype=np.int32), np.full(400, 9, np.int32), np.full(400, 64, np.int32), 0, 1, 64, 5)
    chosen = np.argsort(-order(wide), axis=2)[:, :, :16]
    counts = np.bincount(chosen.ravel(), minlength=64)  # 400 · 16 draws over 64 blocks: 100 each, deviation 9
    assert 60 < counts.min() <= counts.max() < 140
