"""The CUDA backend: the kernels of `cuda/` on one GPU, through PyCUDA. The only module that imports PyCUDA.

`run` takes host arrays like every backend: it copies them to the device, launches, and copies back what was written.
`Gpu` holds what lasts: the primary context, which other libraries in the process share, and the loaded kernels.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import GpuUnavailable, KernelError
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.core.toolkit import find_nvcc
from tinyserve_viz.kernels.backend import UnsupportedError
from tinyserve_viz.kernels.binding import Call, bind
from tinyserve_viz.kernels.build import compile_file
from tinyserve_viz.kernels.cuda_launch import STATIC_SHARED, Follower, LaunchRefusedError, followers
from tinyserve_viz.kernels.definition import KernelDef
from tinyserve_viz.kernels.guard import BAND, region

_FORMATS = {"int64": "q", "int32": "i", "float32": "f"}
_GRID_LIMITS = (2**31 - 1, 65_535, 65_535)
# Largest head_dim of a form: 8 channels for each of 32 lanes; 8 output channels for each of 128 threads.
_HEAD_DIMS = {"flash_paged_attention": 256, "query_aware_paged_attention": 256, "paged_attention": 1024}


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """One launch of a call and its time between two events on the device; under 20 µs the events blur it."""

    entry: str
    microseconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A call's launches in order: (entry, PyCUDA function, grid, threads, dynamic shared bytes).

    `followers` has the last of them once more where those may start before the launch before them has ended.
    """

    launches: tuple[tuple[str, Any, tuple[int, int, int], int, int], ...]
    followers: tuple[Follower, ...] = ()

    def launch(self, arguments: Sequence[Any], stream: Any = None) -> None:
        """Put every launch on the stream; `arguments` are those of `arguments_of`."""
        for _, function, grid, threads, shared in self.launches[: len(self.launches) - len(self.followers)]:
            function.prepared_async_call(grid, (threads, 1, 1), stream, *arguments, shared_size=shared)
        for follower in self.followers:
            follower.launch(arguments, 0 if stream is None else stream.handle)


