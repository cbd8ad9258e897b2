"""Memory over time: where the blocks of the pool are, and how full those in use are."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series, thinned, thinning_note
from tinyserve_viz.analysis.charts.source import RunSource

KIND = "memory"
SUMMARY = "used, cached and free blocks over time; decode and physical utilization, waste"

TIME = Axis("simulated time", "s")


def pool_panel(source: RunSource) -> tuple[int, Panel]:
    """Used, cached and free blocks, stacked; and how many steps a point sums up."""
    (seconds, steps), slots = source.course, source.header.engine.block_size
    if source.header.engine.allocator == "paged":
        columns = [steps["used_blocks"], steps["cached_free_blocks"], steps["free_blocks"]]
        names, unit = ("used", "cached, unreferenced", "free"), "blocks"
        peak = int(steps["peak_blocks"].max(initial=0))
    else:
        reserved = steps["used_slots"]
        free = source.header.engine.num_blocks * slots - reserved
        columns = [steps["resident_tokens"], reserved - steps["resident_tokens"], free]
        names, unit = ("filled", "reserved, not filled", "free"), "token slots"
        peak = int(reserved.max(initial=0))
    width, (time, *values) = thinned(seconds, *columns)
    areas = tuple(series(names[i], "area", time, values[i], color) for i, color in enumerate((5, 1, 8)))
    return width, Panel(f"pool (peak use {peak:,} {unit})", TIME, Axis("pool", unit), areas)


def utilization_panel(source: RunSource) -> Panel:
    """Filled shares of what is reserved."""
    seconds, steps = source.course
    with np.errstate(divide="ignore", invalid="ignore"):
        decode = np.where(steps["decode_slots"] > 0, 100 * steps["decode_tokens"] / steps["decode_slots"], np.nan)
        physical = np.where(steps["used_slots"] > 0, 100 * steps["resident_tokens"] / steps["used_slots"], np.nan)
    _, (time, decode, physical) = thinned(seconds, decode, physical)
    lines = (
        series("decode utilization", "step", time, decode, 5),
        series("physical utilization", "step", time, physical, 6, dashed=True),
        series("waste = 100 − physical", "step", time, 100 - physical, 2),
    )
    return Panel("how full the reserved slots are", TIME, Axis("share of token slots", "%", limits=(0, 100)), lines)


def draw(source: RunSource) -> Chart:
    """The chart of a recording."""
    width, pool = pool_panel(source)
    caption = (*source.caption(), *thinning_note(width))
    return Chart(KIND, "KV-cache memory over time", (pool, utilization_panel(source)), caption)
