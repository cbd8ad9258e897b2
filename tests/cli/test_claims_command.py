"""`claims`: every entry answers with numbers that carry mark and definition, and says what it cannot measure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.analysis.claim import CLAIMED, COUNTED, MEASURED, NOT_MEASURED, interval
from tinyserve_viz.cli.claims import memory, reference, selection, speed
from tinyserve_viz.cli.claims.counting import Ask, imbalance
from tinyserve_viz.cli.claims.table import CLAIMS
from tinyserve_viz.cli.claims.timed import Timed
from tinyserve_viz.cli.main import main
from tinyserve_viz.core.errors import GpuUnavailable
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.trace import read_trace

ROOT = Path(__file__).parents[2]
QUICKSTART = data_folder("traces") / "quickstart.json"


def ask(*names: str, requests: int = 1000) -> Ask:
    traces = tuple(read_trace(data_folder("traces") / f"{name}.json") for name in names)
    return Ask(traces, requests, 2, Timed(), quiet=True)


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["claims", *arguments, "--quiet", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    return found


def numbers_of(found: dict[str, Any], claim: str) -> list[dict[str, Any]]:
    return next(entry["numbers"] for entry in found["claims"] if entry["name"] == claim)


@pytest.mark.slow
def test_every_claim_answers_and_no_number_of_ours_is_a_claim(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, str(QUICKSTART), "--seeds", "2")
    assert [entry["name"] for entry in found["claims"]] == [claim.name for claim, _ in CLAIMS]
    for entry in found["claims"]:
        assert entry["says"]
        assert entry["source"]
        assert entry["verdict"]
        for number in entry["numbers"]:
            assert number["definition"]
            assert number["mark"] != CLAIMED
            assert (number["value"] is None) == (number["mark"] == NOT_MEASURED)
            if number["mark"] == MEASURED:  # without a bench file only the host's memory was measured
                assert number["on"] == "the memory of this host, which is no GPU"


def test_the_page_tells_of_every_claim() -> None:
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z-]+)`", page))
    assert {claim.name for claim, _ in CLAIMS} <= named


def test_utilisation_is_shown_or_refuted_by_the_traces_own_numbers() -> None:
    numbers, verdict = memory.utilisation(ask("quickstart", "prefix"))
    by_place = {(number.on, number.name): number.value for number in numbers}
    assert by_place["quickstart", "paged, blocks of 16"] == pytest.approx(0.9553, abs=5e-5)
    assert by_place["prefix", "paged, blocks of 16"] == pytest.approx(0.9876, abs=5e-5)
    assert "quickstart: above 96 % refuted for blocks of 16 (95.53 %)" in verdict
    assert "prefix: above 96 % shown for blocks of 16 (98.76 %)" in verdict


def test_what_is_counted_from_lengths_is_what_a_replay_without_sharing_gives() -> None:
    asked = ask("bursty")
    numbers, _ = memory.utilisation(asked)
    counted = next(number.value for number in numbers if number.name == "paged, blocks of 16")
    run = asked.replay(asked.traces[0], allocator="paged", max_model_len=memory.reservation(asked.traces[0]))
    if not run.totals["requests"]["preemptions"]:
        assert run.totals["utilization"]["decode"] == pytest.approx(counted, abs=1e-12)
    assert run.tokens / run.paged == run.totals["utilization"]["decode"]


def test_a_padded_batch_counts_the_longest_for_each() -> None:
    run = ask("quickstart").replay(read_trace(QUICKSTART), allocator="paged")
    assert run.tokens < run.paged < run.padded


def test_imbalance_of_batches_that_can_be_worked_out_by_hand() -> None:
    one_long = imbalance(np.array([132 * 16]), 16)
    assert one_long == {"per-seq": 132.0, "even-blocks": 1.0, "lpt": 132.0}
    equal = imbalance(np.full(132, 160), 16)
    assert equal == {"per-seq": 1.0, "even-blocks": 1.0, "lpt": 1.0}


def test_box_scores_keep_more_on_topics_than_on_iid_and_less_with_larger_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "PAGES", (4, 64))
    numbers, verdict = selection.page_size(ask("quickstart"))
    kept = {(n.on.split(",")[0], n.name): n.value for n in numbers if n.name.startswith("mass kept")}
    for size in selection.PAGES:
        topics, iid = (kept[content, f"mass kept, blocks of {size}"] for content in selection.CONTENTS)
        assert topics is not None
        assert iid is not None
        assert topics > iid
    assert "the direction that is claimed; on iid" in verdict


def test_the_interval_of_two_equal_values_is_a_point_and_of_others_students() -> None:
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.0)
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == (3.0, pytest.approx(2.776 * 2.5**0.5 / 5**0.5))


BENCH = {
    "device": "NVIDIA H100 80GB HBM3",
    "peaks": {"copy": 3000.0},
    "rows": [
        {"op": "decode", "impl": "flash_paged_attention", "shape": "m B=1 L=131072", "us": 200.0, "gbs": 2700.0,
         "bytes": 540e6},
        {"op": "decode", "impl": "paged_attention", "shape": "m B=1 L=131072", "us": 400.0, "bytes": 540e6},
        {"op": "sparse-decode", "impl": "flash_paged_attention", "shape": "m K=2048", "us": 200.0, "bytes": 540e6},
        {"op": "sparse-decode", "impl": "query_aware, fused", "shape": "m K=2048", "us": 50.0, "bytes": 180e6},
        {"op": "sparse-decode", "impl": "query_aware, three launches", "shape": "m K=2048", "error": "wrong"},
        {"op": "decode-layout", "impl": "blocks scattered", "shape": "m", "us": 125.0},
        {"op": "decode-layout", "impl": "blocks in order", "shape": "m", "us": 100.0},
    ],
}  # fmt: skip


def test_a_bench_file_fills_the_measured_rows_and_marks_what_is_beyond_its_ceiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h100.json"
    path.write_text(json.dumps(BENCH))
    wanted = "context,flash,speed-up,block-copies,fragmentation"
    found = answered(capsys, str(QUICKSTART), "--bench", str(path), "--only", wanted)
    assert found["devices"] == ["NVIDIA H100 80GB HBM3"]
    time = next(number for number in numbers_of(found, "context") if number["mark"] == MEASURED)
    assert (time["value"], time["unit"], time["on"]) == (200.0, "µs", "NVIDIA H100 80GB HBM3")
    assert next(n for n in numbers_of(found, "flash") if n["mark"] == MEASURED)["value"] == 2.0
    faster = [number for number in numbers_of(found, "speed-up") if number["mark"] == MEASURED]
    assert [number["value"] for number in faster] == [4.0]
    assert "bytes allow 3.00×: BEYOND it" in faster[0]["definition"]
    verdicts = {entry["name"]: entry["verdict"] for entry in found["claims"]}
    assert "query_aware, fused over full: 4.00× on NVIDIA H100 80GB HBM3" in verdicts["speed-up"]
    assert verdicts["block-copies"].endswith("how much, a GPU has to tell")
    one_pass = next(n for n in numbers_of(found, "flash") if n["mark"] == MEASURED)
    assert one_pass["definition"].endswith("; the bytes are the same")
    missing = next(number for number in numbers_of(found, "block-copies") if number["mark"] == NOT_MEASURED)
    assert "the bench files have no such row" in missing["definition"]
    in_order = next(n for n in numbers_of(found, "fragmentation") if n["name"].startswith("attention, in order"))
    assert (in_order["value"], in_order["on"]) == (1.25, "NVIDIA H100 80GB HBM3")


def test_without_a_gpu_references_are_timed_and_say_so() -> None:
    asked = Ask((), 1, 2, Timed(), quiet=True)
    pages = reference.pages(asked, length=128)
    assert [number.name for number in pages] == [f"NumPy reference, page {size}" for size in (4, 8, 16, 32, 64)]
    for numbers in (pages, speed.fused_write(asked)[0]):
        timed = [number for number in numbers if number.name.startswith("NumPy reference")]
        assert all(number.mark == COUNTED and number.unit == "ms" and number.value for number in timed)
        assert all("no kernel time" in number.definition for number in timed)


def test_a_bench_file_fills_page_sizes_and_writes_apart_and_no_reference_is_timed(tmp_path: Path) -> None:
    rows = [
        {"op": "kv-write-apart", "impl": impl, "shape": "B=64 new=1", "us": us, "bytes": 10, "provenance": "measured"}
        for impl, us in (("one launch", 4.0), ("reshape, then write", 6.0))
    ]
    path = tmp_path / "h100.json"
    path.write_text(json.dumps({**BENCH, "rows": rows}))
    numbers, verdict = speed.fused_write(Ask((), 1, 2, Timed([path]), quiet=True))
    ratio = next(number for number in numbers if number.name == "one launch over two, B=64 new=1")
    assert (ratio.value, ratio.mark) == (1.5, MEASURED)
    assert "one launch over two: 1.50× on NVIDIA H100 80GB HBM3" in verdict
    assert not [number for number in numbers if number.name.startswith("NumPy")]


def test_the_text_has_legend_claims_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(QUICKSTART), "--only", "eight-gpus,longbench", "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "● measured   ◐ counted or modelled   ○ claimed   – not measured" in text
    assert "◐ their efficiency  96.00 %" in text
    assert "needs a model and its tasks" in text
    assert all(len(line) <= 118 for line in text.splitlines()[3:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "utilisation,nothing"], "unknown claim 'nothing'; known: utilisation, throughput,"),
        (["--seeds", "1"], "'1' given, expected a whole number, 2 to 10"),
        (["--bench", "none.json"], "none.json: No such file or directory"),
        (["none.csv"], "none.csv: no such file, expected a trace"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", *arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_list_names_every_claim_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CLAIMS)
    assert lines[0].endswith("[S:243, S:245, S:584, S:587]")


@pytest.mark.slow
def test_on_captured_attention_the_oracle_keeps_most_and_a_draw_by_lot_least(
    real_traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "CONTENTS", ())
    asked = Ask((), 1, 2, Timed(), str(real_traces / "qkv_smollm2_shakespeare_T2048.npz"), quiet=True)
    numbers, verdict = selection.hit_rate(asked)
    for blocks in selection.BUDGETS:
        kept = {n.name.split(",")[0]: n.value for n in numbers if n.on.endswith(f", {blocks} blocks of 16")}
        assert kept["oracle"] > kept["paper"] > kept["random"]  # type: ignore[operator]
    assert "points over streaming with 64 blocks" in verdict


def test_timing_here_without_a_gpu_is_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> None:
        raise GpuUnavailable("no GPU is here")

    monkeypatch.setattr("tinyserve_viz.kernels.cuda_backend.gpu", none)
    assert main(["claims", str(QUICKSTART), "--bench", "here", "--quiet"]) == 3
    error = capsys.readouterr().err
    assert "claims --bench here times kernels on a GPU" in error
    assert error.count("\n") == 1


def test_captured_content_that_cannot_be_read_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "qkv.npz"
    bad.write_text("no arrays")
    assert main(["claims", "--only", "hit-rate", "--captured", str(bad)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"tinyserve-viz: {bad}: is no .npz that can be read")
    assert printed.err.count("\n") == 1
