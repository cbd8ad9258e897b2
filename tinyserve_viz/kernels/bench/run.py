"""A whole bench run: find the GPU, measure what a copy gives there, then row by row check and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tinyserve_viz.kernels.bench import attention, comparisons, movement, pages, selection, step, upkeep
from tinyserve_viz.kernels.bench.device import Device
from tinyserve_viz.kernels.bench.row import Facts, Row, bench_file
from tinyserve_viz.kernels.bench.timing import peaks
from tinyserve_viz.kernels.bench.work import Bench, Family, measure_all
from tinyserve_viz.kernels.cuda_backend import Gpu

# What overwrites the inputs' pools stands last.
FAMILIES: tuple[Family, ...] = (
    attention.decode,
    comparisons.layouts,
    comparisons.lists,
    selection.sparse,
    selection.top_k,
    selection.analysis,
    selection.mass,
    upkeep.allocation,
    upkeep.forks,
    upkeep.bookkeeping,
    upkeep.levels,
    upkeep.pools,
    upkeep.work_lists,
    upkeep.content,
    pages.page_sizes,
    step.step,
    movement.writes,
    comparisons.writes_apart,
    movement.copies,
    comparisons.copies_apart,
    movement.moves,
)


def run_bench(
    found: Gpu,
    grid: str,
    kernels: Sequence[str] = (),
    budget_s: float = float("inf"),
    seed: int = 0,
    report: Callable[[Row, Facts], None] | None = None,
) -> dict[str, Any]:
    """Time the grid's rows of the named kernels, or of all; the bench file. `report` sees each row as it is made."""
    with found.current() as driver:
        device = Device(found)
        best, told = peaks(device)
        version = driver.get_driver_version()
        runs = f"CUDA {version // 1000}.{version % 1000 // 10}"
        facts = Facts(
            device=found.name,
            arch=found.arch,
            driver=f"{told['driver']}, {runs}" if told["driver"] else runs,
            cuda=".".join(map(str, driver.get_version())),
            clocks=told["clocks"],
            l2_bytes=device.l2_bytes,
            grid=grid,
            seed=seed,
            peaks=best,
        )
        bench = Bench(device, grid, frozenset(kernels), seed, elements=inputs_that_fit(device))
        rows = []
        for row in measure_all(FAMILIES, bench, best["copy"], budget_s):
            rows.append(row)
            if report:
                report(row, facts)
        return bench_file(facts, rows, bench.left_out)


def inputs_that_fit(device: Device) -> int:
    """Elements of each of the pools K and V: 4 GiB, or less, so that all inputs take half of the free memory."""
    most = device.free_bytes() // 2 // 5  # two pools, boxes of an eighth, new rows, outputs
    elements = 1 << 31
    while 2 * elements > most:
        elements //= 2
    return elements