class Gpu:
    """The first GPU: context, architecture, and the kernels loaded so far."""

    def __init__(self) -> None:
        """Take the primary context.

        Raises:
            GpuUnavailable: PyCUDA, the driver or the GPU is missing; the message says what mends it.
        """
        self.driver = _driver()
        try:
            self.driver.init()
            count = self.driver.Device.count()
        except self.driver.Error as error:
            raise GpuUnavailable(f"the NVIDIA driver finds no GPU ({error}); use --backend numpy") from error
        if not count:
            raise GpuUnavailable("no GPU is visible (CUDA_VISIBLE_DEVICES?); use --backend numpy")
        device = self.driver.Device(0)
        self.name: str = device.name()
        major, minor = device.compute_capability()
        self.arch = f"sm_{major}{minor}"
        attribute = self.driver.device_attribute
        self.num_sms: int = device.get_attribute(attribute.MULTIPROCESSOR_COUNT)
        self.most_shared: int = device.get_attribute(attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.followers = followers(major, self.driver.get_driver_version())
        self.early = True  # whether a call may start before the one before it has ended
        self.context = device.retain_primary_context()
        self.nvcc: Path | None = None  # the compiler to take; None: whichever is found
        self._functions: dict[tuple[str, str], Any] = {}
        self._modules: dict[str, Any] = {}
        self._cubins: dict[str, str] = {}

    @contextmanager
    def current(self) -> Iterator[Any]:
        """Make the context current in this thread for the block; gives PyCUDA's driver module."""
        self.context.push()
        try:
            yield self.driver
        finally:
            self.context.pop()

    def abandon(self, *objects: Any) -> None:
        """The context is lost: keep its PyCUDA objects, and these, for good. Nothing can be given back, and at the end
        of the process each of them would try and complain on stderr."""
        for one in (*objects, *self._functions.values(), *self._modules.values(), self.context):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))

    def function(self, kernel: KernelDef, entry: str) -> Any:
        """An entry point of the kernel's file, compiled if need be, with the definition's parameters prepared.

        Raises:
            GpuUnavailable: it must be compiled, and there is no compiler.
            KernelError: it does not compile.
        """
        if (kernel.name, entry) not in self._functions:
            if kernel.name not in self._modules:
                try:
                    nvcc = self.nvcc or find_nvcc()
                except KernelError as error:
                    raise GpuUnavailable(f"{error}; or use --backend numpy") from error
                cubin = compile_file(data_folder("cuda") / f"{kernel.name}.cu", self.arch, nvcc).cubin
                self._modules[kernel.name] = self.driver.module_from_file(cubin)
                self._cubins[kernel.name] = cubin
            function = self._modules[kernel.name].get_function(entry)
            function.prepare(_formats(kernel))
            self._functions[kernel.name, entry] = function
        return self._functions[kernel.name, entry]

    def plan(self, kernel: KernelDef, axes: Mapping[str, int], has: Mapping[str, bool]) -> Plan:
        """The launches of a call with these axes; `has` has has_NAME of each argument.

        Raises:
            UnsupportedError: the sizes are beyond the CUDA form.
        """
        limit = _HEAD_DIMS.get(kernel.name)
        if limit and axes["head_dim"] > limit:
            raise UnsupportedError(f"{kernel.name}: head_dim is {axes['head_dim']}, the CUDA form goes to {limit}")
        launch = kernel.launch
        device = {"num_sms": self.num_sms, "most_shared": self.most_shared}
        facts = {**axes, **has, **device}
        own = [(kernel.name, launch.grid(axes), launch.threads, launch.shared_bytes(axes))]
        if not launch.when(facts):
            own = []
        stages = [
            *((stage, "before") for stage in launch.before),
            *((stage, "after") for stage in launch.after),
        ]
        around: dict[str, list[tuple[str, tuple[int, int, int], int, int]]] = {"before": [], "after": []}
        for stage, side in stages:
            if stage.when(facts):
                entry = f"{kernel.name}_{stage.suffix}"
                around[side].append((entry, stage.grid({**axes, **device}), stage.threads, stage.shared_bytes(axes)))
        launches = []
        for entry, grid, threads, shared in [*around["before"], *own, *around["after"]]:
            if any(size > most for size, most in zip(grid, _GRID_LIMITS, strict=True)):
                raise UnsupportedError(f"{entry}: a grid of {grid} thread blocks is beyond the device's {_GRID_LIMITS}")
            function = self.function(kernel, entry)
            if shared > STATIC_SHARED:
                attribute = self.driver.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
                function.set_attribute(attribute, shared)
            launches.append((entry, function, grid, threads, shared))
        if not self.followers or not (launch.overlap or launch.early):
            return Plan(tuple(launches))
        tied = launches if launch.early and self.early else launches[1:] if launch.overlap else []
        return Plan(
            tuple(launches),
            tuple(
                self.followers.follower(self._cubins[kernel.name], entry, _formats(kernel), grid, threads, shared)
                for entry, _, grid, threads, shared in tied
            ),
        )


def _formats(kernel: KernelDef) -> str:
    """The kinds of the C arguments, as `struct` names them."""
    scalars = "".join(_FORMATS[scalar.dtype] for scalar in kernel.scalars)
    return "P" * len(kernel.args) + "q" * len(kernel.axes) + scalars + "P"


def arguments_of(
    kernel: KernelDef,
    pointers: Mapping[str, int],
    axes: Mapping[str, int],
    scalars: Mapping[str, Any],
    status: int,
) -> tuple[Any, ...]:
    """The C arguments in order; an argument without a pointer is null."""
    return (
        *(pointers.get(arg.name, 0) for arg in kernel.args),
        *(axes[axis] for axis in kernel.axes),
        *(scalars[scalar.name] for scalar in kernel.scalars),
        status,
    )


def scratch_axes(kernel: KernelDef, axes: Mapping[str, int]) -> dict[str, int]:
    """The axes with the sizes that only scratch arrays have, where the caller left them open."""
    open_axes = kernel.launch.scratch_axes(axes)
    return dict(axes) | {axis: size for axis, size in open_axes.items() if not axes[axis]}


