"""A device on which everything takes no time: what is left of a replay step is the host's own work."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.kernels.memory_device import MemoryDevice
from tinyserve_viz.kernels.cuda_backend import Plan

_KEPT = 77  # blocks of every choice: 30 % of 4,096 tokens


class IdleDevice(MemoryDevice):
    """Nothing runs. Every result is 0, but the choices, which are the first 77 blocks."""

    def alloc(self, size: int) -> int:
        address = super().alloc(size)
        ctypes.memset(address, 0, size)
        return address

    def launch(self, plan: Plan, arguments: Sequence[Any]) -> None:
        kernel = plan.launches[0][1]
        if kernel.name == "cache_selection":
            axes = dict(zip(kernel.axes, arguments[len(kernel.args) :], strict=False))
            for arg, pointer in zip(kernel.args, arguments, strict=False):
                shape = [axes.get(axis, 1) for axis in arg.axes]
                if arg.name == "count":
                    self._array(pointer, shape, "int32")[:] = min(_KEPT, axes["max_selected"])
                elif arg.name == "selected":
                    at = np.arange(shape[-1])
                    self._array(pointer, shape, "int32")[:] = np.where(at < _KEPT, at, -1)

    def _check(self, address: int, size: int) -> None:
        """Nobody looks."""

    def _put(self, what: str, work: Callable[[], None]) -> None:
        """Only what comes back is copied, once."""
        if what == "download":
            work()

    def record(self, event: list[float], in_graph: bool = False) -> None:
        """No time passes."""

    def wait_for(self, event: list[float]) -> None:
        """It happened."""

    def elapsed_us(self, start: list[float], end: list[float]) -> float:
        return 1.0

    def synchronize(self) -> None:
        """Nothing is under way."""

    def replay(self, graph: Any) -> None:
        """Nothing runs."""
