"""A kernel call of a session, bound once for its shapes and then only given addresses."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.binding import bind_shapes
from tinyserve_viz.kernels.cuda_arena import num_bytes
from tinyserve_viz.kernels.cuda_backend import Plan, arguments_of, scratch_axes
from tinyserve_viz.kernels.definition import KernelDef
from tinyserve_viz.kernels.device import Device
from tinyserve_viz.kernels.session import BytesOf, Held, Sizes

_MOST_BOUND = 4096
New = Callable[[tuple[int, ...], str], Held]
"""Makes an array for a kernel to fill."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bound:
    """A call without its addresses: what it makes, what it writes, its workspace, and its arguments behind pointers."""

    kernel: KernelDef
    plan: Plan
    names: tuple[str, ...]
    made: tuple[tuple[str, tuple[int, ...], str], ...]
    written: tuple[str, ...]
    scratch: dict[str, int]
    tail: tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Launch:
    """A call that is ready to run; `shapes` are those of the arrays that it changes."""

    bound: _Bound
    arguments: tuple[Any, ...]
    pointers: dict[str, int]
    num_bytes: int | BytesOf
    shapes: dict[str, tuple[int, ...]]

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.bound.kernel.name

    def put(self, device: Device) -> None:
        """Put it on the stream."""
        device.launch(self.bound.plan, self.arguments)

    def bytes_of(self, sizes: Sizes) -> int:
        """Useful bytes of a run with these sizes."""
        return self.num_bytes if isinstance(self.num_bytes, int) else self.num_bytes(sizes)

    def median_us(
        self, device: Device, times: int, events: tuple[Any, Any], closed: Callable[[], Callable[[], None]]
    ) -> float:
        """Median time of `times` runs on copies of the arrays that it changes; `closed` holds the stream back and
        returns what lets it go."""
        copies = {}
        for name, shape in self.shapes.items():
            size = num_bytes(shape, self.bound.kernel.arg(name).dtype)
            copies[name] = (device.alloc(size), size)
        pointers = self.pointers | {name: address for name, (address, _) in copies.items()}
        addresses = tuple(pointers.get(name, 0) for name in self.bound.names)
        arguments = (*addresses, *self.arguments[len(addresses) :])
        found = []
        start, end = events
        for _ in range(times):
            for name, (address, size) in copies.items():
                device.copy(address, self.pointers[name], size)
            device.synchronize()
            let_go = closed()
            device.record(start)
            device.launch(self.bound.plan, arguments)
            device.record(end)
            let_go()
            device.synchronize()
            found.append(device.elapsed_us(start, end))
        for address, _ in copies.values():
            device.free(address)
        return float(np.median(found))


class Binder:
    """Binds calls, and keeps what it bound by kernel, shapes and scalars.

    `workspace(size)` gives memory that is zero and stays; kernels leave zero what must be zero, for the same shape.
    """

    def __init__(self, device: Device, workspace: Callable[[int], int]) -> None:
        self._device, self._workspace = device, workspace
        self._bound: dict[Hashable, _Bound] = {}
        self._scratch: dict[Hashable, int] = {}
        self.has_new = False  # something bound has never run; whoever runs it says so by setting this back

    def bind(
        self,
        name: str,
        given: Mapping[str, Held],
        scalars: Mapping[str, Any],
        num_bytes: int | BytesOf,
        new: New,
        status: int,
    ) -> tuple[Launch, dict[str, Held]]:
        """Bind a call to addresses; what it writes and nobody gave is made by `new`; its word goes to `status`."""
        key = (name, tuple([(arg, held.shape) for arg, held in given.items()]), tuple(scalars.items()))
        known = self._bound.get(key)
        if known is None:
            if len(self._bound) > _MOST_BOUND:  # numbers of requests come and go
                self._bound.clear()
            known = self._bound[key] = self._of_shapes(kernel_named(name), given, scalars)
            self.has_new = True
        outputs: dict[str, Held] = {}
        for arg, shape, dtype in known.made:
            if arg not in given:
                outputs[arg] = new(shape, dtype)
        for arg in known.written:
            if arg in given:
                outputs[arg] = given[arg]
        pointers = known.scratch | {arg: held.data for arg, held in given.items()}
        pointers |= {arg: held.data for arg, held in outputs.items()}
        arguments = (*[pointers.get(arg, 0) for arg in known.names], *known.tail, status)
        shapes = {arg: given[arg].shape for arg in known.written if arg in given}
        return Launch(known, arguments, pointers, num_bytes, shapes), outputs

    def _of_shapes(self, kernel: KernelDef, given: Mapping[str, Held], scalars: Mapping[str, Any]) -> _Bound:
        axes, values = bind_shapes(kernel, {arg: (held.shape, held.dtype) for arg, held in given.items()}, scalars)
        axes = scratch_axes(kernel, axes)
        has = {f"has_{arg.name}": arg.name in given or arg.role == "out" for arg in kernel.args}
        scratch = {}
        for arg in kernel.args:
            if arg.role == "scratch" and all(shape := _shape(arg.axes, axes)):
                key = (kernel.name, arg.name, shape)
                if key not in self._scratch:
                    self._scratch[key] = self._workspace(num_bytes(shape, arg.dtype))
                scratch[arg.name] = self._scratch[key]
        return _Bound(
            kernel=kernel,
            plan=self._device.plan(kernel, axes, has),
            names=tuple(arg.name for arg in kernel.args),
            made=tuple((arg.name, _shape(arg.axes, axes), arg.dtype) for arg in kernel.args if arg.role == "out"),
            written=tuple(arg.name for arg in kernel.args if arg.role in ("out", "inout")),
            scratch=scratch,
            tail=arguments_of(kernel, {}, axes, values, 0)[len(kernel.args) : -1],
        )


def column_of(device: Device, held: Held, new: New) -> tuple[Held, Callable[[], None]]:
    """An array for held[:, 0], and what copies it there."""
    rows, columns = held.shape
    width = num_bytes((1,), held.dtype)
    column = new((rows,), held.dtype)
    return column, lambda: device.copy_column(column.data, held.data, columns * width, width, rows)


def _shape(axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in axes)
