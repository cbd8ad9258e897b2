"""The whole bench on a GPU made of host memory: every kernel has a row, every row is checked before it is timed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.bench.host_gpu import Driver, HostGpu, HostGraph
from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.bench import (
    attention,
    comparisons,
    grid,
    movement,
    pages,
    run,
    selection,
    step,
    timing,
    upkeep,
)
from tinyserve_viz.kernels.bench.row import line

SMALL = grid.Model("small", 4, 2, 32)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostGpu:
    """Shapes that NumPy does at once; everything else is as on a device."""
    monkeypatch.setattr(timing, "TimedGraph", HostGraph)
    monkeypatch.setattr(timing, "_GRAPH_US", 1.0)
    told = {"clocks": "SM 1980 MHz", "driver": "580.95"}
    monkeypatch.setattr(timing, "_told_by_driver", lambda *_: told)
    monkeypatch.setattr(run, "inputs_that_fit", lambda _device: 1 << 17)
    monkeypatch.setattr(attention, "MODELS", (SMALL,))
    monkeypatch.setattr(attention, "LLAMA3_8B", SMALL)
    shapes = [("small B=3", [40, 1, 33]), ("small B=64 L=1024", [1024] * 64), ("small B=2 L=64", [64, 64])]
    monkeypatch.setattr(attention, "decode_shapes", lambda model, _grid: shapes if model is SMALL else [])
    monkeypatch.setattr(attention, "WAVES", (1, 2))
    monkeypatch.setattr(attention, "READABLE", [64, 64])
    monkeypatch.setattr(selection, "sparse_shapes", lambda _grid: [(SMALL, 2, 256)])
    monkeypatch.setattr(selection, "KEPT", 4)
    for module in (selection, step):
        monkeypatch.setattr(module, "KEPT_TOKENS", 64)
        monkeypatch.setattr(module, "LLAMA3_8B", SMALL)
    monkeypatch.setattr(step, "BATCH", 2)
    monkeypatch.setattr(step, "LENGTH", 256)
    monkeypatch.setattr(selection, "topk_shapes", lambda _grid: [(3, 100, 7)])
    monkeypatch.setattr(selection, "analysis_rows", lambda _grid: (5,))
    monkeypatch.setattr(selection, "MASS", (2, 96))
    monkeypatch.setattr(movement, "write_shapes", lambda _grid: [(SMALL, 3, 1, 20), (SMALL, 2, 40, 40)])
    monkeypatch.setattr(movement, "copy_shapes", lambda _grid: [(SMALL, 6)])
    monkeypatch.setattr(pages, "SHAPES", ((2, 128),))
    for module in (upkeep, comparisons, pages):
        monkeypatch.setattr(module, "LLAMA3_8B", SMALL)
    monkeypatch.setattr(comparisons, "LAYOUT", [64, 64])
    monkeypatch.setattr(comparisons, "SKEWED", [200, 8, 8])
    monkeypatch.setattr(comparisons, "COPIES", (3,))
    monkeypatch.setattr(upkeep, "POOL", 4096)
    monkeypatch.setattr(upkeep, "RACE", (20, 512))
    monkeypatch.setattr(upkeep, "FORKS", (4, 8))
    monkeypatch.setattr(upkeep, "EDITS", 100)
    monkeypatch.setattr(upkeep, "CONTENT", (60, 3))
    monkeypatch.setattr(upkeep, "request_counts", lambda _grid: (1, 200))
    monkeypatch.setattr(upkeep, "pool_sizes", lambda _grid: (512,))
    monkeypatch.setattr(upkeep, "level_sizes", lambda _grid: (512, 1024))
    return HostGpu()


def bench(host: HostGpu, *kernels: str, **options: Any) -> dict[str, Any]:
    return run.run_bench(host, "quick", kernels, **options)  # type: ignore[arg-type]


def test_every_kernel_has_a_row_and_every_row_is_checked(host: HostGpu) -> None:
    found = json.loads(json.dumps(bench(host)))
    assert [row for row in found["rows"] if "error" in row] == []
    assert set(host.launched) == {kernel.name for kernel in KERNELS}
    assert all(row["checked"] and row["us"] > 0 for row in found["rows"])
    ops = {row["op"] for row in found["rows"]}
    assert ops == {
        "decode", "page-score", "sparse-decode", "top-k", "query-analysis", "block-mass", "allocation", "release",
        "fork", "bookkeeping", "adaptive", "compaction-plan", "fragmentation", "work-list", "content", "step",
        "decode-layout", "decode-lists", "copy-apart", "kv-write-apart", "page-size",
        "kv-write", "block-copy", "compaction-move",
    }  # fmt: skip
    assert found["left_out"] == ["decode small B=64 L=1024: takes 4096 blocks, 128 fit in the memory"]
    assert {key: found[key] for key in ("schema", "kind", "device", "arch", "clocks", "grid", "provenance")} == {
        "schema": 1, "kind": "bench", "device": "host memory", "arch": "sm_00", "clocks": "SM 1980 MHz",
        "grid": "quick", "provenance": "measured",
    }  # fmt: skip
    copies = [row for row in found["rows"] if row["op"] == "block-copy"]
    # in and out, 6 blocks: K and V of 16 tokens with 2 heads of 32 channels in fp16, and a box of two such rows
    assert [(row["bytes"], row["sets"]) for row in copies] == [(2 * 6 * (2 * 16 * 128 + 2 * 128), 2)]
    moves = [row["bytes"] for row in found["rows"] if row["op"] == "compaction-move"]
    assert moves == [copies[0]["bytes"] + 6 * 2 * 128]  # the box that is left is emptied


def test_a_call_that_changes_its_state_is_timed_without_the_putting_back(host: HostGpu) -> None:
    rows = bench(host, "block_deallocation")["rows"]
    assert {row["how"] for row in rows} == {"graph difference"}
    # a launch of the stand-in takes 5 µs, each of the two copies before it 1 µs
    assert [round(row["us"], 3) for row in rows] == [5.0] * len(rows)


def test_only_the_kernels_asked_for_run(host: HostGpu) -> None:
    rows = bench(host, "fused_block_copy", "query_analysis")["rows"]
    assert [row["impl"] for row in rows] == [
        "query_analysis", "fused_block_copy", "one launch", "a launch each", "three memcpys each"
    ]  # fmt: skip
    assert set(host.launched) == {"fused_block_copy", "query_analysis"}


SPOILED = {
    "flash_paged_attention": "output",
    "paged_attention": "lse",
    "query_aware_paged_attention": "output",
    "block_scoring": "block_score",
    "cache_selection": "selected",
    "query_analysis": "complexity",
    "block_mass": "block_mass",
    "block_allocation": "allocated",
    "advanced_block_allocation": "runner_up",
    "block_deallocation": "freed",
    "block_fork": "ref",
    "block_bookkeeping": "hits",
    "adaptive_cache_management": "decision",
    "intelligent_memory_compaction": "moves",
    "fragmentation_analysis": "metrics",
    "dynamic_workload_balancing": "segments",
    "content_generation": "kv",
    "fused_reshape_and_block_write": "value_cache",
    "fused_block_copy": "box",
    "memory_compaction": "ref",
}


@pytest.mark.parametrize("kernel", [kernel.name for kernel in KERNELS])
def test_a_kernel_that_computes_something_else_is_reported_and_not_timed(kernel: str, host: HostGpu) -> None:
    def spoil(name: str, arrays: Mapping[str, Any]) -> None:
        if name == kernel:
            array = arrays[SPOILED[kernel]]
            array += np.ones(1, array.dtype)

    host.after = spoil
    own = "query_aware" if kernel == "query_aware_paged_attention" else kernel
    rows = [row for row in bench(host, kernel)["rows"] if row["impl"].startswith(own)]
    assert rows
    for row in rows:
        assert "us" not in row
        assert row["error"].startswith((SPOILED[kernel], "a block", "block_table", f"{kernel}: status is")), row
        assert "NOT TIMED" in line(row)


def test_a_status_that_is_not_0_is_an_error(host: HostGpu) -> None:
    def spoil(_name: str, arrays: Mapping[str, Any]) -> None:
        arrays["requirement"][:] = 0

    host.after = spoil
    assert bench(host, "query_analysis")["rows"][0]["error"].startswith("requirement")


def test_a_budget_of_no_seconds_leaves_everything_out_and_says_so(host: HostGpu) -> None:
    found = bench(host, budget_s=0)
    assert found["rows"] == []
    assert len(found["left_out"]) == len(run.FAMILIES)
    assert found["left_out"][0] == "decode: time budget of 0 s reached"


def test_the_same_seed_gives_the_same_inputs_and_another_does_not(host: HostGpu) -> None:
    def errors(seed: int) -> list[float]:
        return [row["err"] for row in bench(host, "flash_paged_attention", seed=seed)["rows"]]

    assert errors(1) == errors(1)
    assert errors(1) != errors(2)


def test_inputs_take_half_of_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device = run.Device(HostGpu())  # type: ignore[arg-type]
    for free, elements in ((80 << 30, 1 << 31), (16 << 30, 1 << 29), (1 << 30, 1 << 25)):
        monkeypatch.setattr(Driver, "free", free)
        assert run.inputs_that_fit(device) == elements
        assert 2 * 2 * elements * 1.125 < free / 2


def test_clocks_and_driver_are_what_nvidia_smi_says_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worked = []

    def told(script: str | None) -> dict[str, str]:
        if script is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return timing._told_by_driver(lambda: worked.append(1), lambda: time.sleep(0.002))

    nothing = {"clocks": "", "driver": ""}
    assert told(None) == nothing
    assert told("echo 580.95, 1980, 2619, 47") == {
        "clocks": "SM 1980 MHz, memory 2619 MHz, 47 °C under copies",
        "driver": "580.95",
    }
    assert worked
    assert told("echo 580.95, '[N/A]', '[N/A]', 47") == nothing
    assert told("exit 9") == nothing


def test_rows_that_the_memory_does_not_hold_are_left_out_and_named(
    host: HostGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "inputs_that_fit", lambda _device: 1 << 12)  # four blocks
    found = bench(host)
    assert [row for row in found["rows"] if "error" in row] == []
    names = {reason.split(":")[0].split(",")[0].split(" small")[0].split(" B=")[0] for reason in found["left_out"]}
    assert names == {
        "decode", "sparse-decode", "block-mass", "step", "kv-write", "copies or moves", "copy-apart",
        "query-analysis tokens=5", "page-size",
    }  # fmt: skip
    assert "sparse-decode small B=2 L=256: takes 32 blocks, 4 fit in the memory" in found["left_out"]


def test_a_family_that_runs_out_of_memory_is_left_out_and_the_others_go_on(host: HostGpu) -> None:
    def full(name: str, _arrays: Mapping[str, Any]) -> None:
        if name == "block_fork":
            raise Driver.MemoryError("cuMemAlloc failed: out of memory")

    host.after = full
    found = bench(host, "block_fork", "query_analysis", "content_generation")
    assert [row["impl"] for row in found["rows"]] == ["query_analysis", "content_generation"]
    assert found["left_out"] == ["the rest of forks: out of GPU memory (cuMemAlloc failed: out of memory)"]
