"""Observed quality against attention worked out here in float64, and against choices written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine import captures
from tests.engine.captures import DIM, HEADS, KV_HEADS, two_requests
from tests.engine.test_choosing import choices, replayed
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.config import EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.quality import Truth, Watcher, oracle_choice
from tinyserve_viz.memory.policies.selection import selection_named

GROUP = HEADS // KV_HEADS


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captures.write(tmp_path_factory.mktemp("capture") / "c.npz")


def walk(events: list[ev.BlocksSelected]) -> list[tuple[ev.BlocksSelected, int, int, np.ndarray]]:
    """(event, place, context, attention share [query heads][tokens] in float64) of every choice."""
    made, age, found = captures.arrays(), dict[tuple[int, int], int](), []
    for event in events:
        for place, seq in enumerate(event.seqs.tolist()):
            age[event.layer, seq] = age.get((event.layer, seq), 0) + 1
            context = {0: 80, 1: 45}[seq] + age[event.layer, seq]
            q = made["q"][event.layer, context - 1].astype(np.float64)
            k = made["k"][event.layer, :context].astype(np.float64)
            logits = np.stack([k[:, head // GROUP] @ q[head] / np.sqrt(DIM) for head in range(HEADS)])
            share = np.exp(logits - logits.max(axis=1, keepdims=True))
            found.append((event, place, context, share / share.sum(axis=1, keepdims=True)))
    return found


@pytest.mark.parametrize("kernels", ["all", "decisions"])
@pytest.mark.parametrize("policy", ["paper", "random", "seed-published"])
def test_retained_mass_is_the_directly_summed_attention(kernels: str, policy: str, capture: Path) -> None:
    _, events = replayed(capture, kernels=kernels, selection=policy)
    assert len(events) > 20
    for event, place, context, share in walk(events):
        found = event.retained.reshape(len(event.seqs), HEADS)[place]
        kept = choices(event)[place]
        for head in range(HEADS):
            mine = np.isin(np.arange(context) // 8, kept[head // GROUP])
            assert abs(found[head] - share[head, mine].sum()) < 1e-3


def test_recall_chance_and_the_oracles_mass_are_those_of_the_best_blocks(capture: Path) -> None:
    _, events = replayed(capture, selection="paper", budget_blocks=4)
    for event, place, context, share in walk(events):
        blocks = -(-context // 8)
        mass = np.stack([share[:, at * 8 : at * 8 + 8].sum(axis=1) for at in range(blocks)], axis=1)
        for kv_head, kept in enumerate(choices(event)[place]):
            own = mass[kv_head * GROUP : (kv_head + 1) * GROUP]
            best = set(np.argsort(-own.mean(axis=0), kind="stable")[: len(kept)].tolist())
            at = place * KV_HEADS + kv_head
            assert event.recalls[at] == pytest.approx(len(best & set(kept)) / len(kept))
            assert event.chances[at] == pytest.approx(len(kept) / blocks)
            oracle = event.oracle_retained.reshape(len(event.seqs), KV_HEADS, GROUP)[place, kv_head]
            assert oracle == pytest.approx(own[:, sorted(best)].sum(axis=1), abs=1e-4)


def test_no_choice_of_as_many_blocks_keeps_more_than_the_oracle(capture: Path) -> None:
    for policy in ("paper", "streaming", "snapkv", "random"):
        _, events = replayed(capture, selection=policy, budget_blocks=4)
        for event in events:
            kept, best = (m.reshape(-1, GROUP).mean(axis=1) for m in (event.retained, event.oracle_retained))
            assert (best >= kept - 1e-6).all()


@pytest.mark.parametrize("content", [None, {"kind": "topics"}, {"kind": "iid"}])
def test_the_bound_holds_to_the_last_bit(content: dict[str, Any] | None, capture: Path) -> None:
    _, events = replayed(capture, content=content, selection="paper")
    least = np.concatenate([event.slack_least for event in events])
    mean = np.concatenate([event.slack_mean for event in events])
    assert least.min() >= 0  # no epsilon: both sides are rounded alike
    assert (mean >= least).all()
    assert mean.max() > 0.1


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_bound_holds_for_sums_over_query_heads_up_to_rounding(reduction: str, capture: Path) -> None:
    _, events = replayed(capture, selection="paper", reduction=reduction)
    assert min(float(event.slack_least.min()) for event in events) >= 0


def test_a_broken_box_is_seen(capture: Path) -> None:
    """A score that is no bound any more must come out below 0: the check can fail."""
    score = np.full((1, 1, 2), 3.0, dtype=np.float32)
    truth = Truth(
        score=score, mass=np.full((1, 1, 2), 0.5, np.float32), peak=np.array([[[0.5, 0.8]]], np.float32),
        num_blocks=np.array([2], np.int32), scale=np.float32(0.25), reduction="max",
    )  # fmt: skip
    found = watcher(num_heads=1, num_kv_heads=1).observe(0, np.array([0], np.int32), mask([[1, 0]]), truth)
    assert found["slack_least"].tolist() == [pytest.approx(-0.05)]
    assert found["slack_mean"].tolist() == [pytest.approx(0.1)]


def watcher(**model: int) -> Watcher:
    header = prepare(two_requests(), Settings(kernels="none"))
    state: CacheState = header.empty_state()
    return Watcher(state, EngineConfig(block_size=8, num_blocks=32), ModelConfig(head_dim=16, **model))


def mask(rows: list[list[int]]) -> np.ndarray:
    """bool [sequences][1][blocks]."""
    return np.array(rows, dtype=np.bool_)[:, None]


def test_reuse_and_next_step_recall_look_back_one_step_and_no_further() -> None:
    watching = watcher(num_heads=1, num_kv_heads=1)
    state = watching._state

    def seen(step: int, seqs: list[int], chosen: list[list[int]], mass: list[list[float]]) -> Any:
        state.step = step
        k, width = len(seqs), len(mass[0])
        truth = Truth(
            score=np.ones((k, 1, width), np.float32), mass=np.array(mass, np.float32)[:, None],
            peak=np.zeros((k, 1, width), np.float32), num_blocks=np.full(k, width, np.int32),
            scale=np.float32(1), reduction="max",
        )  # fmt: skip
        found = watching.observe(0, np.array(seqs, np.int32), mask(chosen), truth)
        return found["reuses"].tolist(), found["next_recalls"].tolist(), found["recalls"].tolist()

    assert seen(4, [1], [[1, 1, 0, 0]], [[0.6, 0.1, 0.3, 0]]) == ([-1], [-1], [0.5])
    # Sequence 1 keeps one of its blocks; of the oracle's {1, 2} the step before had chosen block 1. Sequence 0 is new;
    # of its four equals but one the oracle takes the lower, block 1.
    assert seen(5, [0, 1], [[1, 0, 0, 1], [0, 1, 0, 1]], [[1, 0, 0, 0], [0, 0.5, 0.5, 0]]) == (
        [-1, 0.5], [-1, 0.5], [0.5, 0.5],
    )  # fmt: skip
    assert seen(7, [1], [[0, 1, 0, 1]], [[0, 0.5, 0.5, 0]]) == ([-1], [-1], [0.5])  # a step lies between


def test_the_oracle_takes_the_greatest_mass_and_the_lower_block_of_equals() -> None:
    mass = np.array([[[0.1, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]]], dtype=np.float32)
    assert oracle_choice(mass, np.array([[3, 2]])).tolist() == [[[True, True, True, False], [True, True, False, False]]]


@given(st.data())
def test_the_oracles_choice_is_that_of_a_stable_sort(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 9))
    rows = st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=width, max_size=width)
    mass = np.array([[data.draw(rows), data.draw(rows)]], dtype=np.float32)
    kept = np.array([[data.draw(st.integers(0, width)), data.draw(st.integers(0, width))]])
    expected = np.zeros(mass.shape, dtype=np.bool_)
    for head in range(2):
        expected[0, head, np.argsort(-mass[0, head], kind="stable")[: kept[0, head]]] = True
    assert oracle_choice(mass, kept).tolist() == expected.tolist()


def test_what_was_read_to_choose_depends_on_the_policy() -> None:
    watching = watcher(num_heads=4, num_kv_heads=2)
    watching._state.num_used = 5
    row, boxes = 2 * 16, 2 * 2 * 16 * 2  # bytes of a K or V row of a head, of a block's boxes over two heads
    found = {
        name: watching.meters(40, 100, 9, selection_named(name))
        for name in ("paper", "seed", "seed-published", "oracle", "snapkv", "random", "streaming")
    }
    assert {name: meters["bytes_to_choose"] for name, meters in found.items()} == {
        "paper": 9 * boxes, "seed": 9 * boxes, "seed-published": 9 * boxes,
        "oracle": 100 * row, "snapkv": 100 * row, "random": 0, "streaming": 0,
    }  # fmt: skip
    assert found["paper"]["bytes_read"] == 40 * 2 * row
    assert found["paper"]["bytes_dense"] == 100 * 2 * row
    assert found["paper"]["bytes_resident"] == 5 * (8 * 2 * 2 * row + boxes)


def test_on_iid_content_the_box_score_is_near_chance_and_the_summary_says_so() -> None:
    settings = Settings(
        engine={"block_size": 16, "num_blocks": 96, "sinks": 0, "recent": 0}, content={"kind": "iid"},
        kernels="decisions",
    )  # fmt: skip
    trace = two_requests()
    long = trace.requests[0].__class__(id="long", arrival_us=0, prompt_len=1200, output_len=12)
    trace = trace.__class__(name="iid", format="json", requests=(long,))
    summary = run_replay(prepare(trace, settings))
    chosen = summary["selection"]
    assert 0.0 < chosen["skill"] < 0.3  # it knows a little, see docs/selection.md
    assert "near chance; the content is iid, no block says anything about its tokens" in chosen["verdict"]


def test_a_sample_watches_two_steps_in_every_32_so_that_one_can_look_back(capture: Path) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def take(step: int, event: ev.Event) -> None:
        if isinstance(event, ev.BlocksSelected) and event.layer == 0:
            seen.append((step, len(event.recalls) > 0, bool((event.reuses >= 0).any())))

    long = two_requests().requests[1].__class__(id="long", arrival_us=0, prompt_len=30, output_len=60)
    trace = two_requests().__class__(name="long", format="json", engine={"block_size": 8}, requests=(long,))
    content = {"kind": "npz", "path": str(capture)}
    digests = {
        quality: run_replay(
            prepare(trace, Settings(content=content, kernels="decisions", quality=quality)),
            extra_sinks=(take,) if quality == "sample" else (),
        )["digest"]
        for quality in ("full", "sample")
    }
    assert digests["full"] == digests["sample"]
    assert [step for step, watched, _ in seen if watched] == [1, 32, 33]  # step 0 is the prefill
    assert [step for step, _, looked_back in seen if looked_back] == [33]


def test_quality_off_leaves_the_digest_and_says_that_nothing_was_compared(capture: Path) -> None:
    settings = {"content": {"kind": "npz", "path": str(capture)}, "kernels": "decisions"}
    watched = run_replay(prepare(two_requests(), Settings(**settings)))
    blind = run_replay(prepare(two_requests(), Settings(**settings, quality="off")))
    assert blind["digest"] == watched["digest"]
    assert blind["selection"]["hit_rates"]["selection_recall"] is None
    assert blind["selection"]["verdict"] == "not compared with true attention"
    assert blind["selection"]["bytes"] == watched["selection"]["bytes"]
    assert "block_mass" not in {kernel["name"] for kernel in blind["kernels"]}
