"""Breakpoints: each word stops at its events, forwards and backwards, and steps are met where they begin."""

from __future__ import annotations

import pytest

from tinyserve_viz.analysis.breaks import KINDS, Break, search
from tinyserve_viz.analysis.history import about_block
from tinyserve_viz.cli.main import main
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    path = tmp_path_factory.mktemp("breaks") / "run.rec"
    quickstart = str(data_folder("traces") / "quickstart.json")
    assert main(["replay", quickstart, "--kernels", "decisions", "--headless", "--record", str(path)]) == 0
    return Timeline(path)


def walk(timeline: Timeline, breaks: tuple[Break, ...], backwards: bool = False) -> list[int]:
    """Every place at which a run through the whole recording stops."""
    stops: list[int] = []
    at = timeline.num_events + 1 if backwards else 0
    while True:
        bounds = (0, at - 1) if backwards else (at, timeline.num_events)
        met = [place for place in search(timeline, breaks, *bounds, backwards) if place is not None]
        if not met:
            return stops[::-1] if backwards else stops
        at = met[0][0]
        stops.append(at)


@pytest.mark.parametrize("word", KINDS)
def test_a_word_stops_right_after_each_of_its_events(word: str, timeline: Timeline) -> None:
    expected = [
        index + 1
        for index, (_, event) in enumerate(timeline.events())
        if isinstance(event, KINDS[word]) and (word != "compact" or len(event.src))  # type: ignore[attr-defined]
    ]
    assert walk(timeline, (Break(word),)) == expected
    assert walk(timeline, (Break(word),), backwards=True) == expected


def test_a_block_stops_at_every_event_of_its_life(timeline: Timeline) -> None:
    expected = [index + 1 for index, (_, event) in enumerate(timeline.events()) if about_block(event, 3, str)]
    assert len(expected) > 4
    assert walk(timeline, (Break("block", 3),)) == expected


def test_a_sequence_stops_from_its_arrival_to_its_end(timeline: Timeline) -> None:
    stops = walk(timeline, (Break("seq", 0),))
    kinds = [type(timeline.event(place - 1)[1]).__name__ for place in stops]
    assert kinds[:3] == ["RequestsArrived", "SequenceAdmitted", "BlocksAllocated"]
    assert kinds[-2:] == ["BlocksFreed", "SequencesFinished"] or kinds[-1] == "BlocksFreed"


def test_a_step_is_met_at_its_first_event_and_the_nearest_of_several_breaks_wins(timeline: Timeline) -> None:
    begins = timeline.first_event_of_step(30) + 1
    assert walk(timeline, (Break("step", 30),)) == [begins]
    both = walk(timeline, (Break("step", 30), Break("evict")))
    assert both == sorted({begins, *walk(timeline, (Break("evict"),))})
    assert walk(timeline, (Break("step", 10_000),)) == []


def test_a_break_is_written_as_it_is_read(timeline: Timeline) -> None:
    workload = timeline.header.workload
    breaks = (Break("evict"), Break("block", 12), Break("seq", 0), Break("step", 57))
    assert [at.words(workload) for at in breaks] == ["evict", "block 12", f"seq {workload.seq_name(0)}", "step 57"]
