"""A session whose calls are repeated on the host by the references, and compared, in the steps that are verified.

Every held array has a second copy on the host, which only references touch. What a kernel writes is compared bit for
bit, outputs of attention within their tolerance of float64. Of K, V and boxes the blocks that a call writes are
compared, of everything else all. After steps that were not verified the copies are fetched anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.conformance import compare
from tinyserve_viz.kernels.numpy_backend import NumpyBackend
from tinyserve_viz.kernels.session import (
    Build,
    BytesOf,
    Calls,
    CallTime,
    Given,
    Held,
    HostSession,
    Running,
    Session,
    Sizes,
)

Arrays = Mapping[str, Any]
_BY_BLOCK = ("key_cache", "value_cache", "box")


@dataclass(frozen=True, slots=True, eq=False)
class _Both:
    """The same array twice: `there` with the session that is verified, `here` with the references."""

    there: Held
    here: Held


class VerifiedSession:
    """`session`, verified in the steps that `begin_step` says.

    `num_repeated` counts the calls that were repeated, `num_mismatches` the differences found.
    """

    def __init__(self, session: Session) -> None:
        self._there, self._here = session, HostSession(NumpyBackend())
        self._mismatches: list[str] = []
        self.num_repeated = self.num_mismatches = 0
        self.backend, self.device, self.provenance = session.backend, session.device, session.provenance
        self.num_workers, self.copy_gb_per_s = session.num_workers, session.copy_gb_per_s
        self._verify, self._in_step_with = True, True
        self._held: dict[int, Held] = {}
        self._built: dict[Hashable, _Side] = {}  # the calls of each program
        self.verify_us = 0.0

    # ── arrays ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _pair(self, there: Held, here: Held) -> Held:
        return Held(there.shape, there.dtype, _Both(there, here))

    def hold(self, array: NDArray[Any]) -> Held:
        """Keep it twice."""
        held = self._pair(self._there.hold(array), self._here.hold(np.ascontiguousarray(array)))
        self._held[id(held.data)] = held
        return held

    def drop(self, held: Held) -> None:
        """Give back both."""
        del self._held[id(held.data)]
        self._there.drop(held.data.there)

    def part(self, held: Held, index: int) -> Held:
        """A part of both."""
        return self._pair(self._there.part(held.data.there, index), self._here.part(held.data.here, index))

    def fill(self, held: Held, byte: int = 0) -> None:
        """Set every byte of both."""
        self._there.fill(held.data.there, byte)
        if self._verify:
            self._here.fill(held.data.here, byte)

    def read(self, *held: Held) -> list[NDArray[Any]]:
        """What the verified session has."""
        return self._there.read(*(_there(one) for one in held))

    def read_later(self, *held: Held) -> Callable[[], list[NDArray[Any]]]:
        """What the verified session has."""
        return self._there.read_later(*(_there(one) for one in held))

    def read_blocks(self, held: Held, blocks: NDArray[Any]) -> NDArray[Any]:
        """What the verified session has."""
        return self._there.read_blocks(held.data.there, blocks)

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

    def call(self, kernel: str, arrays: Mapping[str, Given | None], num_bytes: int, **scalars: Any) -> dict[str, Held]:
        """Call it; then repeat it."""
        given = {name: one for name, one in arrays.items() if one is not None}
        here = {name: one.copy() if isinstance(one, np.ndarray) else _here(one) for name, one in given.items()}
        there = {name: one if isinstance(one, np.ndarray) else _there(one) for name, one in given.items()}
        found = self._there.call(kernel, there, num_bytes, **scalars)
        if not self._verify:
            return found
        started = time.perf_counter()
        expected = self._here.call(kernel, here, num_bytes, **scalars)
        if scalars.get("mode") != "cas":  # a race has more than one right outcome
            self._compare(kernel, here, found, expected)
        self.verify_us += (time.perf_counter() - started) * 1e6
        return {name: self._pair(found[name], expected[name]) for name in found}

    def run(self, key: Hashable, build: Build, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> Running:
        """Run the program; then repeat its calls and compare each result. In a step that is verified all is over then,
        and nothing comes early."""
        if not self._verify:
            return self._there.run(key, lambda calls: build(_Side(calls, _there)), inputs, sizes)

        def with_all_results(calls: Calls) -> dict[str, Held]:
            side = self._built[key] = _Side(calls, _there, reads_early=False)
            read = build(side)
            return {
                f"call {number}, {name}": held
                for number, (_, _, outputs) in enumerate(side.calls)
                for name, held in outputs.items()
                if not side.was_given(held)
            } | side.early | read

        found = self._there.run(None if key is None else (key, "verified"), with_all_results, inputs, sizes).rest()
        started = time.perf_counter()
        repeated: list[_Side] = []

        def again(calls: Calls) -> dict[str, Held]:
            repeated.append(_Side(calls, _here, reads_early=False))
            return build(repeated[-1])

        self._here.run(None, again, {name: array.copy() for name, array in inputs.items()}, sizes)
        for number, (name, _, expected) in enumerate(repeated[0].calls):
            for output, held in expected.items():
                result = found.get(f"call {number}, {output}")
                if result is not None:
                    self._tell(name, output, result, held.data)
        self._compare_given(self._built[key], repeated[0])
        self.verify_us += (time.perf_counter() - started) * 1e6
        early = {name: found[name] for name in repeated[0].early}
        return Running(lambda: early, lambda: found)

    # ── comparing ───────────────────────────────────────────────────────────────────────────────────────────────

    def _compare(
        self, kernel: str, given: Mapping[str, Any], found: Mapping[str, Held], expected: Mapping[str, Held]
    ) -> None:
        """What one call wrote."""
        whole = [name for name in found if name not in _BY_BLOCK]
        for name, array in zip(whole, self._there.read(*(found[name] for name in whole)), strict=True):
            self._tell(kernel, name, array, expected[name].data)
        for name in found:
            if name in _BY_BLOCK:
                self._tell_blocks(kernel, name, found[name], expected[name], touched_blocks(kernel, given, expected))

    def _compare_given(self, there: _Side, here: _Side) -> None:
        """Held arrays that a program changed, as they are at its end."""
        for (kernel, _, outputs), (_, arrays, expected) in zip(there.calls, here.calls, strict=True):
            for name, held in outputs.items():
                if not there.was_given(held):
                    continue
                if name in _BY_BLOCK:
                    self._tell_blocks(kernel, name, held, expected[name], touched_blocks(kernel, arrays, expected))
                else:
                    self._tell(kernel, name, self._there.read(held)[0], expected[name].data)

    def _tell_blocks(self, kernel: str, name: str, found: Held, expected: Held, blocks: NDArray[Any]) -> None:
        array = expected.data
        if array.ndim == 4:  # one layer
            found = Held((1, *found.shape), found.dtype, found.data)
            array = array[None]
        self._tell(kernel, name, self._there.read_blocks(found, blocks), array[:, blocks])

    def _tell(self, kernel: str, name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
        problem = compare(kernel_named(kernel), name, found, expected)
        if problem:
            self._mismatches.append(f"{kernel} differs from the reference: {problem}")

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_step(self, verify: bool) -> None:
        """From here on calls are repeated, or not; copies that fell behind are fetched first."""
        self.verify_us = 0.0
        if verify and not self._in_step_with:
            started = time.perf_counter()
            for held in self._held.values():
                held.data.here.data[...] = self._there.read(held.data.there)[0]
            self.verify_us = (time.perf_counter() - started) * 1e6
        self._verify = self._in_step_with = verify
        self._there.begin_step(verify)

    def end_step(self) -> list[CallTime]:
        """The calls of the verified session; their status words must be the references'."""
        done, repeated = self._there.end_step(), self._here.end_step()
        self.num_repeated += len(repeated)
        if self._verify:
            for ours, theirs in zip(done, repeated, strict=True):
                if ours.status != theirs.status:
                    difference = f"status {ours.status!r}, the reference {theirs.status!r}"
                    self._mismatches.append(f"{ours.kernel} has {difference}")
        return done

    def take_mismatches(self) -> list[str]:
        """What differed since the last time."""
        found, self._mismatches = self._mismatches, []
        self.num_mismatches += len(found)
        return found

    def close(self) -> None:
        """Close the verified session."""
        self._there.close()


