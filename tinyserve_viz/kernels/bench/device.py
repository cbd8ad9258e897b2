"""Arrays that live on the GPU and calls on them, ready to launch again and again. PyCUDA only through cuda_backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.cuda_backend import Gpu, Plan, arguments_of, scratch_axes
from tinyserve_viz.kernels.definition import Status

_POISON = 0x7F


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """Shape, dtype and address of an array of the device; `owner` keeps its memory."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pointer: int
    owner: Any = field(repr=False, default=None)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def part(self, index: int) -> DeviceArray:
        """array[index]."""
        step = self.nbytes // max(1, self.shape[0])
        return DeviceArray(self.shape[1:], self.dtype, self.pointer + index * step, self.owner)

    def of_one_layer(self) -> DeviceArray:
        """array[None]: a pool as the only layer."""
        return DeviceArray((1, *self.shape), self.dtype, self.pointer, self.owner)


class Device:
    """Memory of the GPU. Its context must be current: use it inside `gpu.current()`."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.driver = gpu, gpu.driver
        attribute = self.driver.device_attribute
        device = self.driver.Context.get_device()
        self.num_sms: int = device.get_attribute(attribute.MULTIPROCESSOR_COUNT)
        self.l2_bytes: int = device.get_attribute(attribute.L2_CACHE_SIZE)

    def free_bytes(self) -> int:
        """Memory that is free now."""
        free: int = self.driver.mem_get_info()[0]
        return free

    def empty(self, shape: Sequence[int], dtype: Any, byte: int = _POISON) -> DeviceArray:
        """A new array with `byte` everywhere."""
        kind = np.dtype(dtype)
        size = max(16, int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        memory = self.driver.mem_alloc(size)
        self.driver.memset_d8(memory, byte, size)
        return DeviceArray(tuple(shape), kind, int(memory), memory)

    def put(self, array: NDArray[Any]) -> DeviceArray:
        """A copy of a host array."""
        held = self.empty(array.shape, array.dtype)
        if array.nbytes:
            self.driver.memcpy_htod(held.pointer, np.ascontiguousarray(array))
        return held

    def read(self, held: DeviceArray) -> NDArray[Any]:
        """A copy on the host."""
        found = np.empty(held.shape, held.dtype)
        if found.nbytes:
            self.driver.memcpy_dtoh(found, held.pointer)
        return found

    def copy(self, target: DeviceArray, source: DeviceArray, stream: Any = None) -> None:
        """Copy all of `source`, on the stream if one is given."""
        if stream is None:
            self.driver.memcpy_dtod(target.pointer, source.pointer, source.nbytes)
        else:
            self.driver.memcpy_dtod_async(target.pointer, source.pointer, source.nbytes, stream)


class Noise:
    """fp16 normals on the device that repeat with a prime period, so that the host knows every element.

    The period is no multiple of any row or block, so no two blocks of a pool are alike, and every row can be made again
    on the host (`rows`) while the array itself may be larger than the host's memory.
    """

    PERIOD = 4_194_301

    def __init__(self, device: Device, count: int, seed: int) -> None:
        self.count = count
        self._driver = device.driver
        self._tile = np.random.default_rng(seed).standard_normal(self.PERIOD, np.float32).astype(np.float16)
        self._array = device.empty((count,), np.float16)
        self.renew()

    def renew(self) -> None:
        """Put every element there (again)."""
        have = min(self.count, self.PERIOD)
        self._driver.memcpy_htod(self._array.pointer, self._tile[:have])
        while have < self.count:  # what is there is a whole number of periods
            more = min(have, self.count - have)
            self._driver.memcpy_dtod(self._array.pointer + 2 * have, self._array.pointer, 2 * more)
            have += more

    def view(self, shape: Sequence[int], at: int = 0) -> DeviceArray:
        """The elements from `at` on as an array of this shape.

        Raises:
            KernelError: there are not enough of them.
        """
        if (wanted := at + int(np.prod(shape, dtype=np.int64))) > self.count:
            raise KernelError(f"{wanted >> 19} MiB of inputs are wanted, {self.count >> 19} MiB fit beside the others")
        return DeviceArray(tuple(shape), np.dtype(np.float16), self._array.pointer + 2 * at, self._array.owner)

    def rows(self, starts: NDArray[np.int64], width: int) -> NDArray[np.float16]:
        """Elements [start, start + width) of the array for each start: [len(starts)][width]."""
        wrapped = np.concatenate([self._tile, self._tile[:width]])
        found: NDArray[np.float16] = np.lib.stride_tricks.sliding_window_view(wrapped, width)[starts % self.PERIOD]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class DeviceCall:
    """One kernel call on device arrays, ready to launch; `arrays` holds what it was given and what it writes."""

    kernel: str
    plan: Plan
    arguments: tuple[Any, ...]
    arrays: Mapping[str, DeviceArray]
    status: DeviceArray

    @property
    def entries(self) -> list[str]:
        """Kernels that it launches, in order."""
        return [entry for entry, *_ in self.plan.launches]

    def launch(self, stream: Any = None) -> None:
        """Put its launches on the stream."""
        self.plan.launch(self.arguments, stream)


def prepare(device: Device, name: str, arrays: Mapping[str, DeviceArray | NDArray[Any]], **scalars: Any) -> DeviceCall:
    """A call with the definition's defaults. Host arrays are copied in; outputs (poisoned) and scratch (zero) are made.

    Axes that only outputs have may stand among the scalars.
    """
    kernel = kernel_named(name)
    held = {key: value if isinstance(value, DeviceArray) else device.put(value) for key, value in arrays.items()}
    axes = dict.fromkeys(kernel.axes, 0)
    for arg in kernel.args:
        if arg.name in held:
            axes |= {axis: size for axis, size in zip(arg.axes, held[arg.name].shape, strict=True) if axis in axes}
    axes |= {axis: scalars.pop(axis) for axis in kernel.axes if axis in scalars}
    axes = scratch_axes(kernel, axes)
    for arg in kernel.args:
        shape = [int(axis) if axis.isdigit() else axes[axis] for axis in arg.axes]
        if arg.name in held:
            assert list(held[arg.name].shape) == shape, f"{name}: {arg.name} is {held[arg.name].shape}, not {shape}"
        elif (arg.role == "out" and not arg.optional) or (arg.role == "scratch" and all(shape)):
            held[arg.name] = device.empty(shape, arg.dtype, 0 if arg.role == "scratch" else _POISON)
    values = {scalar.name: scalars.pop(scalar.name, scalar.default) for scalar in kernel.scalars}
    assert not scalars, f"{name} has no {', '.join(scalars)}"
    for scalar in kernel.scalars:
        if isinstance(values[scalar.name], str):
            values[scalar.name] = scalar.choices.index(values[scalar.name])
    status = device.empty((1,), np.int32, 0)
    plan = device.gpu.plan(kernel, axes, {f"has_{arg.name}": arg.name in held for arg in kernel.args})
    pointers = {key: value.pointer for key, value in held.items()}
    return DeviceCall(name, plan, arguments_of(kernel, pointers, axes, values, status.pointer), held, status)


def status_of(device: Device, word: DeviceArray) -> Status:
    """A status word so far."""
    return Status(int(device.read(word)[0]))
