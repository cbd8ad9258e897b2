"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine must not fail a test: examples have no time limit of their own. In CI they are the same on every run,
# so that a red run is about the change; on a developer's machine they are drawn afresh, and go on looking.
settings.register_profile("no-deadline", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "no-deadline")


@pytest.fixture(scope="session")
def real_traces() -> Path:
    """The folder of real traces that the environment names; what needs them is skipped where it is unset."""
    folder = os.environ.get("TINYSERVE_TRACES")
    if not folder:
        pytest.skip("TINYSERVE_TRACES is unset: it names the folder of real traces (README, References)")
    return Path(folder)


@pytest.fixture(scope="session")
def quickstart_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of traces/quickstart.json with all kernels on the NumPy reference; for reading only."""
    from tinyserve_viz.cli.session import Settings, prepare, run_replay
    from tinyserve_viz.core.resources import data_folder
    from tinyserve_viz.trace import read_trace

    path = tmp_path_factory.mktemp("recordings") / "quickstart.rec"
    run_replay(prepare(read_trace(str(data_folder("traces") / "quickstart.json")), Settings(kernels="all")), path)
    return path
