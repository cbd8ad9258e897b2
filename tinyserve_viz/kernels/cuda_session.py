"""A replay's arrays and kernels on one GPU: what is held stays on the device, a step goes in and comes back in one go.

Calls wait in a queue until somebody needs a result, then run one right after the other. Programs become CUDA graphs on
their second run: one launch for inputs, kernels, events between them and what is read back. Status words of all calls
come back in one copy a step. One thread makes, uses and closes a session; its context is current there alone.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.binding import bind_shapes
from tinyserve_viz.kernels.cuda_backend import Plan, arguments_of, scratch_axes
from tinyserve_viz.kernels.definition import C_TYPES, KernelDef, Status
from tinyserve_viz.kernels.session import Build, BytesOf, CallTime, Given, Held, Read, Sizes

_ALIGN = 256  # bytes; the driver's own alignment
_CHUNK = 16 << 20  # bytes that an arena grows by
_STATUS_WORDS = 4096
_MOST_PROGRAMS, _MOST_PREPARED = 64, 4096
_ITEM = {dtype: np.dtype(dtype).itemsize for dtype in C_TYPES}
_DTYPES = {np.dtype(dtype): dtype for dtype in C_TYPES}  # asking a dtype for its name takes 20 times as long
_BEHIND_GATE = 64  # calls and copies: the driver's own queue holds about 1,000 and waits when it is full
_SMALL = 1 << 20  # bytes; a read-back of more does not go through page-locked memory kept for it


class Device(Protocol):
    """What a session needs of a device; `cuda_device.CudaDevice` is the real one, tests bring one made of memory."""

    name: str
    num_multiprocessors: int
    lost: bool

    def alloc(self, size: int) -> int: ...
    def free(self, address: int) -> None: ...
    def pinned(self, size: int) -> NDArray[np.uint8]: ...
    def free_pinned(self, memory: NDArray[np.uint8]) -> None: ...
    def upload(self, target: int, source: int, size: int) -> None: ...
    def download(self, target: int, source: int, size: int) -> None: ...
    def copy(self, target: int, source: int, size: int) -> None: ...
    def copy_column(self, target: int, source: int, row_bytes: int, width: int, rows: int) -> None: ...
    def fill(self, target: int, byte: int, size: int) -> None: ...
    def plan(self, kernel: KernelDef, axes: Mapping[str, int], has: Mapping[str, bool]) -> Plan: ...
    def launch(self, plan: Plan, arguments: Sequence[Any]) -> None: ...
    def event(self) -> Any: ...
    def record(self, event: Any, in_graph: bool = False) -> None: ...
    def elapsed_us(self, start: Any, end: Any) -> float: ...
    def capture(self, work: Callable[[], None]) -> Any: ...
    def replay(self, graph: Any) -> None: ...
    def drop_graph(self, graph: Any) -> None: ...
    def synchronize(self) -> None: ...
    def hold_back(self, flag: NDArray[np.uint8], value: int) -> bool: ...
    def memory(self) -> tuple[int, int]: ...
    def close(self) -> None: ...


class _Arena:
    """Memory handed out in turn and taken back at once; what was handed out stays where it is."""

    def __init__(self, alloc: Callable[[int], Any]) -> None:
        self._alloc, self._chunks, self._at, self._used = alloc, list[tuple[Any, int]](), 0, 0

    def take(self, size: int) -> tuple[Any, int]:
        """A chunk and the place in it of `size` bytes, aligned."""
        size = _rounded(size)
        while self._at < len(self._chunks):
            if self._used + size <= self._chunks[self._at][1]:
                place = self._used
                self._used += size
                return self._chunks[self._at][0], place
            self._at, self._used = self._at + 1, 0
        room = max(_CHUNK, size)
        self._chunks.append((self._alloc(room), room))
        self._used = size
        return self._chunks[-1][0], 0

    def reset(self) -> None:
        """Everything may be handed out again."""
        self._at = self._used = 0

    def chunks(self) -> list[Any]:
        """What has to be given back at the end."""
        return [chunk for chunk, _ in self._chunks]


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
class _Launch:
    """A call that is ready to run. `status` is the index of its status word; `shapes` are those of what it changes."""

    bound: _Bound
    arguments: tuple[Any, ...]
    pointers: dict[str, int]
    status: int
    num_bytes: int | BytesOf
    shapes: dict[str, tuple[int, ...]]


@dataclass(slots=True, eq=False)
class _Done:
    """A launch whose time and status are to be told at the end of the step."""

    launch: _Launch
    start: Any
    end: Any
    sizes: Sizes
    us: float | None = None  # known already


@dataclass(slots=True, eq=False)
class _Program:
    """Steps of a program in order, where its inputs go and where its results come from."""

    steps: list[_Launch | Callable[[], None]] = field(default_factory=list)
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)  # views of page-locked memory
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    up: tuple[int, int, int] = (0, 0, 0)  # device address, host address, bytes
    down: tuple[int, int, int] = (0, 0, 0)
    events: list[Any] = field(default_factory=list)
    graph: Any = None
    runs: int = 0
    owned: list[tuple[int, NDArray[np.uint8]]] = field(default_factory=list)  # device and page-locked memory

    def launches(self) -> list[_Launch]:
        """Its kernel calls."""
        return [step for step in self.steps if isinstance(step, _Launch)]


class CudaSession:
    """The session of a replay on `device`. `time_repeat` above 1 times every call that often, on copies of its arrays.

    Its own errors are `OutOfDeviceMemory` and `DeviceLost`.
    """

    backend, provenance, verify_us = "cuda", "measured", 0.0

    def __init__(self, device: Device, time_repeat: int = 1) -> None:
        self._device, self._repeat = device, time_repeat
        self.device = device.name
        self.num_workers = max(32, 2 * device.num_multiprocessors)
        self._thread = threading.get_ident()
        self._kept: set[int] = set()
        self._temporary, self._scratchpad = _Arena(device.alloc), _Arena(device.alloc)  # of calls, of programs
        self._staging = _Arena(device.pinned)
        self._queue: list[Callable[[], None]] = []
        self._done: list[_Done] = []
        self._events: list[Any] = []
        self._events_used = 0
        self._prepared: dict[Hashable, _Bound] = {}
        self._scratch: dict[Hashable, int] = {}
        self._programs: OrderedDict[Hashable, _Program] = OrderedDict()
        self._status = self._keep(4 * _STATUS_WORDS)
        device.fill(self._status, 0, 4 * _STATUS_WORDS)
        self._words = device.pinned(4 * _STATUS_WORDS).view(np.int32)
        self._next_word, self._fixed_words = 0, _STATUS_WORDS  # of calls from below, of programs from above
        self._free_words: list[int] = []  # of programs that are gone
        self._flag, self._turn = device.pinned(4096), 0
        self._flag[:] = 0
        self._can_hold_back = True
        self._cold = False  # something prepared has never run: a first launch may wait for the device
        self._told: list[CallTime] = []
        self.copy_gb_per_s: float | None = self._measure_copy()

    def _keep(self, size: int) -> int:
        address = self._device.alloc(size)
        self._kept.add(address)
        return address

    def _measure_copy(self) -> float:
        """Best of five copies within the device, bytes read and written."""
        free, _ = self._device.memory()
        size = min(1 << 30, free // 8) // _ALIGN * _ALIGN
        source, target = self._device.alloc(size), self._device.alloc(size)
        self._device.fill(source, 0x5A, size)
        start, end, best = self._device.event(), self._device.event(), float("inf")
        for _ in range(5):
            self._device.record(start)
            self._device.copy(target, source, size)
            self._device.record(end)
            self._device.synchronize()
            best = min(best, self._device.elapsed_us(start, end))
        self._device.free(source)
        self._device.free(target)
        return 2 * size / best / 1e3

    def begin_step(self, verify: bool) -> None:
        """Nothing: a step begins where the last one ended."""

    def take_mismatches(self) -> list[str]:
        """None: nothing is repeated."""
        return []

    # ── arrays ──────────────────────────────────────────────────────────────────────────────────────────────────

    def hold(self, array: NDArray[Any]) -> Held:
        """Upload a copy that stays."""
        array = np.ascontiguousarray(array)
        address = self._keep(array.nbytes)
        data = array.reshape(-1).view(np.uint8)
        for at in range(0, array.nbytes, _CHUNK):
            part = data[at : at + _CHUNK]
            self._upload(address + at, part)
            if array.nbytes > _CHUNK:
                self._flush()
                self._device.synchronize()
                self._staging.reset()
        return Held(array.shape, str(array.dtype), address)

    def _upload(self, target: int, data: NDArray[np.uint8]) -> None:
        """Stage `data` now and copy it when the queue runs."""
        if not data.nbytes:
            return
        chunk, place = self._staging.take(data.nbytes)
        staged = chunk[place : place + data.nbytes]
        staged[:] = data
        source, size = staged.ctypes.data, data.nbytes
        self._queue.append(lambda: self._device.upload(target, source, size))

    def drop(self, held: Held) -> None:
        """Give a held array's memory back."""
        self._flush()
        self._device.synchronize()
        self._kept.remove(held.data)
        self._device.free(held.data)

    def part(self, held: Held, index: int) -> Held:
        """The address of held[index]."""
        size = _num_bytes(held.shape[1:], held.dtype)
        return Held(held.shape[1:], held.dtype, held.data + index * size)

    def fill(self, held: Held, byte: int = 0) -> None:
        """Set every byte, in turn with the calls."""
        address, size = held.data, _num_bytes(held.shape, held.dtype)
        self._queue.append(lambda: self._device.fill(address, byte, size))

    def read(self, *held: Held) -> list[NDArray[Any]]:
        """Run what waits, and copy back."""
        found = [np.empty(one.shape, one.dtype) for one in held]
        staged: list[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]] = []
        for one, array in zip(held, found, strict=True):
            for at in range(0, array.nbytes, _CHUNK):
                size = min(_CHUNK, array.nbytes - at)
                if array.nbytes > _SMALL:  # through the stage in pieces, so that it stays small
                    self._fetch(staged)
                chunk, place = self._staging.take(size)
                target = chunk[place : place + size]
                staged.append((one.data + at, target, array.reshape(-1).view(np.uint8)[at : at + size]))
        self._fetch(staged)
        return found

    def _fetch(self, staged: list[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]) -> None:
        """Copy back what is listed as (address, page-locked memory, array) and forget the list."""
        self._flush()
        for source, stage, _ in staged:
            self._device.download(stage.ctypes.data, source, stage.nbytes)
        self._device.synchronize()
        for _, stage, array in staged:
            array[:] = stage
        staged.clear()
        self._staging.reset()  # nothing is under way any more

    def read_blocks(self, held: Held, blocks: NDArray[Any]) -> NDArray[Any]:
        """held[:, blocks]: block by block, or everything where that is quicker."""
        layers, num_blocks = held.shape[:2]
        if layers * len(blocks) > 256:
            return np.ascontiguousarray(self.read(held)[0][:, blocks])
        size = _num_bytes(held.shape[2:], held.dtype)
        parts = [
            Held(held.shape[2:], held.dtype, held.data + (layer * num_blocks + block) * size)
            for layer in range(layers)
            for block in blocks.tolist()
        ]
        shape = (layers, len(blocks), *held.shape[2:])
        return np.array(self.read(*parts), dtype=held.dtype).reshape(shape) if parts else np.empty(shape, held.dtype)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, kernel: str, arrays: Mapping[str, Given | None], num_bytes: int, **scalars: Any) -> dict[str, Held]:
        """Queue a call; its arrays go up with it."""
        return self._queue_call(kernel, arrays, num_bytes, {}, scalars)

    def _queue_call(
        self,
        kernel: str,
        arrays: Mapping[str, Given | None],
        num_bytes: int | BytesOf,
        sizes: Sizes,
        scalars: Mapping[str, Any],
    ) -> dict[str, Held]:
        if self._next_word >= self._fixed_words:
            self._settle()
        given = {name: self._sent(one) for name, one in arrays.items() if one is not None}
        launch, outputs = self._prepare(kernel, given, scalars, num_bytes, self._new, self._next_word)
        self._next_word += 1
        self._queue.append(lambda: self._launch(launch, sizes))
        return outputs

    def _sent(self, one: Given) -> Held:
        if isinstance(one, Held):
            return one
        array = np.ascontiguousarray(one)
        if array.dtype == np.bool_:
            array = array.view(np.uint8)
        if array.dtype not in _DTYPES:
            raise KernelError(f"no kernel takes an array of {array.dtype}")
        held = self._new(array.shape, _DTYPES[array.dtype])
        self._upload(held.data, array.reshape(-1).view(np.uint8))
        return held

    def _new(self, shape: tuple[int, ...], dtype: str) -> Held:
        chunk, place = self._temporary.take(_num_bytes(shape, dtype))
        return Held(shape, dtype, chunk + place)

    def _prepare(
        self,
        name: str,
        given: Mapping[str, Held],
        scalars: Mapping[str, Any],
        num_bytes: int | BytesOf,
        new: Callable[[tuple[int, ...], str], Held],
        word: int,
    ) -> tuple[_Launch, dict[str, Held]]:
        """Bind a call to addresses; what it writes and nobody gave is made by `new`."""
        key = (name, tuple([(arg, held.shape) for arg, held in given.items()]), tuple(scalars.items()))
        known = self._prepared.get(key)
        if known is None:
            if len(self._prepared) > _MOST_PREPARED:  # numbers of requests come and go
                self._prepared.clear()
            known = self._prepared[key] = self._bound(kernel_named(name), given, scalars)
            self._cold = True
        outputs: dict[str, Held] = {}
        for arg, shape, dtype in known.made:
            if arg not in given:
                outputs[arg] = new(shape, dtype)
        for arg in known.written:
            if arg in given:
                outputs[arg] = given[arg]
        pointers = known.scratch | {arg: held.data for arg, held in given.items()}
        pointers |= {arg: held.data for arg, held in outputs.items()}
        addresses = [pointers.get(arg, 0) for arg in known.names]
        arguments = (*addresses, *known.tail, self._status + 4 * word)
        shapes = {arg: given[arg].shape for arg in known.written if arg in given}
        return _Launch(known, arguments, pointers, word, num_bytes, shapes), outputs

    def _bound(self, kernel: KernelDef, given: Mapping[str, Held], scalars: Mapping[str, Any]) -> _Bound:
        """All of a call that does not depend on addresses."""
        axes, values = bind_shapes(kernel, {arg: (held.shape, held.dtype) for arg, held in given.items()}, scalars)
        axes = scratch_axes(kernel, axes)
        has = {f"has_{arg.name}": arg.name in given or arg.role == "out" for arg in kernel.args}
        scratch = {}
        for arg in kernel.args:
            if arg.role == "scratch" and all(shape := _shape(arg.axes, axes)):
                scratch[arg.name] = self._scratch_of(kernel.name, arg.name, shape, arg.dtype)
        return _Bound(
            kernel=kernel,
            plan=self._device.plan(kernel, axes, has),
            names=tuple(arg.name for arg in kernel.args),
            made=tuple((arg.name, _shape(arg.axes, axes), arg.dtype) for arg in kernel.args if arg.role == "out"),
            written=tuple(arg.name for arg in kernel.args if arg.role in ("out", "inout")),
            scratch=scratch,
            tail=arguments_of(kernel, {}, axes, values, 0)[len(kernel.args) : -1],
        )

    def _scratch_of(self, kernel: str, arg: str, shape: tuple[int, ...], dtype: str) -> int:
        """Workspace of a kernel, zero when it is made; kernels leave zero what must be zero, for the same shape."""
        key = (kernel, arg, shape)
        if key not in self._scratch:
            size = _num_bytes(shape, dtype)
            address = self._scratch[key] = self._keep(size)
            self._queue.append(lambda: self._device.fill(address, 0, size))
        return self._scratch[key]

    def _launch(self, launch: _Launch, sizes: Sizes) -> None:
        """Put a call on the stream, timed."""
        if self._repeat > 1:
            us = self._repeated(launch)
            self._device.launch(launch.bound.plan, launch.arguments)
            self._done.append(_Done(launch, None, None, sizes, us))
            return
        start, end = self._event(), self._event()
        self._device.record(start)
        self._device.launch(launch.bound.plan, launch.arguments)
        self._device.record(end)
        self._done.append(_Done(launch, start, end, sizes))

    def _repeated(self, launch: _Launch) -> float:
        """Median time of the call on copies of the arrays that it changes."""
        copies = {}
        for name, shape in launch.shapes.items():
            size = _num_bytes(shape, launch.bound.kernel.arg(name).dtype)
            copies[name] = (self._device.alloc(size), size)
        pointers = launch.pointers | {name: address for name, (address, _) in copies.items()}
        addresses = tuple(pointers.get(name, 0) for name in launch.bound.names)
        arguments = (*addresses, *launch.arguments[len(addresses) :])
        times = []
        start, end = self._event(), self._event()
        for _ in range(self._repeat):
            for name, (address, size) in copies.items():
                self._device.copy(address, launch.pointers[name], size)
            self._device.synchronize()
            opened = self._close_gate()
            self._device.record(start)
            self._device.launch(launch.bound.plan, arguments)
            self._device.record(end)
            opened()
            self._device.synchronize()
            times.append(self._device.elapsed_us(start, end))
        for address, _ in copies.values():
            self._device.free(address)
        return float(np.median(times))

    def _event(self) -> Any:
        if self._events_used == len(self._events):
            self._events.append(self._device.event())
        self._events_used += 1
        return self._events[self._events_used - 1]

    def _flush(self) -> None:
        """Run the queue, behind a gate where that can be had, so that one launch follows on the other."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a CUDA session belongs to the thread that made it")
        if not self._queue:
            return
        queue, self._queue = self._queue, []
        gated = self._repeat == 1 and not self._cold
        self._cold = False
        for at in range(0, len(queue), _BEHIND_GATE):
            opened = self._close_gate() if gated else _nothing
            try:
                for work in queue[at : at + _BEHIND_GATE]:
                    work()
            finally:
                opened()

    def _close_gate(self) -> Callable[[], None]:
        """Hold the stream back; call what is returned to let it go."""
        self._turn += 1
        turn = self._turn
        if not self._can_hold_back or not self._device.hold_back(self._flag, turn):
            self._can_hold_back = False
            return _nothing

        def let_go() -> None:
            self._flag[:4].view(np.uint32)[0] = turn

        return let_go

    # ── programs ────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, key: Hashable, build: Build, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> Read:
        """Run a program: prepared on the first run of its key, a graph from the second on."""
        if key is None or self._repeat > 1:
            read = build(_Queued(self, inputs, sizes))
            return dict(zip(read, self.read(*read.values()), strict=True)) if read else {}
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._build(build, inputs)
            if len(self._programs) > _MOST_PROGRAMS:
                self._device.synchronize()
                self._forget(self._programs.popitem(last=False)[1])
        else:
            self._programs.move_to_end(key)
        for name, array in inputs.items():
            program.inputs[name][...] = array
        self._run(program, sizes)
        if not program.outputs:
            return {}
        self._device.synchronize()
        return {name: array.copy() for name, array in program.outputs.items()}

    def _build(self, build: Build, inputs: Mapping[str, NDArray[Any]]) -> _Program:
        """Make the program's calls: once to learn what it reads, then with those results side by side."""
        first = _Recorded(self, inputs)
        wanted = {held.data: _num_bytes(held.shape, held.dtype) for held in build(first).values()}
        second = _Recorded(self, inputs, {first.numbers.get(at, at): size for at, size in wanted.items()})
        return second.finish(build(second))

    def _run(self, program: _Program, sizes: Sizes) -> None:
        self._flush()
        program.runs += 1
        if program.runs == 1:
            self._put(program, in_graph=False)
        else:
            if program.graph is None:
                program.graph = self._device.capture(lambda: self._put(program, in_graph=True))
            self._device.replay(program.graph)
        events = program.events
        for i, launch in enumerate(program.launches()):
            self._done.append(_Done(launch, events[i], events[i + 1], sizes))

    def _put(self, program: _Program, in_graph: bool) -> None:
        """The whole program on the stream: inputs, calls with events between them, results and status words."""
        device = self._device
        if program.up[2]:
            device.upload(*program.up)
        device.record(program.events[0], in_graph)
        number = 0
        for step in program.steps:
            if isinstance(step, _Launch):
                device.launch(step.bound.plan, step.arguments)
                number += 1
                device.record(program.events[number], in_graph)
            else:
                step()
        if program.down[2]:
            device.download(program.down[1], program.down[0], program.down[2])

    def _forget(self, program: _Program) -> None:
        if program.graph is not None:
            self._device.drop_graph(program.graph)
        self._free_words += [launch.status for launch in program.launches()]
        for address, pinned in program.owned:
            self._kept.remove(address)
            self._device.free(address)
            self._device.free_pinned(pinned)

    def _word(self) -> int:
        """A status word for good."""
        if self._free_words:
            return self._free_words.pop()
        self._fixed_words -= 1
        return self._fixed_words

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────

    def end_step(self) -> list[CallTime]:
        """Wait, then read every time and all status words."""
        self._settle()
        told = self._told
        self._told = []
        self._temporary.reset()
        return told

    def _settle(self) -> None:
        """Finish everything under way and note its times and status words."""
        self._flush()
        device = self._device
        device.download(self._words.ctypes.data, self._status, 4 * _STATUS_WORDS)
        device.synchronize()
        words = self._words
        self._told = self._told + [
            CallTime(
                done.launch.bound.kernel.name,
                device.elapsed_us(done.start, done.end) if done.us is None else done.us,
                done.launch.num_bytes if isinstance(done.launch.num_bytes, int) else done.launch.num_bytes(done.sizes),
                Status(word) if (word := int(words[done.launch.status])) else Status.OK,
            )
            for done in self._done
        ]
        if words.any():
            device.fill(self._status, 0, 4 * _STATUS_WORDS)
        self._done = []
        self._events_used = self._next_word = 0
        self._staging.reset()

    def close(self) -> None:
        """Free everything and let the context go; after a loss there is nothing to free."""
        device = self._device
        if not device.lost:
            self._queue = []
            device.synchronize()
            while self._programs:
                self._forget(self._programs.popitem()[1])
            for address in [*self._kept, *self._temporary.chunks(), *self._scratchpad.chunks()]:
                device.free(address)
            for memory in [*self._staging.chunks(), self._words.view(np.uint8), self._flag]:
                device.free_pinned(memory)
        device.close()


