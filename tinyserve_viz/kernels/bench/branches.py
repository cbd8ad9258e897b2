"""A second branch of a CUDA graph: calls on a stream of their own, forked from the row's stream and joined again.

Fork and join stand among the calls of a row. While a graph is captured they become edges of it and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyserve_viz.kernels.bench.device import Device, DeviceArray
from tinyserve_viz.kernels.bench.work import Call


@dataclass(frozen=True, slots=True, eq=False)
class _Edge:
    """What orders streams and runs nothing."""

    kernel: str
    status: DeviceArray
    order: Callable[[Any], None]

    @property
    def arrays(self) -> Mapping[str, DeviceArray]:
        """None."""
        return {}

    @property
    def entries(self) -> list[str]:
        """None."""
        return []

    def launch(self, stream: Any = None) -> None:
        """Let one stream wait for what is on the other by now."""
        self.order(stream)


@dataclass(frozen=True, slots=True, eq=False)
class _Aside:
    """A call that goes on the side's stream."""

    call: Call
    stream: Any

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.call.kernel

    @property
    def arrays(self) -> Mapping[str, DeviceArray]:
        """What it works on and writes."""
        return self.call.arrays

    @property
    def status(self) -> DeviceArray:
        """Its status word."""
        return self.call.status

    @property
    def entries(self) -> list[str]:
        """Kernels that it launches, in order."""
        return self.call.entries

    def launch(self, _stream: Any = None) -> None:
        """Put it on the side's stream."""
        self.call.launch(self.stream)


class Side:
    """One side branch. It may be forked and joined several times in a row's calls."""

    def __init__(self, device: Device) -> None:
        self._driver, self._stream = device.driver, device.driver.Stream()
        self._status = device.empty((1,), np.int32, 0)

    def on(self, call: Call) -> Call:
        """The call, on this branch."""
        return _Aside(call, self._stream)

    def fork(self) -> Call:
        """From here on the branch waits for what came before on the row's stream."""
        event = self._driver.Event()
        return _Edge("fork", self._status, lambda stream: _wait(self._stream, stream, event))

    def after(self, other: Side) -> Call:
        """From here on the branch waits for what came before on the other one."""
        event = self._driver.Event()
        return _Edge("after", self._status, lambda _stream: _wait(self._stream, other._stream, event))

    def join(self) -> Call:
        """From here on the row's stream waits for the branch."""
        event = self._driver.Event()
        return _Edge("join", self._status, lambda stream: _wait(stream, self._stream, event))


def _wait(waiting: Any, ahead: Any, event: Any) -> None:
    event.record(ahead)
    if waiting is not None:  # the default stream waits for all others by itself
        waiting.wait_for_event(event)
