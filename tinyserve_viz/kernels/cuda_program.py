"""A program of a CUDA session: inputs up, kernels with events between them, results down; graphs from its second run.

Results that the host can use while later kernels still run come down where the program says so (`early`), all others
at its end, with the status words of its calls behind them: one copy each. There a graph ends and the next one begins,
since an event that a graph records cannot be waited for: it looks as the last run left it until the graph comes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.cuda_arena import Arena, num_bytes, rounded
from tinyserve_viz.kernels.cuda_calls import Binder, Launch, column_of
from tinyserve_viz.kernels.device import Device
from tinyserve_viz.kernels.session import Build, BytesOf, Held, Read

_Block = tuple[int, NDArray[np.uint8]]  # memory of the device, and as much page-locked memory


@dataclass(frozen=True, slots=True)
class Workshop:
    """What programs are made from: `keep` allocates for good; they run one after the other and share `scratchpad`."""

    device: Device
    binder: Binder
    scratchpad: Arena
    keep: Callable[[int], int]


class Program:
    """Calls in order, in two parts where something comes early. `inputs`, `early`, `rest` and `words` (one a call) are
    views of page-locked memory; results are those of the last run."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.parts: list[list[Launch | Callable[[], None]]] = [[]]
        self.inputs: Read = {}
        self.early: Read = {}
        self.rest: Read = {}
        self.words: NDArray[np.int32] = np.zeros(0, np.int32)
        self.launches: list[Launch] = []
        self.spans: list[tuple[Any, Any]] = []  # events around each call
        self.num_early_calls = 0  # calls before `early` is read
        self.come_early: Any = None  # event: it is there
        self.up: _Block = (0, np.empty(0, np.uint8))
        self.down: _Block = self.up
        self.num_early_bytes = 0
        self._graphs: list[Any] = []
        self._has_run = False

    def finish(self) -> None:
        """All steps are there: make their events."""
        for part in self.parts:
            here: Any = None
            for step in part:
                if isinstance(step, Launch):
                    start = self._device.event() if here is None else here
                    here = self._device.event()
                    self.spans.append((start, here))
                    self.launches.append(step)
                else:
                    here = None
        self.come_early = self._device.event()

    def start(self) -> None:
        """Put everything on the stream."""
        if self._has_run and not self._graphs:
            number = 0
            for at, part in enumerate(self.parts):
                self._graphs.append(self._device.capture(partial(self._put, at, number, in_graph=True)))
                number += sum(isinstance(step, Launch) for step in part)
        number = 0
        for at, part in enumerate(self.parts):
            if self._graphs:
                self._device.replay(self._graphs[at])
            else:
                self._put(at, number, in_graph=False)
                number += sum(isinstance(step, Launch) for step in part)
            if at == 0 and len(self.parts) > 1:
                self._device.record(self.come_early)
        self._has_run = True

    def _put(self, at: int, number: int, in_graph: bool) -> None:
        """Put one part on the stream, whose first call has this number."""
        device = self._device
        address, host = self.up
        if at == 0 and len(host):
            device.upload(address, host.ctypes.data, len(host))
        here: Any = None
        for step in self.parts[at]:
            if not isinstance(step, Launch):
                step()
                here = None
                continue
            start, end = self.spans[number]
            if start is not here:
                device.record(start, in_graph)
            step.put(device)
            device.record(end, in_graph)
            number, here = number + 1, end
        address, host = self.down
        last = at == len(self.parts) - 1
        first, end_at = 0 if at == 0 else self.num_early_bytes, len(host) if last else self.num_early_bytes
        if end_at > first:
            device.download(host.ctypes.data + first, address + first, end_at - first)

    def clear_words(self) -> None:
        """The next run starts without a status."""
        if self.words.any():
            size = self.words.nbytes
            self._device.fill(self.down[0] + len(self.down[1]) - rounded(size), 0, size)

    def close(self) -> list[_Block]:
        """Destroy the graphs; the memory to be given back."""
        for graph in self._graphs:
            self._device.drop_graph(graph)
        return [block for block in (self.up, self.down) if len(block[1])]


def build_program(workshop: Workshop, build: Build, inputs: Mapping[str, NDArray[Any]]) -> Program:
    """Make a program's calls: once to learn what it reads, then with those results side by side."""
    first = _Recorded(workshop, inputs)
    plan = first.plan(build(first))
    second = _Recorded(workshop, inputs, plan)
    return second.finish(build(second))


