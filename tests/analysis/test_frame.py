"""A frame says what the state says, depends on its position alone, and the history agrees with the totals."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tinyserve_viz.analysis.closeups import Selection
from tinyserve_viz.analysis.frame import CACHED, FREE, Frame
from tinyserve_viz.analysis.framing import Wanted
from tinyserve_viz.analysis.history import History, life_of_block, strip_of_marks
from tinyserve_viz.cli.main import main
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.tui.player import Player


@pytest.fixture(scope="module", params=["quickstart", "forks"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("frame") / "run.rec"
    trace = str(data_folder("traces") / f"{request.param}.json")
    assert main(["replay", trace, "--kernels", "decisions", "--headless", "--quiet", "--record", str(path)]) == 0
    return path


def places(timeline: Timeline, count: int) -> list[int]:
    rng = random.Random(7)
    return [0, 1, timeline.num_events, *(rng.randrange(timeline.num_events) for _ in range(count))]


def same_selection(one: Selection | None, other: Selection | None) -> bool:
    if one is None or other is None:
        return one is other
    arrays = ("seqs", "lengths", "chosen")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays) and (
        (one.step, one.at, one.rates, one.no_scores) == (other.step, other.at, other.rates, other.no_scores)
    )


def same(one: Frame, other: Frame) -> bool:
    arrays = ("owner", "ref", "fill", "age", "content", "gen", "touched")
    plain = (
        "position",
        "step",
        "time_us",
        "sequences",
        "chosen",
        "chosen_line",
        "memory",
        "kernels",
        "said",
    )
    if not same_selection(one.selection, other.selection):
        return False
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays) and all(
        getattr(one, name) == getattr(other, name) for name in plain
    )


def test_a_frame_depends_on_its_position_alone(recording: Path) -> None:
    with Timeline(recording) as timeline, Timeline(recording) as fresh:
        wandering = Player(timeline)
        for position in places(timeline, 40):
            assert same(wandering.frame(position), Player(fresh).frame(position))


def test_blocks_by_state_add_up_and_agree_with_the_owners(recording: Path) -> None:
    with Timeline(recording) as timeline:
        player = Player(timeline)
        for position in places(timeline, 40):
            frame = player.frame(position)
            memory = frame.memory
            assert memory.used + memory.cached + memory.free == frame.num_blocks
            assert memory.used == int((frame.owner >= 0).sum()) == int((frame.ref > 0).sum())
            assert memory.cached == int((frame.owner == CACHED).sum())
            assert memory.free == int((frame.owner == FREE).sum())


def test_the_table_of_a_sequence_holds_its_context(recording: Path) -> None:
    with Timeline(recording) as timeline:
        player = Player(timeline)
        for position in places(timeline, 40):
            for row in player.frame(position).sequences:
                frame = player.frame(position, Wanted(seq=row.seq))
                table = [frame.table.row(logical) for logical in range(len(frame.table))]
                assert len(table) == row.num_blocks
                if table:  # a finished sequence has dropped its blocks one event before it is called so
                    assert sum(cell.fill for cell in table) == row.context
                assert all(frame.ref[cell.physical] == cell.ref >= 1 for cell in table)
                assert row.shared == sum(cell.ref > 1 for cell in table)


def test_the_last_sentence_is_about_the_last_event(recording: Path) -> None:
    with Timeline(recording) as timeline:
        player = Player(timeline)
        for position in places(timeline, 40)[1:]:
            frame = player.frame(position)
            step, event = timeline.event(frame.position - 1) if frame.position else (0, None)
            if event is not None:
                said = frame.said[-1]
                assert (said.index, said.step, said.kind) == (frame.position - 1, step, type(event).__name__)
                assert [one.index for one in frame.said] == list(range(frame.said[0].index, frame.position))


def test_the_history_has_one_row_a_step_and_every_mark(recording: Path) -> None:
    history = History()
    with Timeline(recording) as timeline:
        ends = [event for _, event in timeline.events() if isinstance(event, ev.StepEnded)]
        preempted = sum(isinstance(event, ev.SequencePreempted) for _, event in timeline.events())
        for _, event in timeline.events():
            history.add(event)
        assert history.num_events == timeline.num_events
        assert history.used == [event.used_blocks for event in ends]
        assert history.time_us == [event.time_us for event in ends]
        assert sum(mark == "P" for _, mark in history.marks) == preempted
        for end in history.ends:
            assert isinstance(timeline.event(end - 1)[1], ev.StepEnded)


def test_marks_that_meet_show_the_weightier_letter() -> None:
    assert strip_of_marks([(0, "E"), (1, "P"), (2, "E"), (9, "C")], 10, 5) == "PE  C"
    assert strip_of_marks([], 0, 3) == "   "


def test_the_life_of_a_block_ends_with_its_newest_event(recording: Path) -> None:
    with Timeline(recording) as timeline:
        block = next(int(event.blocks[0]) for _, event in timeline.events() if isinstance(event, ev.BlocksAllocated))
        life = life_of_block(timeline, block, timeline.num_events)
        assert ": allocated to " in life[-1]
        assert life_of_block(timeline, block, 0) == []
        allocated = sum(isinstance(e, ev.BlocksAllocated) and block in e.blocks for _, e in timeline.events())
        assert sum("allocated to" in line and "copy" not in line for line in life) == allocated
