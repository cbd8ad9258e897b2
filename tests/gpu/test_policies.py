"""Every selection policy on a GPU: the same blocks at every step as on NumPy, so the same digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine import captures
from tests.engine.captures import two_requests
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core.config import SELECTIONS
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.trace import read_trace
from tinyserve_viz.trace.request import Trace

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]


def on_both(trace: Trace, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    made = [run_replay(prepare(trace, Settings(backend=backend, **settings))) for backend in ("cuda", "numpy")]
    return made[0], made[1]


@pytest.mark.parametrize("policy", SELECTIONS)
@pytest.mark.parametrize("heads", ["kv", "shared"])
def test_the_gpu_chooses_what_numpy_chooses_on_captured_content(policy: str, heads: str, tmp_path: Path) -> None:
    content = {"kind": "npz", "path": str(captures.write(tmp_path / "c.npz"))}
    engine = {"selection": policy, "selection_heads": heads}
    gpu, host = on_both(two_requests(), engine=engine, content=content, kernels="all")
    assert gpu["digest"] == host["digest"]
    assert gpu["invariants"]["violations"] == 0
    assert gpu["selection"]["bound"]["broken"] == 0
    for name in ("selection_recall", "temporal_reuse", "next_step_recall"):
        assert gpu["selection"]["hit_rates"][name] == host["selection"]["hit_rates"][name]  # from block_mass: exact
    assert gpu["selection"]["retained_mass"]["mean"] == pytest.approx(
        host["selection"]["retained_mass"]["mean"], abs=1e-3
    )


@pytest.mark.parametrize("policy", SELECTIONS)
def test_the_quickstart_has_one_digest_on_both(policy: str) -> None:
    trace = read_trace(data_folder("traces") / "quickstart.json")
    gpu, host = on_both(trace, engine={"selection": policy}, kernels="decisions")
    assert gpu["digest"] == host["digest"]
