"""Memory utilisation on real traces: to four places what was computed without any replay (README, References).

Σ over (request, decode step t = 1 … output) of (prompt + t), divided by Σ of the slots reserved at that step, with
enough blocks that nothing is preempted. The columns are block sizes or baselines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Trace

SHAREGPT = "sharegpt_llama3.1-8b_rows001-200.jsonl"
AZURE = "azure_llm_2023_conv.csv"


def replayed(trace: Trace, slots: int = 262_144, **engine: Any) -> dict[str, Any]:
    """The summary of a replay in a pool of at least `slots` token slots."""
    engine["num_blocks"] = slots // engine.setdefault("block_size", 16)
    return run_replay(prepare(trace, Settings(engine=engine, kernels="none")))


def by_formula(trace: Trace, block_size: int) -> float:
    """The same ratio from the lengths alone."""
    tokens = np.concatenate([r.prompt_len + np.arange(1, r.output_len + 1) for r in trace.requests])
    return float(tokens.sum() / (-(-tokens // block_size) * block_size).sum())


def assert_clean(summary: dict[str, Any], trace: Trace) -> None:
    assert summary["requests"] == {
        "completed": len(trace.requests),
        "preemptions": 0,
        "rejected": 0,
        "cancelled": 0,
    }
    assert summary["blocks"]["leaked"] == 0
    assert summary["invariants"]["violations"] == 0


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(
    ("block_size", "expected"), [(8, 0.9971), (16, 0.9938), (32, 0.9872), (64, 0.9744), (128, 0.9496)]
)
def test_paged_sharegpt(block_size: int, expected: float, caching: bool, real_traces: Path) -> None:
    trace = read_trace(real_traces / SHAREGPT)
    summary = replayed(trace, block_size=block_size, prefix_caching=caching)
    assert_clean(summary, trace)
    assert round(summary["utilization"]["decode"], 4) == expected


@pytest.mark.parametrize(("allocator", "expected"), [("contiguous", 0.1462), ("pow2", 0.6357), ("exact", 0.7806)])
def test_reserved_sharegpt(allocator: str, expected: float, real_traces: Path) -> None:
    trace = read_trace(real_traces / SHAREGPT)
    summary = replayed(trace, allocator=allocator, max_model_len=8192)
    assert_clean(summary, trace)
    assert round(summary["utilization"]["decode"], 4) == expected


@pytest.mark.parametrize("block_size", [8, 16, 128])
def test_the_first_azure_requests_use_what_their_lengths_say(block_size: int, real_traces: Path) -> None:
    trace = read_trace(real_traces / AZURE, limit=400)
    summary = replayed(trace, block_size=block_size)
    assert_clean(summary, trace)
    assert summary["utilization"]["decode"] == pytest.approx(by_formula(trace, block_size), abs=1e-12)


def test_with_too_few_blocks_everything_still_completes(real_traces: Path) -> None:
    trace = read_trace(real_traces / SHAREGPT)
    summary = replayed(trace, slots=16 * 600)
    assert summary["requests"]["completed"] == len(trace.requests)
    assert summary["requests"]["preemptions"] > 0
    assert summary["blocks"]["evictions"] > 0
    assert summary["blocks"]["leaked"] == 0
    assert summary["invariants"]["violations"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block_size", "expected"), [(8, 0.9972), (16, 0.9939), (32, 0.9875), (64, 0.9750), (128, 0.9506)]
)
def test_paged_azure(block_size: int, expected: float, real_traces: Path) -> None:
    trace = read_trace(real_traces / AZURE)
    summary = replayed(trace, block_size=block_size)
    assert_clean(summary, trace)
    assert round(summary["utilization"]["decode"], 4) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("allocator", "expected"), [("contiguous", 0.0749), ("pow2", 0.8155), ("exact", 0.8797)])
def test_reserved_azure(allocator: str, expected: float, real_traces: Path) -> None:
    trace = read_trace(real_traces / AZURE)
    summary = replayed(trace, slots=1 << 20, allocator=allocator)
    assert_clean(summary, trace)
    assert round(summary["utilization"]["decode"], 4) == expected