@dataclass(frozen=True, slots=True)
class _Plan:
    """Places of the results in what comes down, by number (arrays are numbered as they are made) or, where the program
    did not make them, by address; the bytes that come early, of all results, and how many status words follow."""

    places: Mapping[int, int]
    num_early_bytes: int
    num_bytes: int
    num_words: int


class _Recorded:
    """A program's calls, written down. Without a plan what is written down is of no other use than to make one."""

    def __init__(self, workshop: Workshop, inputs: Mapping[str, NDArray[Any]], plan: _Plan | None = None) -> None:
        self._workshop, self._plan = workshop, plan
        self._program = program = Program(workshop.device)
        self._numbers: dict[int, int] = {}  # address → number
        self._early: dict[str, Held] = {}
        self._num_calls = 0
        workshop.scratchpad.reset()
        program.up = self._block(sum(rounded(array.nbytes) for array in inputs.values()))
        self._inputs: dict[str, Held] = {}
        place = 0
        for name, array in inputs.items():
            self._inputs[name] = Held(array.shape, str(array.dtype), program.up[0] + place)
            if plan:
                program.inputs[name] = self._view(program.up, place, self._inputs[name])
            place += rounded(array.nbytes)
        if plan:
            program.num_early_bytes = plan.num_early_bytes
            program.down = self._block(plan.num_bytes + rounded(4 * plan.num_words))
            words = self._view(program.down, plan.num_bytes, Held((plan.num_words,), "int32", 0))
            program.words = words
            if plan.num_words:
                workshop.device.fill(program.down[0] + plan.num_bytes, 0, rounded(words.nbytes))

    def _block(self, size: int) -> _Block:
        if not self._plan or not size:
            return 0, np.empty(0, np.uint8)
        return self._workshop.keep(size), self._workshop.device.pinned(size)

    def _view(self, block: _Block, place: int, held: Held) -> NDArray[Any]:
        size = num_bytes(held.shape, held.dtype)
        return block[1][place : place + size].view(held.dtype).reshape(held.shape)

    def input(self, name: str) -> Held:
        return self._inputs[name]

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        given = {name: held for name, held in arrays.items() if held is not None}
        word = self._program.down[0] + self._plan.num_bytes + 4 * self._num_calls if self._plan else 0
        launch, outputs = self._workshop.binder.bind(kernel, given, scalars, bytes_of, self.new, word)
        self._program.parts[-1].append(launch)
        self._num_calls += 1
        return outputs

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        number = len(self._numbers)
        if self._plan and number in self._plan.places:
            address = self._program.down[0] + self._plan.places[number]
        else:
            chunk, place = self._workshop.scratchpad.take(num_bytes(shape, dtype))
            address = chunk + place
        self._numbers[address] = number
        return Held(shape, dtype, address)

    def first_column(self, held: Held) -> Held:
        column, copy = column_of(self._workshop.device, held, self.new)
        self._program.parts[-1].append(copy)
        return column

    def read_early(self, read: Mapping[str, Held]) -> None:
        assert not self._early, "a program reads early once"
        self._early = dict(read)
        self._program.early = self._come_down(read)
        self._program.parts.append([])
        self._program.num_early_calls = self._num_calls

    def _come_down(self, read: Mapping[str, Held]) -> Read:
        """Views of where results will be on the host; those that are held elsewhere are copied beside the others."""
        views: Read = {}
        if self._plan:
            device, down = self._workshop.device, self._program.down
            for name, held in read.items():
                place, size = held.data - down[0], num_bytes(held.shape, held.dtype)
                if not 0 <= place < len(down[1]):
                    place = self._plan.places[held.data]
                    self._program.parts[-1].append(_copying(device, down[0] + place, held.data, size))
                views[name] = self._view(down, place, held)
        return views

    def plan(self, rest: Mapping[str, Held]) -> _Plan:
        """Where results go, once it is known which they are."""
        places, early, end = dict[int, int](), 0, 0
        for held in (*self._early.values(), None, *rest.values()):
            if held is None:
                early = end
            elif (key := self._numbers.get(held.data, held.data)) not in places:
                places[key] = end
                end += rounded(num_bytes(held.shape, held.dtype))
        return _Plan(places, early, end, self._num_calls)

    def finish(self, rest: Mapping[str, Held]) -> Program:
        """The program, once `rest` tells the names of the other results."""
        self._program.rest = self._come_down(rest)
        self._program.finish()
        return self._program


def _copying(device: Device, target: int, source: int, size: int) -> Callable[[], None]:
    return lambda: device.copy(target, source, size)
