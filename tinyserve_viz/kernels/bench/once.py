"""Launch each row of the bench once, for a profiler that watches: python -m tinyserve_viz.kernels.bench.once KERNEL ….

The profiler is switched on around that launch alone. One JSON line a row says what was launched, in order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from tinyserve_viz.kernels.bench.device import Device
from tinyserve_viz.kernels.bench.run import FAMILIES, inputs_that_fit
from tinyserve_viz.kernels.bench.work import Bench, checked, fastest
from tinyserve_viz.kernels.cuda_backend import gpu


def main(kernels: Sequence[str], grid: str = "quick", shape: str = "") -> None:
    """Check each row whose shape has `shape` in it, find its fastest form, and launch that once for the profiler."""
    found = gpu()
    with found.current() as driver:
        device = Device(found)
        bench = Bench(device, grid, frozenset(kernels), elements=inputs_that_fit(device))
        for work in (work for family in FAMILIES for work in family(bench) if shape in work.shape):
            for variant in work.variants.values():
                checked(device, work, variant)
            name = fastest(device, work)
            for target, source in work.restores[0] if work.restores else ():
                device.copy(target, source)
            driver.Context.synchronize()
            driver.start_profiler()
            for call in work.variants[name][0]:
                call.launch()
            driver.Context.synchronize()
            driver.stop_profiler()
            launches = [entry for call in work.variants[name][0] for entry in call.entries]
            row = {"op": work.op, "impl": work.impl, "shape": work.shape, "form": name, "launches": launches}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    grid, shape, *kernels = sys.argv[1:]
    main(kernels, grid, shape)
