"""The summary as text: every topic on its line, ratios that have nothing to measure as a dash, violations in words."""

from __future__ import annotations

import platform
from typing import Any

from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.check import Violation
from tinyserve_viz.report.summary import Outcome, as_text, summarize
from tinyserve_viz.trace.request import Request, Trace

TWO = Trace(
    name="two",
    format="json",
    hash_block=4,
    requests=(Request("a", 0, 6, 3), Request("b", 0, 9, 2)),
)
SMALL = {"block_size": 4, "num_blocks": 10, "watermark_permille": 0}


def summary_of(trace: Trace, kernels: str = "none", **engine: Any) -> dict[str, Any]:
    return run_replay(prepare(trace, Settings(engine={**SMALL, **engine}, kernels=kernels)))


def lines_of(summary: dict[str, Any]) -> dict[str, str]:
    """Topic → the rest of its line."""
    pairs = (line.split("  ", 1) for line in as_text(summary).splitlines())
    return {topic: rest.strip() for topic, rest in pairs}


def test_every_topic_of_a_replay_has_its_line() -> None:
    summary = summary_of(TWO)
    lines = lines_of(summary)
    assert lines.pop("digest") == summary["digest"]
    assert lines.pop("ran").endswith("(0.1 s of simulated time)")
    # a writes tokens 6 + 1 + 1 + 1, b 9 + 1 + 1: steps of 20,300 + 20,100 + 20,100 + 20,050 µs.
    assert summary["virtual_time_s"] == 0.08055
    # Decoding: a has 7, 8, 9 tokens in 8, 8, 12 slots, b 10, 11 in 12, 12. In the pool after each step's frees:
    # 15 of 20, 17 of 20, 8 of 8 (b is over), then nothing.
    assert lines == {
        "trace": "two (json, 2 requests, arrivals trace)",
        "replay": "profile tinyserve, paged allocator, eviction lru, 10 blocks of 4 tokens",
        "backend": f"numpy on {platform.machine()} CPU, kernels none, content topics(8, 0.9)",
        "requests": "2 completed, 0 preemptions, 0 rejected, 0 cancelled",
        "blocks": "peak 5 used, 6 allocations, 0 evictions, 0 copies on write, 0 leaked",
        "prefix cache": "0 of 15 prompt tokens hit (0.00 %); misses: capped 2, tail 13",
        "memory": "decode utilization 86.54 %, physical 83.33 %, waste 16.67 %, pool in use 30.00 % on average",
        "fragmentation": "at the end: internal –, external 0.00 %, 1 runs of free blocks, longest 10",
        "compaction": "off; any free block serves any request, so external fragmentation costs no capacity here",
        "invariants": "24 checked, 0 violated",
    }


def test_a_replay_that_computed_nothing_has_dashes_and_no_division_by_zero() -> None:
    lines = lines_of(summary_of(Trace("none", "json", (Request("huge", 0, 400, 1),), hash_block=4)))
    assert lines["requests"] == "0 completed, 0 preemptions, 1 rejected, 0 cancelled"
    assert lines["prefix cache"] == "0 of 0 prompt tokens hit (–); misses: none"
    assert lines["memory"] == "decode utilization –, physical –, waste –, pool in use – on average"


def test_violations_are_named_with_their_step_and_the_first_ten_are_kept() -> None:
    header = prepare(TWO, Settings(engine=SMALL, kernels="none"))
    found = [Violation(step, "I3", f"block {step} is nowhere") for step in range(12)]
    summary = summarize(
        Outcome(header, Metrics(header.workload, header.engine), header.empty_state(), 7, found, "d", 0.5, 3)
    )
    assert summary["invariants"]["violations"] == 12
    assert summary["invariants"]["first_violations"] == [
        {"step": step, "invariant": "I3", "message": f"block {step} is nowhere"} for step in range(10)
    ]
    violated = [line.strip() for line in as_text(summary).splitlines() if "VIOLATED" in line]
    assert violated == [f"VIOLATED I3 at step {step}: block {step} is nowhere" for step in range(10)]
    assert lines_of(summary)["invariants"] == "7 checked, 12 violated"


def test_an_interrupted_recording_says_so_first() -> None:
    summary = {**summary_of(TWO), "complete": False, "digest_matches": False}
    assert as_text(summary).startswith("INCOMPLETE     interrupted; this is what was recorded up to the last ")
    assert "INCOMPLETE" not in as_text({**summary, "complete": True})


def test_kernels_add_their_own_lines_between_compaction_and_invariants() -> None:
    lines = lines_of(summary_of(TWO, kernels="all"))
    after = list(lines)[list(lines).index("compaction") :]
    assert [topic for topic in after if topic] == [
        "compaction", "selection", "hit rates", "box bound", "bytes", "levels", "kernels", "invariants", "digest",
    ]  # fmt: skip
    assert lines["selection"].startswith("paper, ratio 0.3 on content topics(8, 0.9): ")
    assert "attention mass retained" in lines["selection"]
    assert lines["box bound"].endswith(" times")
    assert "broken 0 of " in lines["box bound"]
    assert lines["kernels"].startswith("(NumPy reference, wall time) ")
    decided = lines_of(summary_of(TWO, kernels="decisions"))["selection"]
    assert "attention mass retained" in decided  # summed from the masses of the blocks
    assert "output error" not in decided
