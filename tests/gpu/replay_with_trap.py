"""`tinyserve-viz ARGUMENTS` with a kernel that traps put on the stream before the N-th graph; its own process, which
loses the device: python -m tests.gpu.replay_with_trap N ARGUMENTS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tinyserve_viz.cli.main import main
from tinyserve_viz.kernels.build import compile_file
from tinyserve_viz.kernels.cuda_backend import gpu
from tinyserve_viz.kernels.cuda_device import CudaDevice


class TrapDevice(CudaDevice):
    """The GPU until its N-th graph."""

    left = 0

    def replay(self, graph: Any) -> None:
        TrapDevice.left -= 1
        if not TrapDevice.left:
            driver = self._gpu.driver
            cubin = compile_file(Path(__file__).with_name("trap.cu"), self.arch).cubin
            module = self._gpu._modules["trap"] = driver.module_from_file(cubin)  # goes the way of the others
            function = module.get_function("trap")
            function.prepare("")
            function.prepared_async_call((1, 1, 1), (1, 1, 1), self._stream_object)
        super().replay(graph)


if __name__ == "__main__":
    from tinyserve_viz.kernels import cuda_device

    TrapDevice.left = int(sys.argv[1])
    cuda_device.CudaDevice = TrapDevice  # type: ignore[misc]
    gpu()
    sys.exit(main(sys.argv[2:]))
