"""A trace as columns: what the engine steps through."""

from __future__ import annotations

import pytest

from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.trace import Request, Trace, request_columns


def test_columns_hold_every_request_and_minus_one_where_there_is_nothing() -> None:
    trace = Trace(
        "t",
        "json",
        (
            Request("a", 0, 20, 4, n=3),
            Request("b", 5, 30, 0, parent="a", fork_at=22, cancel_at_us=90, priority=-2),
            Request("c", 7, 10, 1, parent="b"),
        ),
    )
    columns = request_columns(trace)
    assert columns.num_requests == 3
    assert columns.ids == ("a", "b", "c")
    assert {name: getattr(columns, name).tolist() for name in columns.__dataclass_fields__ if name != "ids"} == {
        "arrival_us": [0, 5, 7],
        "prompt_len": [20, 30, 10],
        "output_len": [4, 0, 1],
        "n": [3, 1, 1],
        "parent": [-1, 0, 1],
        "fork_at": [-1, 22, 10],
        "cancel_at_us": [-1, 90, -1],
        "priority": [0, -2, 0],
    }


def test_a_parent_that_is_no_earlier_request_is_refused() -> None:
    with pytest.raises(TraceError, match="t: parent 'b' of 'a' is no earlier request"):
        request_columns(Trace("t", "json", (Request("a", 0, 1, 1, parent="b"), Request("b", 0, 1, 1))))
    with pytest.raises(TraceError, match="t: two requests have the id 'a'"):
        request_columns(Trace("t", "json", (Request("a", 0, 1, 1), Request("a", 0, 1, 1))))
