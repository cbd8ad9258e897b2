"""What replays of one trace have in common, worked out once: attention over *all* blocks, and the share of each block.

A policy decides which blocks are read; what full attention gives, and how much of it each block receives, depends on
the tokens of the sequences alone. So replays that differ in their policy, their ratio or their pool share these
results, by the sequences that decode, their lengths, and which call of the step it is. Boxes and their scores are not
shared: a box may be wider than its keys, by what happened to its block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.backend import Backend
from tinyserve_viz.kernels.definition import Status
from tinyserve_viz.kernels.session import Build, BytesOf, Given, Held, HostSession, Running, Sizes

SHARED = ("block_mass", "flash_paged_attention", "paged_attention")
_POOLS = ("key_cache", "value_cache")  # their shape is the pool's and says nothing of the result's
_AGAIN_EVERY = 32  # programs between two in which shared results are made again and compared
_MOST_BYTES = 1 << 30

Outputs = dict[str, NDArray[Any]]
Batch = Callable[[NDArray[np.int32]], bytes]
"""Says which sequences stand in the rows of the given lengths; the same bytes in every replay that shares results."""


class SharedResults:
    """Outputs of calls, with the time and status that the call had where it ran. A full store takes no more."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._room = most_bytes
        self._kept: dict[Hashable, tuple[Outputs, float, Status]] = {}

    def find(self, place: Hashable) -> tuple[Outputs, float, Status] | None:
        """What the call at `place` gave in an earlier replay; for reading only."""
        return self._kept.get(place)

    def keep(self, place: Hashable, outputs: Outputs, us: float, status: Status) -> None:
        """Keep copies, as long as there is room."""
        size = sum(array.nbytes for array in outputs.values())
        if size <= self._room and place not in self._kept:
            self._room -= size
            copies = {name: array.copy() for name, array in outputs.items()}
            for array in copies.values():
                array.flags.writeable = False
            self._kept[place] = copies, us, status


class SharedSession(HostSession):
    """A session of one of several replays. Of the programs with such calls every 32nd trusts nothing: it works out
    everything again and reports what differs, which would say that two replays do not hold the same K and V."""

    def __init__(self, backend: Backend, device: str, results: SharedResults, batch: Batch) -> None:
        super().__init__(backend, device)
        self._results, self._batch = results, batch
        self._who: Hashable = None
        self._numbers: dict[Hashable, int] = {}
        self._programs = 0
        self._mismatches: list[str] = []

    def run(self, key: Hashable, build: Build, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> Running:
        """As any session, but its calls may be answered from what an earlier replay worked out."""
        lengths = inputs.get("seq_lens")
        if lengths is None:  # nobody decodes
            return super().run(key, build, inputs, sizes)
        self._who = (lengths.tobytes(), self._batch(lengths))
        self._numbers.clear()
        try:
            return super().run(key, build, inputs, sizes)
        finally:
            self._who = None

    def _call(
        self,
        kernel: str,
        arrays: Mapping[str, Given | None],
        num_bytes: int | BytesOf,
        sizes: Sizes,
        scalars: Mapping[str, Any],
    ) -> dict[str, Held]:
        if self._who is None or kernel not in SHARED:
            return super()._call(kernel, arrays, num_bytes, sizes, scalars)
        shapes = [(name, one.shape) for name, one in arrays.items() if one is not None and name not in _POOLS]
        call = (kernel, tuple(sorted(scalars.items())), tuple(shapes))
        self._programs += not self._numbers
        number = self._numbers[call] = self._numbers.get(call, -1) + 1  # one a layer
        place = (self._who, call, number)
        kept = self._results.find(place)
        if kept is not None and self._programs % _AGAIN_EVERY:
            outputs, us, status = kept
            self._done.append((kernel, us, num_bytes, sizes, status))
            return {name: self._held(array) for name, array in outputs.items()}
        found = super()._call(kernel, arrays, num_bytes, sizes, scalars)
        outputs = {name: held.data for name, held in found.items()}
        if kept is None:
            _, us, _, _, status = self._done[-1]
            self._results.keep(place, outputs, us, status)
        elif any(not np.array_equal(kept[0][name], array, equal_nan=True) for name, array in outputs.items()):
            self._mismatches.append(f"{kernel} gives other results than in an earlier replay of the same sequences")
        return found

    def take_mismatches(self) -> list[str]:
        """Shared results that were found to differ since the last time, in words."""
        found, self._mismatches = self._mismatches, []
        return found
