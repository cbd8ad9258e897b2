"""The copy that a compaction's predicted time rests on where no GPU is."""

from __future__ import annotations

from tinyserve_viz.kernels.copy_bandwidth import host_copy_bandwidth


def test_the_hosts_copy_is_measured_once_and_named() -> None:
    found = host_copy_bandwidth()
    assert found["of"] == "host memory copy"
    assert 0.1 < found["gb_per_s"] < 10_000
    assert host_copy_bandwidth() is found