class _Queued:
    """A program's calls, queued once."""

    def __init__(self, session: CudaSession, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> None:
        self._session, self._sizes = session, sizes
        self._inputs = {name: session._sent(array) for name, array in inputs.items()}

    def input(self, name: str) -> Held:
        return self._inputs[name]

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        return self._session._queue_call(kernel, arrays, bytes_of, self._sizes, scalars)

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        return self._session._new(shape, dtype)

    def first_column(self, held: Held) -> Held:
        column, copy = _column(self._session._device, held, self._session._new)
        self._session._queue.append(copy)
        return column


class _Recorded:
    """A program's calls, written down.

    `wanted` has the bytes of each result to be read, by its number (arrays are numbered as they are made) or, where the
    program did not make it, by its address. None: nothing is known yet, and what is written down is of no other use.
    """

    def __init__(
        self, session: CudaSession, inputs: Mapping[str, NDArray[Any]], wanted: Mapping[int, int] | None = None
    ) -> None:
        self._session, self._final = session, wanted is not None
        self._program = _Program()
        self.numbers: dict[int, int] = {}  # address → number
        session._scratchpad.reset()  # programs run one after the other, and share their workspace
        self._inputs: dict[str, Held] = {}
        up, host = self._region([array.nbytes for array in inputs.values()])
        place = 0
        for name, array in inputs.items():
            self._inputs[name] = Held(array.shape, str(array.dtype), up + place)
            if self._final:
                view = host[place : place + array.nbytes].view(array.dtype)
                self._program.inputs[name] = view.reshape(array.shape)
            place += _rounded(array.nbytes)
        self._program.up = up, host.ctypes.data, place
        self._down, self._results = self._region(list((wanted or {}).values()))
        self._places: dict[int, int] = {}  # number or address of a result → its place among them
        place = 0
        for one, size in (wanted or {}).items():
            self._places[one] = place
            place += _rounded(size)
        self._program.down = self._down, self._results.ctypes.data, place

    def _region(self, sizes: Sequence[int]) -> tuple[int, NDArray[np.uint8]]:
        """Room for arrays side by side on the device, and page-locked memory beside it."""
        size = sum(map(_rounded, sizes))
        if not self._final or not size:
            return 0, np.empty(0, np.uint8)
        region = self._session._keep(size), self._session._device.pinned(size)
        self._program.owned.append(region)
        return region

    def input(self, name: str) -> Held:
        return self._inputs[name]

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        given = {name: held for name, held in arrays.items() if held is not None}
        word = self._session._word() if self._final else 0
        launch, outputs = self._session._prepare(kernel, given, scalars, bytes_of, self.new, word)
        self._program.steps.append(launch)
        return outputs

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        number = len(self.numbers)
        if number in self._places:
            address = self._down + self._places[number]
        else:
            chunk, place = self._session._scratchpad.take(_num_bytes(shape, dtype))
            address = chunk + place
        self.numbers[address] = number
        return Held(shape, dtype, address)

    def first_column(self, held: Held) -> Held:
        column, copy = _column(self._session._device, held, self.new)
        self._program.steps.append(copy)
        return column

    def finish(self, read: Mapping[str, Held]) -> _Program:
        """The program, once `read` tells the names of the results."""
        program, device = self._program, self._session._device
        for name, held in read.items():
            size = _num_bytes(held.shape, held.dtype)
            place = held.data - self._down
            if not 0 <= place < len(self._results):  # held elsewhere: copied beside the others at the end
                place = self._places[held.data]
                program.steps.append(_copying(device, self._down + place, held.data, size))
            program.outputs[name] = self._results[place : place + size].view(held.dtype).reshape(held.shape)
        program.events = [device.event() for _ in range(len(program.launches()) + 1)]
        return program


def _copying(device: Device, target: int, source: int, size: int) -> Callable[[], None]:
    return lambda: device.copy(target, source, size)


def _column(device: Device, held: Held, new: Callable[[tuple[int, ...], str], Held]) -> tuple[Held, Callable[[], None]]:
    """An array for held[:, 0], and what copies it there."""
    rows, columns = held.shape
    width = _num_bytes((1,), held.dtype)
    column = new((rows,), held.dtype)
    return column, lambda: device.copy_column(column.data, held.data, columns * width, width, rows)


def _nothing() -> None:
    """No gate to open."""


def _num_bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * _ITEM[dtype]


def _rounded(size: int) -> int:
    return -(-max(size, 1) // _ALIGN) * _ALIGN


def _shape(axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(axis) if axis.isdigit() else sizes[axis] for axis in axes)
