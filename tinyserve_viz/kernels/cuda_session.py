"""A replay's arrays and kernels on one GPU: what is held stays on the device, a step goes in and comes back in one go.

Calls wait in a queue until somebody needs a result, then run one right after the other. Programs become CUDA graphs on
their second run (`cuda_program.py`). The host waits for the device when it needs a result, and not again for status
words, times or answers that were asked for before. One thread makes, uses and closes a session; its context is current
there alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.cuda_arena import CHUNK, Arena, num_bytes
from tinyserve_viz.kernels.cuda_calls import Binder, Launch, column_of
from tinyserve_viz.kernels.cuda_program import Program, Workshop, build_program
from tinyserve_viz.kernels.definition import C_TYPES, Status
from tinyserve_viz.kernels.device import Device
from tinyserve_viz.kernels.session import Build, BytesOf, CallTime, Given, Held, Read, Running, Sizes

_STATUS_WORDS = 4096
_MOST_PROGRAMS = 64
_DTYPES = {np.dtype(dtype): dtype for dtype in C_TYPES}  # asking a dtype for its name takes 20 times as long
_BEHIND_GATE = 64  # calls and copies: the driver's own queue holds about 1,000 and waits when it is full
_SMALL = 1 << 20  # bytes; a read-back of more does not go through page-locked memory kept for it


@dataclass(slots=True, eq=False)
class _Done:
    """A launch whose time and status are to be told at the end of the step: its word is `words[place]`."""

    launch: Launch
    span: tuple[Any, Any]
    words: NDArray[np.int32]
    place: int
    sizes: Sizes
    us: float | None = None  # known already
    told: CallTime | None = None


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
        self._temporary, self._staging = Arena(device.alloc), Arena(device.pinned)
        self._queue: list[Callable[[], None]] = []
        self._busy = False  # something is on the stream that nobody has waited for
        self._coming: list[tuple[NDArray[np.uint8], NDArray[Any]]] = []  # (page-locked, array to fill when it came)
        self._done: list[_Done] = []
        self._over = 0  # so many of them have been waited for
        self._events: list[Any] = []
        self._events_used = 0
        self._binder = Binder(device, self._workspace)
        self._scratchpad = Arena(device.alloc)
        self._workshop = Workshop(device, self._binder, self._scratchpad, self._keep)
        self._programs: OrderedDict[Hashable, Program] = OrderedDict()
        self._started: list[Program] = []  # since the last step ended
        self._status = self._keep(4 * _STATUS_WORDS)  # words of the calls outside programs
        device.fill(self._status, 0, 4 * _STATUS_WORDS)
        self._words = device.pinned(4 * _STATUS_WORDS).view(np.int32)
        self._words_used = self._words_read = 0
        self._flag, self._turn = device.pinned(4096), 0
        self._flag[:] = 0
        self._can_hold_back = True
        self._told: list[CallTime] = []
        self.copy_gb_per_s: float | None = self._measure_copy()

    def _keep(self, size: int) -> int:
        address = self._device.alloc(size)
        self._kept.add(address)
        return address

    def _workspace(self, size: int) -> int:
        address = self._keep(size)
        self._queue.append(lambda: self._device.fill(address, 0, size))
        return address

    def _measure_copy(self) -> float:
        """Best of five copies within the device, bytes read and written."""
        free, _ = self._device.memory()
        size = min(1 << 30, free // 8) // 256 * 256
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
        for at in range(0, array.nbytes, CHUNK):
            part = data[at : at + CHUNK]
            self._upload(address + at, part)
            if array.nbytes > CHUNK:
                self._wait()
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
        self._wait()
        self._kept.remove(held.data)
        self._device.free(held.data)

    def part(self, held: Held, index: int) -> Held:
        """The address of held[index]."""
        size = num_bytes(held.shape[1:], held.dtype)
        return Held(held.shape[1:], held.dtype, held.data + index * size)

    def fill(self, held: Held, byte: int = 0) -> None:
        """Set every byte, in turn with the calls."""
        address, size = held.data, num_bytes(held.shape, held.dtype)
        self._queue.append(lambda: self._device.fill(address, byte, size))

    def read(self, *held: Held) -> list[NDArray[Any]]:
        """Run what waits, and copy back."""
        return self.read_later(*held)()

    def read_later(self, *held: Held) -> Callable[[], list[NDArray[Any]]]:
        """Copy back in turn with the calls."""
        found = [np.empty(one.shape, one.dtype) for one in held]
        for one, array in zip(held, found, strict=True):
            data = array.reshape(-1).view(np.uint8)
            for at in range(0, array.nbytes, CHUNK):
                size = min(CHUNK, array.nbytes - at)
                if array.nbytes > _SMALL:  # through the stage in pieces, so that it stays small
                    self._wait()
                chunk, place = self._staging.take(size)
                self._queue.append(_downloading(self._device, stage := chunk[place : place + size], one.data + at))
                self._coming.append((stage, data[at : at + size]))
        mine = self._coming[-1] if held and self._coming else None

        def came() -> list[NDArray[Any]]:
            if any(one is mine for one in self._coming):
                self._wait()
            return found

        return came

    def _wait(self) -> None:
        """Run what waits in the queue and wait until it is over; what was to come back is there."""
        self._flush()
        if self._busy:
            self._device.synchronize()
            self._busy = False
        for stage, array in self._coming:
            array[:] = stage
        self._coming = []
        self._staging.reset()  # nothing is under way any more

    def read_blocks(self, held: Held, blocks: NDArray[Any]) -> NDArray[Any]:
        """held[:, blocks]: block by block, or everything where that is quicker."""
        layers, num_blocks = held.shape[:2]
        if layers * len(blocks) > 256:
            return np.ascontiguousarray(self.read(held)[0][:, blocks])
        size = num_bytes(held.shape[2:], held.dtype)
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
        if self._words_used == _STATUS_WORDS:
            self._settle()
        given = {name: self._sent(one) for name, one in arrays.items() if one is not None}
        place = self._words_used
        launch, outputs = self._binder.bind(kernel, given, scalars, num_bytes, self._new, self._status + 4 * place)
        self._words_used += 1
        self._queue.append(lambda: self._launch(launch, place, sizes))
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
        chunk, place = self._temporary.take(num_bytes(shape, dtype))
        return Held(shape, dtype, chunk + place)

    def _launch(self, launch: Launch, place: int, sizes: Sizes) -> None:
        """Put a call on the stream, timed."""
        span, us = (self._event(), self._event()), None
        if self._repeat > 1:
            us = launch.median_us(self._device, self._repeat, span, self._close_gate)
            launch.put(self._device)
        else:
            self._device.record(span[0])
            launch.put(self._device)
            self._device.record(span[1])
        self._done.append(_Done(launch, span, self._words, place, sizes, us))

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
        self._busy = True
        gated = self._repeat == 1 and not self._binder.has_new  # a first launch may wait for the device
        self._binder.has_new = False
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

    def run(self, key: Hashable, build: Build, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> Running:
        """Start a program: prepared on the first run of its key, a graph from the second on."""
        if key is None or self._repeat > 1:
            calls = _Queued(self, inputs, sizes)
            rest = build(calls)
            early = self._reading(calls.early)
            return Running(early, self._reading(rest))
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = build_program(self._workshop, build, inputs)
            if len(self._programs) > _MOST_PROGRAMS:
                self._settle()
                self._forget(self._programs.popitem(last=False)[1])
        else:
            self._programs.move_to_end(key)
            if self._busy and program in self._started:  # its last inputs may not have gone up yet
                self._wait()
        for name, array in inputs.items():
            program.inputs[name][...] = array
        self._start(program, sizes)
        return Running(lambda: self._early_of(program), lambda: self._rest_of(program))

    def _reading(self, read: Mapping[str, Held]) -> Callable[[], Read]:
        came = self.read_later(*read.values())
        return lambda: dict(zip(read, came(), strict=True))

    def _start(self, program: Program, sizes: Sizes) -> None:
        self._flush()
        self._fetch_words()
        self._busy = True
        program.start()
        self._started.append(program)
        for place, (launch, span) in enumerate(zip(program.launches, program.spans, strict=True)):
            self._done.append(_Done(launch, span, program.words, place, sizes))

    def _early_of(self, program: Program) -> Read:
        if program.early:
            self._device.wait_for(program.come_early)
            self._over = len(self._done) - len(program.launches) + program.num_early_calls
        return program.early

    def _rest_of(self, program: Program) -> Read:
        if program.rest:
            self._time(self._done[: self._over])  # while the others run
            self._wait()
        return program.rest

    def _time(self, done: list[_Done]) -> None:
        """Tell of calls that are over, as if their status were good, those that nothing was told of yet."""
        for one in done:
            if one.told is None:
                us = self._device.elapsed_us(*one.span) if one.us is None else one.us
                one.told = CallTime(one.launch.kernel, us, one.launch.bytes_of(one.sizes), Status.OK)

    def _forget(self, program: Program) -> None:
        for address, pinned in program.close():
            self._kept.remove(address)
            self._device.free(address)
            self._device.free_pinned(pinned)

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────

    def end_step(self) -> list[CallTime]:
        """Wait, then tell every time and all status words."""
        self._settle()
        told, self._told = self._told, []
        self._temporary.reset()
        return told

    def _fetch_words(self) -> None:
        """Let the words of calls outside programs come back, those that did not yet."""
        first = self._words_read
        if size := 4 * (self._words_used - first):
            self._device.download(self._words.ctypes.data + 4 * first, self._status + 4 * first, size)
            self._words_read, self._busy = self._words_used, True

    def _settle(self) -> None:
        """Finish everything under way and note its times and status words."""
        self._flush()
        self._fetch_words()
        self._wait()
        self._time(self._done)
        told = [one.told for one in self._done if one.told is not None]
        words = [self._words[: self._words_used], *[program.words for program in self._started]]
        if any(any(some.tolist()) for some in words):  # NumPy's own `any` takes longer for so few
            told = [
                call._replace(status=Status(int(one.words[one.place])))
                for call, one in zip(told, self._done, strict=True)
            ]
            self._device.fill(self._status, 0, 4 * _STATUS_WORDS)
            for program in self._started:
                program.clear_words()
        self._told += told
        self._done, self._over = [], 0
        self._started = []
        self._events_used = self._words_used = self._words_read = 0

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
        self.early: dict[str, Held] = {}

    def input(self, name: str) -> Held:
        return self._inputs[name]

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        return self._session._queue_call(kernel, arrays, bytes_of, self._sizes, scalars)

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        return self._session._new(shape, dtype)

    def first_column(self, held: Held) -> Held:
        column, copy = column_of(self._session._device, held, self._session._new)
        self._session._queue.append(copy)
        return column

    def read_early(self, read: Mapping[str, Held]) -> None:
        self.early = dict(read)


def _downloading(device: Device, target: NDArray[np.uint8], source: int) -> Callable[[], None]:
    return lambda: device.download(target.ctypes.data, source, target.nbytes)


def _nothing() -> None:
    """No gate to open."""
