"""Whole replays on the GPU: NumPy's digest, nothing different under verification, one digest however often."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.errors import OutOfDeviceMemory
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.kernels.cuda_backend import gpu
from tinyserve_viz.kernels.cuda_device import CudaDevice
from tinyserve_viz.kernels.cuda_session import CudaSession
from tinyserve_viz.trace import read_trace

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

# Digests of the replays on NumPy: replay TRACE --limit N --kernels decisions --backend numpy.
EXPECTED: dict[str, Any] = json.loads((Path(__file__).parent / "expected_digests.json").read_text(encoding="utf-8"))
REAL = {
    "azure": ("azure_llm_2023_conv.csv", 500),
    "sharegpt": ("sharegpt_llama3.1-8b_rows001-200.jsonl", 500),
    "mooncake": ("mooncake_conversation.jsonl", 20),
}


def summary_of(path: Path, limit: int | None = None, **chosen: Any) -> dict[str, Any]:
    trace = read_trace(path, limit=limit) if limit else read_trace(path)
    return run_replay(prepare(trace, Settings(backend="cuda", kernels="all", **chosen)))


def digest_of(name: str, **chosen: Any) -> str:
    return str(summary_of(data_folder("traces") / f"{name}.json", **{"verify": "off", **chosen})["digest"])


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in REAL])
def test_a_shipped_trace_has_numpys_digest_and_every_call_gives_what_the_reference_gives(name: str) -> None:
    summary = summary_of(data_folder("traces") / f"{name}.json", verify="sample" if name == "long" else "every")
    assert summary["digest"] == EXPECTED[name]["digest"]
    assert summary["invariants"]["violations"] == 0, summary["invariants"]["first_violations"]
    assert summary["verify"]["calls"] > 0
    assert summary["verify"]["mismatches"] == 0
    assert {kernel["provenance"] for kernel in summary["kernels"]} == {"measured"}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_real_trace_has_numpys_digest(name: str) -> None:
    folder = os.environ.get("TINYSERVE_TRACES")
    if not folder:
        pytest.skip("TINYSERVE_TRACES names no folder with the real traces")
    file, limit = REAL[name]
    summary = summary_of(Path(folder, file), limit, verify="sample", attention="query-aware", quality="off")
    assert summary["digest"] == EXPECTED[name]["digest"]
    assert summary["invariants"]["violations"] == 0, summary["invariants"]["first_violations"]
    assert summary["verify"]["mismatches"] == 0


def test_twenty_replays_have_one_digest() -> None:
    assert {digest_of("quickstart") for _ in range(20)} == {EXPECTED["quickstart"]["digest"]}


def test_timing_again_on_copies_changes_no_decision() -> None:
    assert digest_of("quickstart", time_repeat=3) == EXPECTED["quickstart"]["digest"]


def test_a_race_and_a_measured_clock_have_no_digest_and_say_why() -> None:
    quickstart = data_folder("traces") / "quickstart.json"
    race = summary_of(quickstart, alloc="cas")
    assert (race["digest"], race["digest_note"]) == (None, "who gets which block under --alloc cas is a race")
    assert race["invariants"]["violations"] == 0
    clock = summary_of(quickstart, attention="flash", verify="off", engine={"clock": "measured"})
    assert (clock["digest"], clock["digest_note"]) == (None, "the clock is measured, so no two replays agree")
    # The last request arrives at 3.3 s and takes 30 more steps: 20 ms each by the model's clock (3.929 s at the end).
    assert 3.3 < clock["virtual_time_s"] < 3.4


def test_a_pool_that_does_not_fit_is_refused_with_the_size_that_would() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"^the pool of 60,000,000 blocks needs [\d,]+ MiB .*--num-blocks \d+ "):
        prepare(
            read_trace(data_folder("traces") / "quickstart.json"),
            Settings(backend="cuda", kernels="all", engine={"num_blocks": 60_000_000}),
        )


def test_launches_behind_the_gate_run_back_to_back() -> None:
    """Ten calls of some 3 µs each: with the host between them their times would add up to 10 launches of 7 µs."""
    session = CudaSession(CudaDevice(gpu()))
    try:
        query = session.hold(np.ones((64, 8, 64), np.float16))
        for _ in range(2):  # the first round loads the kernel
            for _ in range(10):
                session.call("query_analysis", {"query": query}, 0, mode="energy", scale=1.0)
            times = [done.us for done in session.end_step()]
        assert sorted(times)[5] < 6
    finally:
        session.close()
