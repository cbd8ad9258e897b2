"""docs/by-hand.md, worked by hand, against the replay of traces/by-hand.json."""

from __future__ import annotations

from pathlib import Path

from tests.engine.histories import run
from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.cli.session import Settings
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.trace import read_trace

PAGE = Path(__file__).resolve().parents[2] / "docs" / "by-hand.md"


def rows_of_the_page() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def row_of(state: CacheState, step: int) -> list[str]:
    def ids(blocks: list[int]) -> str:
        return " ".join(map(str, blocks)) or "–"

    tables = [ids(state.table(seq).tolist()) for seq in range(3)]
    references = " ".join(f"{block}×{count}" for block, count in enumerate(state.ref.tolist()) if count) or "–"
    return [
        str(step),
        str(state.time_us),
        *tables,
        references,
        ids(state.free.order().tolist()),
        ids(state.cached.order().tolist()),
    ]


def test_every_row_of_the_page_is_what_the_replay_does() -> None:
    found: list[list[str]] = []

    def each(engine: Engine, step: int, event: ev.Event) -> None:
        if isinstance(event, ev.StepEnded):
            found.append(row_of(engine.state, step))

    trace = read_trace(data_folder("traces") / "by-hand.json")
    engine, header, events = run(trace, Settings(kernels="none"), each)
    assert header.engine.num_blocks <= 12
    assert header.engine.block_size == 4
    assert [header.workload.seq_name(seq) for seq in range(3)] == ["a.0", "a.1", "b"]
    assert found == rows_of_the_page()
    metrics = Metrics(header.workload, header.engine)
    for step, event in events:
        metrics.add(step, event)
    summary = metrics.as_dict(engine.state)
    assert summary["prefix"]["hit_tokens"] == 8
    assert {name: count for name, count in summary["prefix"]["misses"].items() if count} == {
        "capped": 2,
        "tail": 1,
        "cold": 8,
    }
    assert summary["blocks"]["copies_on_write"] == 1
