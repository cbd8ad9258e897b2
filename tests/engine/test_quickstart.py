"""The shipped traces show what they are for; the quickstart shows everything within 200 steps."""

from __future__ import annotations

from typing import Any

import pytest

from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.trace import read_trace

SHIPPED = sorted(path.stem for path in data_folder("traces").glob("*.json"))


def replayed(name: str, **chosen: Any) -> tuple[dict[str, Any], list[tuple[int, ev.Event]]]:
    events: list[tuple[int, ev.Event]] = []
    header = prepare(read_trace(data_folder("traces") / f"{name}.json"), Settings(kernels="none", **chosen))
    summary = run_replay(header, extra_sinks=(lambda step, event: events.append((step, event)),))
    return summary, events


def first_steps(events: list[tuple[int, ev.Event]]) -> dict[str, int]:
    """The first step in which each type of event fell."""
    first: dict[str, int] = {}
    for step, event in events:
        first.setdefault(type(event).__name__, step)
    return first


def test_the_quickstart_shows_every_move_of_the_allocator_within_200_steps() -> None:
    summary, events = replayed("quickstart", check_every_step=True)
    assert summary["steps"] <= 200
    assert any(isinstance(event, ev.SequenceAdmitted) and len(event.hits) for _, event in events)
    wanted = {
        "BlocksCached",
        "BlocksCopied",
        "SequencesForked",
        "SequencePreempted",
        "BlocksEvicted",
        "RequestCancelled",
    }
    assert wanted <= set(first_steps(events))
    assert summary["blocks"]["copies_on_write"] > 0
    assert summary["requests"]["preemptions"] > 0
    assert summary["prefix"]["hit_tokens"] > 0
    assert summary["prefix"]["misses"]["evicted"] > 0


def test_the_quickstart_shows_something_in_every_quarter() -> None:
    _, events = replayed("quickstart")
    dull = {"StepEnded", "TokensWritten", "BlocksAllocated"}
    last = events[-1][0]
    eventful = {4 * step // (last + 1) for step, event in events if type(event).__name__ not in dull}
    assert eventful == {0, 1, 2, 3}


@pytest.mark.parametrize("profile", ["tinyserve", "vllm"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_trace_is_replayed_to_its_end_without_a_leak(name: str, profile: str) -> None:
    summary, _ = replayed(name, profile=profile)
    requests = summary["requests"]
    over = requests["completed"] + requests["cancelled"] + requests["rejected"]
    assert over == summary["trace"]["num_requests"]
    assert requests["rejected"] == 0
    assert summary["blocks"]["leaked"] == 0
    assert summary["invariants"]["violations"] == 0


def test_the_prefix_trace_hits_more_than_a_third_of_its_prompt_tokens() -> None:
    summary, _ = replayed("prefix")
    assert summary["prefix"]["token_hit_rate"] > 1 / 3
    assert summary["blocks"]["evictions"] > 0


def test_the_fork_trace_forks_samples_and_children() -> None:
    summary, events = replayed("forks")
    forks = [event for _, event in events if isinstance(event, ev.SequencesForked)]
    w = prepare(read_trace(data_folder("traces") / "forks.json"), Settings()).workload
    of_one_request = {bool(w.request_of_seq[e.parent] == w.request_of_seq[e.children[0]]) for e in forks}
    assert of_one_request == {True, False}
    assert summary["blocks"]["copies_on_write"] > len(forks)


def test_the_fragmentation_trace_scatters_the_free_blocks_and_starves_ranges() -> None:
    waiting: dict[str, int] = {}
    for allocator in ("paged", "exact"):
        _, events = replayed("fragmentation", engine={"allocator": allocator})
        waiting[allocator] = sum(event.num_waiting for _, event in events if isinstance(event, ev.StepEnded))
    passed = [event.holes_passed for _, event in events if isinstance(event, ev.RangeReserved)]
    assert max(passed) >= 10  # holes that were too short for the one who asked
    assert waiting["exact"] > waiting["paged"]


def test_the_bursty_trace_queues_and_the_long_one_fills_131_072_tokens() -> None:
    _, events = replayed("bursty")
    assert max(event.num_waiting for _, event in events if isinstance(event, ev.StepEnded)) >= 10
    summary, _ = replayed("long")
    assert summary["blocks"]["peak_used"] * summary["blocks"]["block_size"] >= 131_072
