"""Our JSON: what is written reads back equal, and the published schema is that of the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tinyserve_viz.trace import Request, Trace, native
from tinyserve_viz.trace.schema import json_schema
from tinyserve_viz.trace.source import Source

ROOT = Path(__file__).parents[2]


def read_back(data: bytes) -> Trace:
    return native.read(Source("t.json", "t", data), None, 1 << 20)


def plain(trace: Trace) -> Any:
    def values(item: Any) -> Any:
        return item.tolist() if isinstance(item, np.ndarray) else item

    requests = [{name: values(getattr(r, name)) for name in Request.__dataclass_fields__} for r in trace.requests]
    return {name: getattr(trace, name) for name in Trace.__dataclass_fields__ if name != "requests"}, requests


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    hash_block = draw(st.sampled_from([0, 1, 16, 512]))
    requests: list[Request] = []
    now = 0
    for index in range(draw(st.integers(1, 5))):
        now += draw(st.integers(0, 10**12))
        prompt_len = draw(st.integers(1, 40))
        output_len = draw(st.integers(0, 40))
        parent = draw(st.sampled_from([None, *requests]))
        ids = draw(
            st.none() | st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=-(-prompt_len // (hash_block or 64)))
        )
        token_ids = st.integers(0, 2**31 - 1)
        prompt = draw(st.none() | st.lists(token_ids, min_size=prompt_len, max_size=prompt_len))
        output = draw(st.none() | st.lists(token_ids, min_size=output_len, max_size=output_len))
        most = 0 if parent is None else min(prompt_len, parent.prompt_len + parent.output_len)
        requests.append(
            Request(
                id=f"{index}{draw(st.text(st.characters(exclude_categories=['Cs']), max_size=4))}",
                arrival_us=now,
                prompt_len=prompt_len,
                output_len=output_len,
                prefix_hash_ids=None if ids is None else np.array(ids, dtype=np.int64),
                prompt_tokens=None if prompt is None else np.array(prompt, dtype=np.int32),
                output_tokens=None if output is None else np.array(output, dtype=np.int32),
                n=draw(st.integers(1, 9)) if parent is None else 1,
                parent=None if parent is None else parent.id,
                fork_at=None if parent is None else draw(st.integers(1, most)),
                cancel_at_us=draw(st.none() | st.integers(now, now + 10**9)),
                priority=draw(st.integers(-5, 5)),
            )
        )
    return Trace(
        name=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
        format="json",
        requests=tuple(requests),
        seed=draw(st.integers(0, 2**63 - 1)),
        hash_block=hash_block,
        engine=draw(
            st.fixed_dictionaries(
                {}, optional={"num_blocks": st.integers(1, 99), "ratio_permille": st.integers(1, 1000)}
            )
        ),
        model=draw(st.fixed_dictionaries({}, optional={"num_layers": st.integers(1, 9)})),
        content=draw(st.fixed_dictionaries({}, optional={"kind": st.just("iid"), "seed": st.integers(0, 9)})),
    )


@given(traces())
def test_a_written_trace_reads_back_equal_and_is_written_the_same_again(trace: Trace) -> None:
    data = native.encode(trace)
    again = read_back(data)
    assert plain(again) == plain(trace)
    assert native.encode(again) == data


def test_a_request_is_one_line_without_the_fields_that_have_their_default() -> None:
    trace = Trace("t", "json", (Request("a", 0, 8, 2), Request("b", 1500, 3, 0, prefix_hash_ids=np.array([4]), n=2)))
    assert native.encode(trace).decode() == (
        '{"schema": "tinyserve-viz/trace/1",\n "name": "t",\n "seed": 0,\n "requests": [\n'
        '  {"id":"a","prompt_len":8,"output_len":2},\n'
        '  {"id":"b","arrival_ms":1.5,"prompt_len":3,"output_len":0,"prefix_hash_ids":[4],"n":2}\n ]}\n'
    )


def test_the_published_schema_is_the_one_that_the_reader_uses() -> None:
    """If this fails: python -m tinyserve_viz.trace.schema > docs/trace.schema.json"""
    assert (ROOT / "docs" / "trace.schema.json").read_bytes() == json_schema()
