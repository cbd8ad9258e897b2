"""Charts as data: each module makes one kind of chart from a recording (or a bench file); `report` draws them."""

from __future__ import annotations

from types import ModuleType

from tinyserve_viz.analysis.charts import (
    fragmentation,
    hit_rate,
    kernel_share,
    kernel_steps,
    kernel_time,
    latency,
    memory,
    misses,
    occupancy,
    pressure,
    queue,
    roofline,
    selection,
    speed_up,
    timeline,
)

CHARTS: tuple[ModuleType, ...] = (
    timeline,
    memory,
    fragmentation,
    queue,
    pressure,
    hit_rate,
    misses,
    latency,
    kernel_time,
    kernel_share,
    kernel_steps,
    selection,
)
"""Of a recording: each has `KIND`, `SUMMARY` and `draw(RunSource) -> Chart`."""

BENCH_CHARTS: tuple[ModuleType, ...] = (roofline, speed_up)
"""Of a bench file: the same with `draw(BenchSource)`."""

STREAM_CHARTS: tuple[ModuleType, ...] = (occupancy,)
"""Of a recorded KV-event stream: the same with `draw(StreamSource)`."""
