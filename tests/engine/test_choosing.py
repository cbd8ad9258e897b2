"""Selection policies inside a replay: what each keeps, that budgets hold, that every backend chooses alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine import captures
from tests.engine.captures import KV_HEADS, two_requests
from tests.kernels.memory_device import MemoryDevice
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.config import SELECTIONS, EngineConfig, ModelConfig
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.engine.choosing import Chooser
from tinyserve_viz.engine.pipeline import KernelPipeline, PipelineConfig
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.kernels.cuda_session import CudaSession
from tinyserve_viz.recording.recorder import Digest

POLICIES = pytest.mark.parametrize("policy", SELECTIONS)


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captures.write(tmp_path_factory.mktemp("capture") / "c.npz")


def replayed(
    capture: Path | None, kernels: str = "decisions", content: dict[str, Any] | None = None, **engine: Any
) -> tuple[dict[str, Any], list[ev.BlocksSelected]]:
    """The summary and the choices; content from the capture, or as given."""
    found: list[ev.BlocksSelected] = []

    def take(_step: int, event: ev.Event) -> None:
        if isinstance(event, ev.BlocksSelected):
            found.append(event)

    kind = content or {"kind": "npz", "path": str(capture)}
    header = prepare(two_requests(), Settings(engine=engine, content=kind, kernels=kernels))
    return run_replay(header, extra_sinks=(take,)), found


def choices(event: ev.BlocksSelected) -> list[list[list[int]]]:
    """Blocks by sequence and head."""
    lists = np.split(event.selected, np.cumsum(event.counts)[:-1])
    heads = event.num_heads
    return [[part.tolist() for part in lists[i : i + heads]] for i in range(0, len(lists), heads)]


def lengths_of(events: list[ev.BlocksSelected]) -> list[list[int]]:
    """Blocks that the sequences of each event have: a decodes tokens 81 to 92, b tokens 46 to 54, in blocks of 8."""
    age: dict[tuple[int, int], int] = {}
    found = []
    for event in events:
        row = []
        for seq in event.seqs.tolist():
            age[event.layer, seq] = age.get((event.layer, seq), 0) + 1
            row.append(-(-({0: 80, 1: 45}[seq] + age[event.layer, seq]) // 8))
        found.append(row)
    return found


@POLICIES
def test_a_replay_is_clean_and_has_the_same_digest_twice(policy: str, capture: Path) -> None:
    summary, events = replayed(capture, selection=policy)
    assert summary["invariants"]["violations"] == 0
    assert summary["digest"] == replayed(capture, selection=policy)[0]["digest"]
    assert {event.policy for event in events} == {policy}
    assert [event.layer for event in events] == [0, 1] * (len(events) // 2)
    for event in events:
        assert all(head == sorted(set(head)) for heads in choices(event) for head in heads)


@POLICIES
@pytest.mark.parametrize("heads", ["kv", "shared"])
def test_a_device_chooses_what_numpy_chooses(policy: str, heads: str, capture: Path) -> None:
    """The device is one of host memory: it runs the whole CUDA session, programs, uploads and reads, but no GPU."""
    settings = Settings(
        engine={"selection": policy, "selection_heads": heads}, content={"kind": "npz", "path": str(capture)}
    )
    header = prepare(two_requests(), settings)
    digest, session = Digest(), CudaSession(MemoryDevice())
    engine = Engine(header.workload, header.engine, header.rules, lambda step, event: digest.add(step, event))
    engine.kernels = KernelPipeline(
        engine.state, header.engine, header.model, header.content, session, PipelineConfig(verify="sample")
    )
    while engine.step():
        pass
    assert engine.kernels.violations == []
    expected, _ = replayed(capture, selection=policy, selection_heads=heads)
    assert digest.hexdigest() == expected["digest"]


@pytest.mark.parametrize("policy", [name for name in SELECTIONS if not name.startswith("seed")])
def test_a_fixed_budget_is_kept_to_the_block_and_the_always_kept_ones_are_inside(policy: str, capture: Path) -> None:
    _, events = replayed(capture, selection=policy, budget_blocks=5)
    for event, lengths in zip(events, lengths_of(events), strict=True):
        assert event.counts.tolist() == [min(5, blocks) for blocks in lengths for _ in range(KV_HEADS)]


def test_a_share_is_rounded_down_and_never_below_the_always_kept_blocks(capture: Path) -> None:
    for ratio, sinks, expected in ((300, 1, 3), (100, 1, 2), (100, 0, 1), (999, 0, 10)):
        _, events = replayed(capture, selection="paper", ratio_permille=ratio, sinks=sinks)
        assert events[0].counts.tolist() == [expected] * KV_HEADS  # of 11 blocks


def test_streaming_keeps_sinks_and_the_newest_recency_the_newest_alone(capture: Path) -> None:
    for policy, keeps in (("streaming", lambda n: [0, n - 3, n - 2, n - 1]), ("recency", lambda n: [*range(n - 4, n)])):
        _, events = replayed(capture, selection=policy, budget_blocks=4)
        for event, lengths in zip(events, lengths_of(events), strict=True):
            assert choices(event) == [[keeps(blocks)] * KV_HEADS for blocks in lengths]
    _, events = replayed(capture, selection="streaming", budget_blocks=4, sinks=2)
    assert choices(events[0]) == [[[0, 1, 9, 10]] * KV_HEADS]


def test_the_published_rule_drops_everything_after_the_middle_at_low_priority_alone(capture: Path) -> None:
    summary, events = replayed(capture, selection="seed-published")
    dropped = kept = 0
    for event, lengths in zip(events, lengths_of(events), strict=True):
        for heads, priority, blocks in zip(choices(event), event.priorities.tolist(), lengths, strict=True):
            upto = [block for block in range(blocks) if priority or not block > blocks // 2]  # S:442-445
            assert heads == [upto] * KV_HEADS
            dropped += priority == 0
            kept += priority > 0
    assert dropped > 0
    assert kept > 0
    assert "drops the newest half" in summary["selection"]["settings"]["warning"]


def test_the_oracle_keeps_the_blocks_of_the_greatest_mass(capture: Path) -> None:
    made = captures.arrays()
    _, events = replayed(capture, selection="oracle", budget_blocks=3)
    for layer in (0, 1):
        q, k = made["q"][layer, 80].astype(np.float64), made["k"][layer, :81].astype(np.float64)
        first = next(event for event in events if event.layer == layer)
        for kv_head, found in enumerate(choices(first)[0]):
            logits = k[:, kv_head] @ q[kv_head * 3 : kv_head * 3 + 3].T / 4
            share = np.exp(logits - logits.max(axis=0))
            share = (share / share.sum(axis=0)).mean(axis=1)
            mass = [share[at : at + 8].sum() for at in range(0, 81, 8)]
            assert found == sorted(np.argsort(mass)[-3:].tolist())


def test_one_choice_for_all_heads_keeps_the_blocks_of_the_summed_mass(capture: Path) -> None:
    made = captures.arrays()
    _, events = replayed(capture, selection="oracle", budget_blocks=3, selection_heads="shared")
    q, k = made["q"][0, 80].astype(np.float64), made["k"][0, :81].astype(np.float64)
    logits = np.stack([k[:, head // 3] @ q[head] / 4 for head in range(6)])
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share = (share / share.sum(axis=1, keepdims=True)).sum(axis=0)
    mass = [share[at : at + 8].sum() for at in range(0, 81, 8)]
    assert choices(events[0]) == [[sorted(np.argsort(mass)[-3:].tolist())]]


def test_snapkv_counts_the_votes_of_the_window_before_the_query_about_what_lies_before_the_window(
    capture: Path,
) -> None:
    made = captures.arrays()
    _, events = replayed(capture, selection="snapkv", budget_blocks=6)
    # 81 tokens: queries 64 … 79 vote about tokens 0 … 63; window and newest token fill the last three blocks, kept.
    q, k = made["q"][0, 64:80].astype(np.float64), made["k"][0, :64].astype(np.float64)
    for kv_head, found in enumerate(choices(events[0])[0]):
        logits = np.einsum("td,wgd->wgt", k[:, kv_head], q[:, kv_head * 3 : kv_head * 3 + 3]) / 4
        share = np.exp(logits - logits.max(axis=2, keepdims=True))
        votes = (share / share.sum(axis=2, keepdims=True)).sum(axis=(0, 1)).reshape(8, 8).sum(axis=1)
        votes[0] = np.inf  # the sink
        assert found == sorted([*np.argsort(votes)[-3:].tolist(), 8, 9, 10])


def test_the_window_of_a_short_context_votes_about_all_of_it() -> None:
    chooser = Chooser(EngineConfig(selection="snapkv", block_size=8), ModelConfig(), 0)
    positions, voted = chooser.voters(np.array([1, 4, 17, 18, 100], dtype=np.int32))
    assert positions[0].tolist() == [0] * 16
    assert positions[1].tolist() == [0, 1, *[2] * 14]
    assert positions[2].tolist() == list(range(16))
    assert positions[4].tolist() == list(range(83, 99))
    assert voted.tolist() == [1, 4, 17, 1, 83]
    assert (chooser.sinks, chooser.recent) == (1, 3)


def test_the_reduction_of_query_heads_changes_what_is_chosen_and_the_policy_has_its_own(capture: Path) -> None:
    digests = {
        reduction: replayed(capture, selection="paper", reduction=reduction)[0]["digest"]
        for reduction in ("policy", "max", "mean", "sum")
    }
    assert digests["policy"] == digests["max"] != digests["mean"]
    assert Chooser(EngineConfig(selection="oracle"), ModelConfig(), 0).reduction == "mean"


def test_lots_depend_on_the_seed(capture: Path) -> None:
    content = {"kind": "npz", "path": str(capture)}
    digests = {
        replayed(None, content={**content, "seed": seed}, selection="random")[0]["digest"] for seed in (0, 1, 1)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ({"ratio_permille": 0}, "ratio_permille is 0, expected a whole number from 1 to 1000"),
        ({"ratio_permille": 1500}, "ratio_permille is 1500, expected a whole number from 1 to 1000"),
        ({"budget_blocks": -1}, "budget_blocks is -1, expected a whole number from 0 to 67108864"),
        ({"budget_blocks": 13}, "budget_blocks is 13, but the longest sequence of the trace has 12 blocks of 8 tokens"),
        ({"budget_blocks": 1}, "budget_blocks is 1, but 1 first and 1 last blocks are always kept, inside the budget"),
        ({"sinks": 40}, "sinks is 40, but the longest sequence of the trace has 12 blocks of 8 tokens"),
        ({"recent": 13}, "recent is 13, but the longest sequence of the trace has 12 blocks of 8 tokens"),
        ({"selection": "seed-published", "sinks": 1}, "sinks is 1, but selection seed-published keeps no block always"),
        ({"selection_heads": "all"}, "unknown selection_heads 'all'; known: kv, shared"),
        ({"reduction": "median"}, "unknown reduction 'median'; known: max, mean, policy, sum"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(engine: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(two_requests(), Settings(engine=engine, kernels="all"))
    assert str(caught.value) == complaint