class CudaBackend:
    """Every kernel of `cuda/`, on host arrays: upload, launch, download. `times` are those of the last call."""

    name = "cuda"

    def __init__(self) -> None:
        """Find the GPU.

        Raises:
            GpuUnavailable: there is none to use; the message says what mends it.
        """
        self.gpu = gpu()
        self.times: tuple[LaunchTime, ...] = ()

    def supports(self, kernel: KernelDef) -> bool:
        """Whether the kernel has a CUDA file."""
        return (data_folder("cuda") / f"{kernel.name}.cu").exists()

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run one kernel. Guarded arrays travel with their bands, so that writes outside are seen on the host.

        Raises:
            KernelError: the arguments do not fit, the device is out of memory, or the launch failed.
            GpuUnavailable: the kernel must be compiled first and there is no compiler.
        """
        call = bind(kernel, arrays, scalars)
        axes = scratch_axes(kernel, call.axes)
        with self.gpu.current() as driver:
            try:
                status = self._run(call, axes)
            except driver.MemoryError as error:
                free, total = (size >> 20 for size in driver.mem_get_info())
                needed = sum(array.nbytes for array in call.arrays.values() if array is not None) >> 20
                raise KernelError(
                    f"{kernel.name}: out of GPU memory: the arrays take {needed} MiB and scratch beside them, "
                    f"{free} of {total} MiB are free"
                ) from error
            except (driver.Error, LaunchRefusedError) as error:
                raise KernelError(f"{kernel.name} failed on {self.gpu.name}: {error}") from error
        return {**call.outputs(), "status": status}

    def _run(self, call: Call, axes: Mapping[str, int]) -> NDArray[np.int32]:
        driver, kernel = self.gpu.driver, call.kernel
        has = {f"has_{name}": array is not None for name, array in call.arrays.items()}
        plan = self.gpu.plan(kernel, axes, has)
        held: dict[str, tuple[Any, NDArray[Any], bool]] = {}  # memory, what travels, whether with bands
        pointers: dict[str, int] = {}
        for arg in kernel.args:
            array = call.arrays[arg.name]
            if array is None:
                if arg.role == "scratch" and _wanted(arg.axes, axes):
                    size = int(np.prod([_size(axis, axes) for axis in arg.axes])) * np.dtype(arg.dtype).itemsize
                    memory = driver.mem_alloc(size)
                    driver.memset_d8(memory, 0, size)
                    held[arg.name] = memory, np.empty(0, np.uint8), False
                    pointers[arg.name] = int(memory)
                continue
            banded, start = _travelling(array)
            memory = driver.mem_alloc(max(16, banded.nbytes))
            if banded.nbytes:
                driver.memcpy_htod(memory, banded)
            held[arg.name] = memory, banded, banded is not array
            pointers[arg.name] = int(memory) + start
        status = np.zeros(1, np.int32)
        status_memory = driver.mem_alloc(4)
        driver.memcpy_htod(status_memory, status)
        arguments = arguments_of(kernel, pointers, axes, call.scalars, int(status_memory))
        events = [driver.Event() for _ in range(len(plan.launches) + 1)]
        events[0].record()
        for single, event in zip(plan.launches, events[1:], strict=True):
            Plan((single,)).launch(arguments)
            event.record()
        events[-1].synchronize()
        self.times = tuple(
            LaunchTime(single[0], float(before.time_till(after)) * 1000)
            for single, before, after in zip(plan.launches, events, events[1:], strict=False)
        )
        for arg in kernel.args:
            if arg.name not in held:
                continue
            memory, travelled, banded_too = held[arg.name]
            if travelled.nbytes and (banded_too or arg.role in ("out", "inout")):
                driver.memcpy_dtoh(travelled, memory)
        driver.memcpy_dtoh(status, status_memory)
        for memory, _, _ in held.values():
            memory.free()
        status_memory.free()
        return status


@cache
def gpu() -> Gpu:
    """The one GPU of this process.

    Raises:
        GpuUnavailable: there is none to use; the message says what mends it.
    """
    return Gpu()


def gpu_for(purpose: str) -> Gpu:
    """The one GPU of this process, for what no other backend can do; `purpose` says so in the message.

    Raises:
        GpuUnavailable: there is none to use.
    """
    try:
        return gpu()
    except GpuUnavailable as error:
        why = re.sub(r"[;,] (or )?use --backend numpy$", "", str(error))
        raise GpuUnavailable(f"{purpose}: {why}") from error


def _driver() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        raise GpuUnavailable(
            "PyCUDA is not installed; pip install 'pycuda>=2025.1.2' (README: Install with a GPU), "
            "or use --backend numpy"
        ) from error
    except ImportError as error:
        raise GpuUnavailable(
            f"PyCUDA cannot load the NVIDIA driver ({error}); install the driver, or use --backend numpy"
        ) from error


def _travelling(array: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """The bytes to copy and where the array starts in them: a guarded array goes with its bands."""
    buffer, start = region(array)
    if buffer.dtype == np.uint8 and start == BAND and buffer.nbytes == array.nbytes + 2 * BAND:
        return buffer, start
    return array, 0


def _size(axis: str, axes: Mapping[str, int]) -> int:
    return int(axis) if axis.isdigit() else axes[axis]


def _wanted(names: Sequence[str], axes: Mapping[str, int]) -> bool:
    """Whether a scratch array of these axes has any element."""
    return all(_size(axis, axes) > 0 for axis in names)
