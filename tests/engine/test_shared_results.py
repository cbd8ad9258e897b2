"""Replays that share what they have in common come to the same as replays alone, and a wrong share is found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.engine import captures
from tests.engine.test_pipeline import two_requests
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.kernels.definition import KernelDef
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.shared_session import SHARED, SharedResults
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Trace

TIMES = ("wall_s", "kernels", "host_us", "host")


def decided(trace: Trace, shared: SharedResults | None, content: dict[str, Any], **engine: Any) -> dict[str, Any]:
    """The summary of a replay, without times."""
    summary = run_replay(prepare(trace, Settings(engine=engine, content=content, kernels="all")), shared=shared)
    assert summary["invariants"]["violations"] == 0
    return {name: value for name, value in summary.items() if name not in TIMES}


def traces(tmp_path: Path) -> list[tuple[Trace, dict[str, Any]]]:
    capture = {"kind": "npz", "path": str(captures.write(tmp_path / "c.npz"))}
    quickstart = read_trace(data_folder("traces") / "quickstart.json", limit=6)  # shares prefixes, copies on write
    return [(quickstart, {}), (two_requests(), {"kind": "iid"}), (captures.two_requests(), capture)]


def test_sharing_changes_no_decision_and_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    run = NumpyBackend.run

    def counted(self: NumpyBackend, kernel: KernelDef, arrays: Any, scalars: Any) -> Any:
        calls[kernel.name] += 1
        return run(self, kernel, arrays, scalars)

    monkeypatch.setattr(NumpyBackend, "run", counted)
    for trace, content in traces(tmp_path):
        shared = SharedResults()
        for policy in ("paper", "random", "snapkv"):
            alone = decided(trace, None, content, selection=policy)
            before = Counter(calls)
            assert decided(trace, shared, content, selection=policy) == alone
            made = calls - before
            if policy == "random":
                assert made["block_mass"] <= made["block_scoring"] // 8
                assert made["flash_paged_attention"] <= made["block_scoring"] // 8


def test_a_shared_result_of_other_keys_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyserve_viz.kernels.shared_session._AGAIN_EVERY", 2)
    shared = SharedResults()
    decided(two_requests(), shared, {"seed": 1})
    header = prepare(two_requests(), Settings(content={"seed": 2}, kernels="all"))
    found = run_replay(header, shared=shared)["invariants"]
    told = {violation["message"] for violation in found["first_violations"]}
    assert told <= {f"{name} gives other results than in an earlier replay of the same sequences" for name in SHARED}
    assert found["violations"] > 0


def test_a_full_store_takes_no_more_and_decides_the_same() -> None:
    trace = two_requests()
    small = SharedResults(most_bytes=4096)
    decided(trace, small, {}, selection="paper")
    assert decided(trace, small, {}, selection="random") == decided(trace, None, {}, selection="random")
