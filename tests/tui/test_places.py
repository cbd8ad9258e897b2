"""What a user types: every word is understood, and every mistake answered in one line."""

from __future__ import annotations

import numpy as np
import pytest

from tinyserve_viz.analysis.breaks import Break
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.engine.workload import workload_of
from tinyserve_viz.trace import read_trace
from tinyserve_viz.tui.places import NoSuchPlace, parse_breaks


@pytest.fixture(scope="module")
def workload() -> Workload:
    return workload_of(read_trace(str(data_folder("traces") / "quickstart.json")), 16, False, "trace")


def test_a_line_names_several_breakpoints_once_each(workload: Workload) -> None:
    several = int(np.flatnonzero(workload.num_samples > 1)[0])
    name, first = workload.request_ids[several], int(workload.first_seq[several])
    found = parse_breaks(f"evict, block 12 seq {name}.1 step 57 evict", workload, 40)
    assert found == (Break("evict"), Break("block", 12), Break("seq", first + 1), Break("step", 57))
    assert parse_breaks("", workload, 40) == ()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("evcit", "'evcit': expected preempt, evict, copy, compact, reject, cancel, fork, admit, finish, block N"),
        ("block 40", "block 40: expected a number from 0 to 39"),
        ("block x", "block x: expected a number from 0 to 39"),
        ("step", "step: expected a number after it"),
        ("seq", "seq: expected a name after it"),
        ("seq nobody", "no request is called 'nobody'"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(text: str, answer: str, workload: Workload) -> None:
    with pytest.raises(NoSuchPlace) as caught:
        parse_breaks(text, workload, 40)
    assert str(caught.value).startswith(answer)
