"""The traces that come with the product show what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.histories import run
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.trace import read_trace

TRACES = sorted(data_folder("traces").glob("*.json"))


def test_the_quickstart_shows_sharing_copies_preemption_and_eviction_within_200_steps() -> None:
    trace = read_trace(data_folder("traces") / "quickstart.json")
    _, _, events = run(trace, Settings(kernels="none"))
    shown: dict[str, str] = {}
    for _, event in events:
        name = getattr(event, "request", -1)
        match event:
            case ev.SequenceAdmitted() if len(event.hits):
                shown.setdefault("hit", trace.requests[name].id)
            case ev.SequencesForked():
                shown.setdefault("fork", "")
            case ev.BlocksCopied():
                shown.setdefault("copy", "")
            case ev.SequencePreempted():
                shown.setdefault("preemption", trace.requests[name].id)
            case ev.BlocksEvicted():
                shown.setdefault("eviction", "")
            case ev.RequestCancelled():
                shown.setdefault("cancellation", trace.requests[name].id)
    assert shown == {
        "hit": "chat-2",
        "fork": "",
        "copy": "",
        "eviction": "",
        "preemption": shown["preemption"],
        "cancellation": "impatient",
    }
    assert events[-1][0] < 200
    assert len(trace.requests) <= 12


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_every_shipped_trace_runs_to_its_end_with_sound_steps(path: Path) -> None:
    trace = read_trace(path)
    summary = run_replay(prepare(trace, Settings(kernels="none")))
    requests = summary["requests"]
    assert requests["completed"] + requests["rejected"] + requests["cancelled"] == len(trace.requests)
    assert requests["rejected"] == 0
    assert summary["blocks"]["leaked"] == summary["invariants"]["violations"] == 0
