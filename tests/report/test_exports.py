"""Tables, event lines, the Chrome trace and the Mooncake rows hold what the recording holds."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.engine.scenario import req
from tests.report.chrome_format import checked
from tinyserve_viz.analysis.charts.source import RunSource
from tinyserve_viz.analysis.tables import TABLES, flattened
from tinyserve_viz.cli.export import exported
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.errors import ConfigError
from tinyserve_viz.core.events import EVENT_TYPES
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.report.chrome_trace import chrome_trace
from tinyserve_viz.report.event_lines import SCHEMA, event_lines, reference
from tinyserve_viz.report.mooncake_rows import mooncake_rows
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Trace

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows_of(recording: Path, table: str, at: int | None = None) -> list[dict[str, str]]:
    data, _ = exported(recording, "csv", table, at)
    return list(csv.DictReader(io.StringIO(data.decode())))


def summary_of(recording: Path) -> dict[str, object]:
    with Timeline(recording) as timeline:
        return {row[0]: row[1] for row in flattened(json.loads(timeline.summary or b""))}


def test_tables_add_up_to_the_summary(quickstart_recording: Path) -> None:
    total = summary_of(quickstart_recording)
    steps = rows_of(quickstart_recording, "steps")
    assert len(steps) == total["steps"]
    assert max(int(row["peak_blocks"]) for row in steps) == total["blocks.peak_used"]
    requests = rows_of(quickstart_recording, "requests")
    assert sum(int(row["hit_tokens"]) for row in requests) == total["prefix.hit_tokens"]
    assert sum(int(row["evicted_tokens"]) for row in requests) == total["prefix.misses.evicted"]
    assert sum(int(row["preemptions"]) for row in requests) == total["requests.preemptions"]
    outcomes = [row["outcome"] for row in requests]
    assert outcomes.count("completed") == total["requests.completed"]
    assert outcomes.count("cancelled") == total["requests.cancelled"]
    assert len(rows_of(quickstart_recording, "evictions")) == total["blocks.evictions"]
    assert len(rows_of(quickstart_recording, "preemptions")) == total["requests.preemptions"]
    copies = rows_of(quickstart_recording, "copies")
    assert len(copies) == total["blocks.copies_on_write"]
    assert len(rows_of(quickstart_recording, "allocations")) + len(copies) == total["blocks.allocations"]
    moved = sum(int(row["moved_blocks"]) for row in rows_of(quickstart_recording, "compactions"))
    assert moved == total["blocks.compaction_moves"]
    for row in rows_of(quickstart_recording, "kernels"):
        assert float(row["total_us"]) == pytest.approx(total[f"kernels.{row['kernel']}.total_us"])
        assert row["useful_gb_per_s"] == ""  # the reference's wall time is no kernel time
    per_step = rows_of(quickstart_recording, "kernel_steps")
    spent = sum(float(row["total_us"]) for row in per_step)
    assert spent == pytest.approx(sum(float(row["kernels_us"]) for row in steps))
    assert [row["value"] for row in rows_of(quickstart_recording, "summary") if row["name"] == "digest"] == [
        total["digest"]
    ]


def test_every_table_has_a_unit_or_a_name_in_every_column_and_stands_in_the_docs() -> None:
    text = (DOCS / "export.md").read_text()
    for table in TABLES:
        assert f"| `{table.name}` |" in text, table.name
        assert table.summary in text, table.name
        assert ", ".join(f"`{column}`" for column in table.columns) in text, table.name
        assert len(set(table.columns)) == len(table.columns)
    assert len({table.name for table in TABLES}) == len(TABLES)


def test_tables_of_one_moment_show_that_moment(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        state = timeline.seek(timeline.first_event_of_step(80))
    blocks = rows_of(quickstart_recording, "blocks", at=79)
    assert [int(row["references"]) for row in blocks] == state.ref.tolist()
    assert sum(row["state"] == "cached_free" for row in blocks) == state.num_cached_free
    held = rows_of(quickstart_recording, "block_tables", at=79)
    live = np.flatnonzero(state.slot >= 0)
    assert [int(row["block"]) for row in held] == [int(b) for seq in live.tolist() for b in state.table(seq)]
    with pytest.raises(ConfigError, match="has steps 0 to 145, --at is 146"):
        exported(quickstart_recording, "csv", "blocks", at=146)
    with pytest.raises(ConfigError, match="table steps shows the whole recording"):
        exported(quickstart_recording, "csv", "steps", at=1)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_csv_and_json_of_a_table_say_the_same(table: object, quickstart_recording: Path) -> None:
    name: str = table.name  # type: ignore[attr-defined]
    found = json.loads(exported(quickstart_recording, "json", name)[0])
    assert found["schema"] == 1
    assert found["table"] == name
    as_text = [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in found["rows"]
    ]  # fmt: skip
    assert as_text == rows_of(quickstart_recording, name)
    assert len(found["rows"]) > 0 or name == "block_tables"  # at the end nobody holds a block


def test_event_lines_are_the_events(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        head, *lines = (json.loads(line) for line in event_lines(timeline))
        events = list(timeline.events())
    assert head["schema"] == SCHEMA
    assert head["events"] == len(lines) == len(events)
    assert head["request_ids"][0] == "chat-1"
    for index, (line, (step, event)) in enumerate(zip(lines, events, strict=True)):
        assert (line["index"], line["step"], line["kind"]) == (index, step, type(event).__name__)
        for name in (field.name for field in fields(event)):
            value = getattr(event, name)
            assert line[name] == (value.tolist() if isinstance(value, np.ndarray) else value)


def test_sentences_say_what_each_event_did(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        lines = [json.loads(line) for line in event_lines(timeline, with_sentences=True)][1:]
    texts = [line["text"] for line in lines if line["kind"] == "SequencePreempted"]
    assert len(texts) == 2
    assert texts[0].startswith("preempted impatient (latest arrived): summary-3 needed 1 block, 0 left")


def test_the_reference_of_events_is_written_from_the_code() -> None:
    written = (DOCS / "events.md").read_text()
    assert written == reference(), "python -m tinyserve_viz.report.event_lines > docs/events.md writes it again"
    assert all(f"\n## {event_type.__name__}\n" in written for event_type in EVENT_TYPES)


def test_the_chrome_trace_keeps_the_format_and_its_slices_apart(quickstart_recording: Path) -> None:
    with Timeline(quickstart_recording) as timeline:
        source = RunSource(timeline)
        events = checked(b"".join(chrome_trace(source)))
        summary = json.loads(timeline.summary or b"")
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads[3, 1] == "stream 0"
    kernels = [e for e in events if e.get("cat") == "kernel"]
    for kernel in summary["kernels"]:
        own = [e for e in kernels if e["name"] == kernel["name"]]
        assert sum(e["args"]["calls"] for e in own) == kernel["calls"]
        assert float(sum(e["dur"] for e in own)) == pytest.approx(kernel["total_us"], abs=0.001 * len(own))
    steps = [e for e in events if e.get("cat") == "step" and e["pid"] == 1]
    assert len(steps) == summary["steps"]
    assert float(steps[-1]["ts"] + steps[-1]["dur"]) == summary["virtual_time_s"] * 1e6
    memory = [e["args"] for e in events if e["name"] == "memory (blocks)"]
    assert {sum(values.values()) for values in memory} == {40}
    assert {e["name"] for e in events if e["ph"] == "C"} == {
        "memory (blocks)", "queue (sequences)", "internal fragmentation (%)", "external fragmentation (%)",
        "span (used blocks)",
    }  # fmt: skip
    instants = [e["name"].split()[0] for e in events if e["ph"] == "i"]
    assert instants.count("preempt") == summary["requests"]["preemptions"]
    stays = [e for e in events if e.get("cat") == "sequence"]
    assert [e["name"] for e in stays if e["args"]["ended"] == "preempted"] == ["impatient", "summary-3"]


def test_a_sequence_in_its_row_prefills_and_decodes_and_does_so_again_after_a_preemption(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    sizes = {"block_size": 4, "num_blocks": 4, "max_batch_tokens": 64, "max_num_seqs": 8, "watermark_permille": 0}
    trace = Trace("two", "json", (req("a", 6, 6), req("b", 6, 3)), hash_block=4)
    run_replay(prepare(trace, Settings(engine=sizes, kernels="none")), path)
    with Timeline(path) as timeline:
        events = checked(b"".join(chrome_trace(RunSource(timeline))))
    rows = [(e["tid"], e["name"], int(e["ts"]), int(e["dur"])) for e in events if e["ph"] == "X" and e["pid"] == 2]
    # Both prefill 6 tokens in 20,240 µs and decode two tokens each in 20,100 µs steps; then b's block 2 is missing.
    after = 20_240 + 2 * 20_100
    assert rows[:3] == [(2, "b", 0, after), (2, "prefill", 0, 20_240), (2, "decode", 20_240, 40_200)]
    assert [name for _, name, _, _ in rows].count("prefill") == 3
    assert not any(e["pid"] == 3 for e in events)  # no kernels, no track for them


def test_mooncake_rows_come_back_as_they_were_imported(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 1100, "output_length": 3, "hash_ids": [46, 7, 900]},
        {"timestamp": 27.5, "input_length": 1024, "output_length": 0, "hash_ids": [46, 7]},
        {"timestamp": 3000, "input_length": 5, "output_length": 2, "hash_ids": [12]},
    ]
    original = tmp_path / "m.jsonl"
    original.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recording = tmp_path / "m.rec"
    run_replay(prepare(read_trace(str(original)), Settings(kernels="none")), recording)
    data, notes = exported(recording, "mooncake")
    assert [json.loads(line) for line in data.splitlines()] == lines
    assert notes == []
    (tmp_path / "again.jsonl").write_bytes(data)
    header = prepare(read_trace(str(tmp_path / "again.jsonl")), Settings(kernels="none"))
    assert b"".join(mooncake_rows(header)) == data


def rows_from(*requests: object, hash_block: int) -> list[list[int]]:
    trace = Trace("t", "json", requests, hash_block=hash_block)  # type: ignore[arg-type]
    header = prepare(trace, Settings(engine={"block_size": 128}, kernels="none"))
    return [json.loads(line)["hash_ids"] for line in mooncake_rows(header)]


def test_smaller_ids_are_joined_so_that_equal_prefixes_stay_equal() -> None:
    rows = rows_from(
        req("a", 1024, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        req("b", 1024, 1, [1, 2, 3, 4, 5, 6, 7, 9]),
        req("c", 600, 1, [1, 2, 3, 4, 5]),  # the last 88 tokens lie inside id 5
        req("d", 600, 1, [1, 2, 3, 4, 5]),
        req("e", 600, 1),
        hash_block=128,
    )
    assert rows == [[0, 1], [0, 2], [0, 3], [0, 3], [4, 5]]


def test_larger_ids_are_split_and_others_refused() -> None:
    assert rows_from(req("a", 1500, 1, [1, 2]), req("b", 1024, 1, [1]), hash_block=1024) == [[0, 1, 2], [0, 1]]
    with pytest.raises(ConfigError, match="stand for 384 tokens each, expected a divisor or a multiple of 512"):
        rows_from(req("a", 1500, 1, [1, 2]), hash_block=384)


def test_a_real_mooncake_trace_comes_back_row_for_row(real_traces: Path) -> None:
    source = real_traces / "mooncake_conversation.jsonl"
    header = prepare(read_trace(str(source)), Settings(kernels="none"))
    with source.open("rb") as file:
        for ours, theirs in zip(mooncake_rows(header), file, strict=True):
            assert json.loads(ours) == json.loads(theirs)


def test_what_mooncake_cannot_say_is_told(quickstart_recording: Path) -> None:
    data, notes = exported(quickstart_recording, "mooncake")
    requests = read_trace(str(data_folder("traces") / "quickstart.json")).requests
    assert [json.loads(line)["input_length"] for line in data.splitlines()] == [r.prompt_len for r in requests]
    assert notes == [
        "not in the Mooncake format and left out: samples of 1 requests, forks of 1 requests, "
        "cancellations of 1 requests"
    ]