class _Side:
    """The calls of one of the two sessions, written down as (kernel, arrays, results), and what is read early."""

    def __init__(self, calls: Calls, side: Callable[[Held], Held], reads_early: bool = True) -> None:
        self._calls, self._side, self._reads_early = calls, side, reads_early
        self.early: dict[str, Held] = {}
        self.calls: list[tuple[str, dict[str, Any], dict[str, Held]]] = []
        self._given: list[Held] = []  # held arrays that went in

    def was_given(self, held: Held) -> bool:
        """Whether this very array was held before."""
        return any(held is one for one in self._given)

    def input(self, name: str) -> Held:
        return self._calls.input(name)

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        given = {}
        for name, one in arrays.items():
            if one is not None:
                given[name] = self._side(one)
                if isinstance(one.data, _Both):
                    self._given.append(given[name])
        outputs = self._calls.call(kernel, given, bytes_of, **scalars)
        self.calls.append((kernel, given, outputs))
        return outputs

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        return self._calls.new(shape, dtype)

    def first_column(self, held: Held) -> Held:
        return self._calls.first_column(self._side(held))

    def read_early(self, read: Mapping[str, Held]) -> None:
        self.early = {name: self._side(held) for name, held in read.items()}
        if self._reads_early:
            self._calls.read_early(self.early)


def _there(held: Held) -> Held:
    return held.data.there if isinstance(held.data, _Both) else held


def _here(held: Held) -> Held:
    return held.data.here if isinstance(held.data, _Both) else held


def touched_blocks(kernel: str, given: Arrays, outputs: Arrays) -> NDArray[np.int32]:
    """Blocks whose K, V or box a call may have written, from its host arrays."""

    def host(name: str) -> NDArray[Any]:
        one = given[name]
        array: NDArray[Any] = one.data if isinstance(one, Held) else one
        return array

    if kernel == "fused_block_copy":
        blocks = host("ops")[:, 1]
    elif kernel == "memory_compaction":
        blocks = host("moves")[: int(host("num_moves")[0])].ravel()
    elif kernel == "fused_reshape_and_block_write":
        table, size = host("block_table"), host("key_cache").shape[1]
        start, end = host("start_pos") // size, -(-host("seq_lens") // size)
        at = np.arange(table.shape[1])
        written = (at >= start[:, None]) & (at < end[:, None]) & (host("seq_lens") > host("start_pos"))[:, None]
        blocks = table[written]
    else:
        blocks = outputs["allocated"].data
    return np.unique(blocks[blocks >= 0]).astype(np.int32)
