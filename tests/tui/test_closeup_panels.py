"""Selection, balance and upkeep panels: they show what the recording says, at any size, forwards and back."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tinyserve_viz.analysis import framing
from tinyserve_viz.analysis.framing import Wanted
from tinyserve_viz.analysis.history import History
from tinyserve_viz.cli.inspector import ContentInspector
from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.replay import PANEL_NAMES
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.events import BlocksSelected, CompactionPlanned, KernelsTimed, LevelsAdapted
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui.app import PANELS
from tinyserve_viz.tui.balance import BalancePanel
from tinyserve_viz.tui.kernels import Kernels
from tinyserve_viz.tui.panel import Panel, View
from tinyserve_viz.tui.player import Player
from tinyserve_viz.tui.selection import SelectionPanel
from tinyserve_viz.tui.upkeep import UpkeepPanel

CLOSEUPS = (SelectionPanel, BalancePanel, UpkeepPanel)
ALL = Wanted(scores=True, work=True, upkeep=True)


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    path = tmp_path_factory.mktemp("closeups") / "run.rec"
    quickstart = str(data_folder("traces") / "quickstart.json")
    assert main(["replay", quickstart, "--headless", "--record", str(path)]) == 0
    return Timeline(path)


def player(timeline: Timeline) -> Player:
    return Player(timeline, ContentInspector(timeline.header))


def view_at(timeline: Timeline, step: int, wanted: Wanted = ALL) -> View:
    return View(player(timeline).frame(timeline.first_event_of_step(step + 1), wanted), History())


def test_the_names_on_the_command_line_are_those_of_the_panels() -> None:
    assert tuple(kind.NAME for kind in PANELS) == PANEL_NAMES


def test_mass_made_again_from_the_content_is_what_the_kernels_retained(timeline: Timeline) -> None:
    inspector, state, compared = ContentInspector(timeline.header), timeline.header.empty_state(), 0
    for _, event in timeline.events():
        if isinstance(event, BlocksSelected) and len(event.retained):
            ends = np.concatenate([[0], np.cumsum(event.counts)])
            heads = event.retained.reshape(len(event.seqs), event.num_heads, -1)
            for place, seq in enumerate(event.seqs.tolist()):
                seen = inspector.scores(seq, int(state.ctx[seq]), event.layer)
                assert seen is not None
                for head in range(event.num_heads):
                    choice = place * event.num_heads + head
                    blocks = event.selected[ends[choice] : ends[choice + 1]]
                    kept = float(seen.mass[head][blocks].sum())
                    assert kept == pytest.approx(float(heads[place, head].mean()), abs=1e-3)
                    compared += 1
        apply(state, event)
    assert compared > 300


def test_the_best_scored_blocks_are_the_ones_that_are_read(timeline: Timeline) -> None:
    selection = view_at(timeline, 79).frame.selection
    assert selection is not None
    assert selection.scores is not None
    blocks = selection.chosen.shape[1]
    for head, choice in enumerate(selection.chosen):
        score = selection.scores.score[head].copy()
        score[[0, blocks - 1]] = np.inf  # the first and the last are always kept
        best = np.argsort(-score, kind="stable")[: int(choice.sum())]
        assert sorted(best.tolist()) == np.flatnonzero(choice).tolist()


def test_the_chain_of_a_sequence_adds_up(timeline: Timeline) -> None:
    selection = view_at(timeline, 79).frame.selection
    assert selection is not None
    for place in range(len(selection)):
        choice = selection.choice(place)
        assert choice.terms is not None
        assert sum(choice.terms) == pytest.approx(choice.score, abs=1e-6)
        assert choice.requirement == (2 if choice.complexity > 0.5 else 1 if choice.complexity > 0.2 else 0)
        assert choice.priority == (2 if choice.score > 0.5 else 1 if choice.score > 0.25 else 0)
        assert choice.budget == max(2, choice.num_blocks * 3 // 10)


def test_a_row_reads_from_complexity_to_blocks(timeline: Timeline) -> None:
    rows = SelectionPanel().plain(view_at(timeline, 79), 110, 20)
    assert " ".join(rows[0].split()) == "sequence complexity needs score priority reads keeps"
    assert " ".join(rows[1].split()) == "▸G summary-1 0.41 → medium → 0.49 → medium 5 of 14 0.77"
    total = "score 0.49 = 0.4 × complexity 0.41 + 0.3 × need 1 + 0.3 × history 0.10"
    assert f"{total}; high above 0.5, medium above 0.25" in rows


def test_work_before_and_after_is_the_same_work(timeline: Timeline) -> None:
    work = view_at(timeline, 79).frame.work
    assert work is not None
    assert work.dense.before.tolist() == [218, 207, 186]
    for shares in (work.dense, work.kept):
        assert int(shares.before.sum()) == int(shares.after.sum())
        assert int(shares.after.max()) <= int(shares.before.max())


def test_without_kernels_the_panels_say_why_they_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    quickstart = str(data_folder("traces") / "quickstart.json")
    assert main(["replay", quickstart, "--kernels", "none", "--headless", "--record", str(path)]) == 0
    with Timeline(path) as timeline:
        view = view_at(timeline, 79)
        assert "no kernels ran" in SelectionPanel().plain(view, 80, 8)[0]
        assert "no kernels ran" in BalancePanel().plain(view, 80, 8)[0]


@pytest.mark.parametrize("kind", CLOSEUPS)
def test_there_and_back_the_cells_are_the_same(kind: type[Panel], timeline: Timeline) -> None:
    one, rng = player(timeline), random.Random(5)
    for _ in range(12):
        place = rng.randrange(2, timeline.num_events - 2)
        before = kind().plain(View(one.frame(place, ALL), History()), 90, 14)
        for other in (place + 1, rng.randrange(timeline.num_events), place - 1):
            one.frame(other, ALL)
        assert kind().plain(View(one.frame(place, ALL), History()), 90, 14) == before
        assert kind().plain(View(player(timeline).frame(place, ALL), History()), 90, 14) == before


@pytest.mark.parametrize("kind", CLOSEUPS)
@pytest.mark.parametrize("size", [(58, 4), (58, 8), (78, 8), (74, 14), (98, 20), (198, 56)])
def test_nothing_is_wider_or_longer_than_its_place(
    kind: type[Panel], size: tuple[int, int], timeline: Timeline
) -> None:
    width, height = size
    for step in (0, 1, 20, 79, 140):
        lines = kind().plain(view_at(timeline, step), width, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width, max(lines, key=len)


def test_the_compaction_that_was_done_is_shown_as_it_was_planned(timeline: Timeline) -> None:
    index, event = next((i, e) for i, _, e in timeline.events_of_kind(CompactionPlanned) if len(e.src))  # type: ignore[attr-defined]
    assert isinstance(event, CompactionPlanned)
    found = player(timeline).frame(index + 1, ALL).compaction
    assert found is not None
    assert found.done
    assert found.plan.plan.src.tolist() == event.src.tolist()
    assert found.plan.plan.dst.tolist() == event.dst.tolist()
    assert int(found.after.sum()) == event.live
    assert int(np.flatnonzero(found.after)[-1]) == event.top_after
    before = player(timeline).frame(index, ALL).compaction
    assert before is not None
    assert not before.done
    assert before.plan.plan.src.tolist() == event.src.tolist()
    lines = UpkeepPanel().plain(View(player(timeline).frame(index + 1, ALL), History()), 120, 20)
    assert any("intelligent moved 6 blocks: 23 → 0" in line for line in lines)


def test_levels_over_time_are_those_of_the_states(timeline: Timeline) -> None:
    history, state = History(state=timeline.header.empty_state()), timeline.header.empty_state()
    expected = []
    for _, event in timeline.events():
        history.add(event)
        apply(state, event)
        if isinstance(event, LevelsAdapted):
            held = (state.ref > 0) | (state.hash >= 0)
            expected.append((state.step, tuple(int((state.level[held] == level).sum()) for level in range(5))))
    assert history.levels == expected
    assert len(expected) == 2


def test_a_device_shows_its_rates_and_their_share_of_a_copy_and_the_reference_none(timeline: Timeline) -> None:
    frame = view_at(timeline, 79).frame
    assert all(row.gb_per_s is None for row in frame.kernels)
    assert "GB/s" not in Kernels().plain(View(frame, History()), 90, 6)[0]
    origin = {"device": "NVIDIA H100", "copy_bandwidth": {"gb_per_s": 2000.0, "of": "a copy"}}
    header = replace(timeline.header, origin={**timeline.header.origin, **origin})
    timed = KernelsTimed(
        "block_scoring block_mass", np.array([1, 2], dtype=np.int32), np.array([50.0, 10.0]),
        np.array([40_000_000, 1000]), "measured", 120.0,
    )  # fmt: skip
    kernels, title, host_us, step = framing._kernels([(79, timed)], header)
    assert (title, host_us, step) == ("measured on NVIDIA H100", 120.0, 79)
    shown = replace(frame, header=header, kernels=kernels, kernel_title=title, host_us=host_us)
    rows = [" ".join(row.split()) for row in Kernels().plain(View(shown, History()), 90, 4)]
    assert rows == [
        "kernel calls total share MiB GB/s of copy",
        "block_scoring 1 50.0 µs 83 % 38.15 800 40 %",
        "block_mass 2 ~10.0 µs 17 % 0.00 ~0 0 %",
    ]


def test_work_is_shared_by_as_many_workers_as_the_replay_had(timeline: Timeline) -> None:
    assert timeline.header.origin["num_workers"] == 32
    origin = {**timeline.header.origin, "num_workers": 4}
    shares = ContentInspector(replace(timeline.header, origin=origin)).shares(np.array([64, 16], dtype=np.int32), None)
    assert shares.before.tolist() == [64, 16]
    assert shares.after.tolist() == [16, 16, 16, 32]
