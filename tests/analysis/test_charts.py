"""Charts as data: what is plotted is what happened, by other means than the charts' own sums."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.engine.scenario import req
from tinyserve_viz.analysis import charts
from tinyserve_viz.analysis.charts import (
    BENCH_CHARTS,
    CHARTS,
    STREAM_CHARTS,
    fragmentation,
    kernel_share,
    latency,
    memory,
    misses,
    pressure,
    queue,
    selection,
    source,
)
from tinyserve_viz.analysis.charts import hit_rate as hit_rate_chart
from tinyserve_viz.analysis.charts.bench import BenchSource
from tinyserve_viz.analysis.charts.chart import thinned
from tinyserve_viz.analysis.charts.source import NothingToPlot, RunSource
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.errors import TinyserveError
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.trace.request import Request, Trace

SMALL = {"block_size": 4, "num_blocks": 12, "max_batch_tokens": 64, "max_num_seqs": 8, "watermark_permille": 0}


def recorded(path: Path, *requests: Request, **engine: int | str) -> RunSource:
    settings = Settings(engine={**SMALL, **engine}, kernels="none")
    run_replay(prepare(Trace("small", "json", requests, hash_block=4), settings), path)
    return RunSource(Timeline(path))


def test_every_module_of_the_folder_with_a_kind_is_listed() -> None:
    folder = Path(str(charts.__file__)).parent
    named = {path.stem for path in folder.glob("*.py") if "\nKIND = " in path.read_text()}
    listed = {module.__name__.rpartition(".")[2] for module in (*CHARTS, *BENCH_CHARTS, *STREAM_CHARTS)}
    assert listed == named
    kinds = [module.KIND for module in (*CHARTS, *BENCH_CHARTS, *STREAM_CHARTS)]
    assert len(set(kinds)) == len(kinds)


def test_the_numbers_of_the_quickstart_are_those_of_its_summary(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        found = RunSource(timeline)
        summary = json.loads(timeline.summary or b"")
        prefix, blocks = summary["prefix"], summary["blocks"]
        bars = misses.draw(found).panels[0].series
        assert bars[0].x.tolist() == [prefix["hit_tokens"]]
        assert bars[1].x.tolist() == list(prefix["misses"].values())
        assert hit_rate_chart.draw(found).panels[0].series[1].y[-1] == pytest.approx(100 * prefix["token_hit_rate"])
        ends = {s.name.split(":")[0]: s.y[-1] for panel in pressure.draw(found).panels for s in panel.series}
        assert ends == {
            "evicted": blocks["evictions"],
            "copied on write": blocks["copies_on_write"],
            "moved by compaction": blocks["compaction_moves"],
            "preemptions": summary["requests"]["preemptions"],
            "cancellations": summary["requests"]["cancelled"],
        }
        shares = kernel_share.draw(found).panels[0].series[0].x
        totals = sorted((kernel["total_us"] for kernel in summary["kernels"]), reverse=True)
        assert shares == pytest.approx(100 * np.array(totals) / sum(totals))
        points = selection.draw(found).panels[0].series
        assert points[1].y.min() == pytest.approx(100 * summary["selection"]["retained_mass"]["min"])


def test_pool_over_time_adds_up_to_the_pool_and_ends_where_the_state_ends(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        areas = memory.draw(RunSource(timeline)).panels[0].series
        state = timeline.seek(timeline.num_events)
    assert np.sum([area.y for area in areas], axis=0).tolist() == [40] * len(areas[0].x)
    assert [area.y[-1] for area in areas] == [state.num_used, state.num_cached_free, state.num_free]


def test_fragmentation_over_time_is_that_of_the_states(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        found = RunSource(timeline)
        steps, columns = found.fragmentation
        assert steps.tolist() == list(range(found.num_steps))
        middle = timeline.seek(timeline.first_event_of_step(60))
        used = np.flatnonzero(middle.ref > 0)
        assert columns["frag_ratio"][59] == (used[-1] + 1) / len(used)
        assert columns["internal"][59] == pytest.approx(1 - middle.fill[used].sum() / (16 * len(used)))


def test_a_long_recording_is_sampled_for_fragmentation_and_says_so(
    quickstart_recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_FULL_READ", 10)
    monkeypatch.setattr(source, "_SAMPLES", 7)
    with Timeline(quickstart_recording) as timeline:
        sampled = RunSource(timeline)
        steps, columns = sampled.fragmentation
        assert len(steps) == 7
        assert "looked at after 7 of 146 steps" in fragmentation.draw(sampled).caption
        for step, runs in zip(steps.tolist(), columns["num_free_runs"].tolist(), strict=True):
            state = timeline.seek(timeline.first_event_of_step(step + 1))
            assert runs == source.fragmentation(state)["num_free_runs"]


def test_a_pause_before_the_next_arrival_shows_an_idle_server_that_keeps_its_cache(tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec", req("a", 8, 1, [1, 2]), req("b", 5, 0, at=1_000_000))
    # a: 8 prefilled tokens in 20,160 µs, one decoded in 20,050; nothing until b at 1 s with 5 tokens in 20,100 µs.
    seconds, columns = found.course
    assert seconds.tolist() == [0.02016, 0.04021, 1.0, 1.0201]
    assert columns["num_running"].tolist() == [1, 0, 0, 0]
    assert columns["num_prefill_tokens"].tolist() == [8, 0, 0, 5]
    assert columns["cached_free_blocks"].tolist() == [0, 2, 2, 2]
    assert columns["free_blocks"].tolist() == [10, 10, 10, 10]
    work = queue.work_panel(found).series[1]
    assert work.x.tolist() == seconds.tolist()
    assert work.y.tolist() == [8, 0, 0, 5]


def test_latencies_are_those_of_the_model_clock(tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec", req("a", 8, 2), req("b", 4, 0, at=30_000), req("c", 100, 1, at=30_000))
    # Steps end at 20,160 (a prefilled), 20,160 + 20,050 (a decodes), and + 20,000 + 80 + 50 (b's 4, a's last).
    # c needs 26 blocks of 12: rejected.
    values = found.latencies_us
    assert values["ttft"][:2].tolist() == [20_160, 60_340 - 30_000]
    assert values["e2e"][:2].tolist() == [60_340, 60_340 - 30_000]
    assert values["tpot"][0] == (60_340 - 20_160) / 2
    assert np.isnan(values["tpot"][1])  # no decode step
    assert all(np.isnan(column[2]) for column in values.values())
    percentiles = latency.draw(found).panels[0].series[1]
    assert percentiles.x.tolist() == [0.02016, 0.03034, 0.03034]
    assert percentiles.y.tolist() == [50, 90, 99]


def test_forked_samples_have_the_first_token_time_of_their_prompt(tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec", req("a", 6, 2, n=3))
    assert found.latencies_us["ttft"].tolist() == [20_120] * 3


def test_what_a_recording_lacks_is_said_and_not_drawn(tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec", req("huge", 400, 1))
    for module in CHARTS:
        if module is pressure:
            continue
        with pytest.raises(NothingToPlot, match=r"a\.rec: "):
            module.draw(found)
    assert [s.name for panel in pressure.draw(recorded(tmp_path / "b.rec", req("x", 400, 1), req("y", 4, 1))).panels
            for s in panel.series] == ["rejections: 1"]  # fmt: skip


def test_baselines_show_token_slots_instead_of_blocks(tmp_path: Path) -> None:
    found = recorded(tmp_path / "a.rec", req("a", 6, 2), allocator="exact")
    panel = memory.draw(found).panels[0]
    assert panel.y.text == "pool (token slots)"
    assert [area.y.tolist() for area in panel.series] == [[6, 7, 0], [2, 1, 0], [40, 40, 48]]


def test_thinning_takes_means_of_neighbours_and_leaves_gaps_out() -> None:
    width, (x, y) = thinned([0, 1, 2, 3, 4], [1, np.nan, np.nan, np.nan, 7], most=3)
    assert width == 2
    assert x.tolist() == [0.5, 2.5, 4]
    assert np.array_equal(y, [1, np.nan, 7], equal_nan=True)
    assert thinned([1, 2], most=2)[0] == 1


def test_a_column_read_without_events_is_the_column_of_the_events(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        steps, rows = timeline.rows_of_kind(ev.BlocksEvicted)
        events = list(timeline.events_of_kind(ev.BlocksEvicted))
        assert steps == timeline.steps_of_kind(ev.BlocksEvicted) == [step for _, step, _ in events]
        assert [row[0] for row in rows] == [event.rule for _, _, event in events]  # type: ignore[attr-defined]
        sizes = RunSource(timeline).sizes_of(ev.BlocksEvicted, "blocks")
        assert sizes == [(step, len(event.blocks)) for _, step, event in events]  # type: ignore[attr-defined]


def bench(path: Path, **changes: object) -> BenchSource:
    row = {"op": "a", "impl": "x", "shape": "s", "us": 2.0, "gbs": 5.0, "bytes": 10_000}
    path.write_text(json.dumps({"device": "d", "rows": [row], "peaks": {"copy": 10.0}, **changes}))
    return BenchSource(path)


def test_reference_times_never_become_bandwidth_or_speed_up(tmp_path: Path) -> None:
    with pytest.raises(TinyserveError, match="NumPy reference times"):
        bench(tmp_path / "b.json", provenance="reference")
    roofline, speed_up = BENCH_CHARTS
    assert roofline.draw(bench(tmp_path / "b.json")).panels[0].series[0].y.tolist() == [5.0]
    with pytest.raises(TinyserveError, match="two implementations"):
        speed_up.draw(bench(tmp_path / "b.json"))


def test_a_speed_up_is_over_the_named_baseline_with_the_ceiling_of_its_bytes(tmp_path: Path) -> None:
    rows = [
        {"op": "a", "impl": "ours", "shape": "s", "us": 2.0, "bytes": 100, "baseline": "peer"},
        {"op": "a", "impl": "peer", "shape": "s", "us": 5.0, "bytes": 300},
        {"op": "a", "impl": "broken", "shape": "s", "error": "no"},
    ]
    panel = BENCH_CHARTS[1].draw(bench(tmp_path / "b.json", rows=rows)).panels[0]
    assert panel.title == "a, over peer"
    assert panel.y.categories == ("ours, s – 2.5×",)
    assert [s.x.tolist() for s in panel.series] == [[2.5], [3.0]]


def test_operations_of_few_sizes_share_a_panel_of_the_roofline(tmp_path: Path) -> None:
    rows = [{"op": op, "impl": "k", "shape": f"s{n}", "us": 1.0, "gbs": n + 1.0, "bytes": 2**20 * (n + 1)}
            for op, sizes in (("decode", 4), ("write", 2), ("copy", 1)) for n in range(sizes)]  # fmt: skip
    panels = BENCH_CHARTS[0].draw(bench(tmp_path / "b.json", rows=rows)).panels
    assert [panel.title for panel in panels] == ["decode", "other operations"]
    assert [s.name for s in panels[0].series] == ["k", "copy 10 GB/s"]
    assert [s.name for s in panels[1].series] == ["write", "copy", "copy 10 GB/s"]
    assert panels[1].series[0].x.tolist() == [1.0, 2.0]


def test_where_no_row_names_a_baseline_the_first_of_a_shape_is_it(tmp_path: Path) -> None:
    rows = [{"op": "a", "impl": impl, "shape": shape, "us": us}
            for impl, shape, us in (("peer", "s", 4.0), ("ours", "s", 1.0), ("ours", "t", 3.0))]  # fmt: skip
    panel = BENCH_CHARTS[1].draw(bench(tmp_path / "b.json", rows=rows)).panels[0]
    assert (panel.title, panel.y.categories) == ("a, over peer", ("ours, s – 4×",))


def test_kernels_stand_in_the_order_in_which_steps_ran_them() -> None:
    assert source._merged([["write", "attend"], ["copy", "write", "score", "attend", "free"], ["plan", "free"]]) == [
        "copy", "write", "score", "attend", "plan", "free",
    ]  # fmt: skip
