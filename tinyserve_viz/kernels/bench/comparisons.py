"""Rows of one thing done in two ways: blocks in order or scattered, work lists of each kind, copies one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.bench.attention import (
    attention_bytes,
    check_attention,
    decode_inputs,
    facts,
    flash,
    work_list,
    worker_counts,
)
from tinyserve_viz.kernels.bench.device import Device, DeviceArray, DeviceCall
from tinyserve_viz.kernels.bench.grid import BLOCK_SIZE, LLAMA3_8B, Model
from tinyserve_viz.kernels.bench.movement import block_label, check_copies, copied_bytes, pools_of, writings
from tinyserve_viz.kernels.bench.work import Bench, Call, Work

LAYOUT = [4096] * 64
SKEWED = [65_536] + [1024] * 31
MODES = ("per-seq", "even-blocks", "lpt")  # the first is what the others are compared with
COPIES = (16, 256)
_TWO_LAUNCHES = "reshape, then write"
_SCATTERED, _IN_ORDER = "blocks scattered", "blocks in order"


def layouts(bench: Bench) -> Iterator[Work]:
    """The same attention over blocks that lie anywhere, and over blocks that lie side by side: what scatter costs."""
    if not bench.wants("flash_paged_attention"):
        return
    model, lens = LLAMA3_8B, np.array(LAYOUT, np.int32)
    label = f"{model.name} B={len(lens)} L={LAYOUT[0]}"
    given = decode_inputs(bench, model, label, LAYOUT)
    work = work_list(lens, worker_counts(bench.device, model)[0])
    for impl in (_SCATTERED, _IN_ORDER):
        inputs = given if impl == _SCATTERED else [_in_order(arrays, i) for i, arrays in enumerate(given)]
        if inputs:
            calls = [[flash(bench, arrays | work, model)] for arrays in inputs]
            yield _attention(bench, "decode-layout", impl, label, model, LAYOUT, calls, _SCATTERED)


def _in_order(arrays: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The same sequences on the blocks 0, 1, … of the pool, each set behind the one before."""
    rows, width = arrays["block_table"].shape
    table = np.arange(rows * width, dtype=np.int32).reshape(rows, width) + np.int32(index * rows * width)
    return {**arrays, "block_table": table}


def lists(bench: Bench) -> Iterator[Work]:
    """One batch with one long sequence, and one of the same tokens in equal lengths, by each kind of work list."""
    if not bench.wants("flash_paged_attention"):
        return
    model, equal = LLAMA3_8B, [sum(SKEWED) // len(SKEWED)] * len(SKEWED)
    workers = worker_counts(bench.device, model)[0]
    for name, lens in (("skewed", SKEWED), ("equal", equal)):
        label = f"{model.name} B={len(lens)} {name}, {sum(lens)} tokens"
        inputs = decode_inputs(bench, model, label, lens)
        for mode in MODES if inputs else ():
            work = work_list(np.array(lens, np.int32), workers, mode=mode)
            calls = [[flash(bench, arrays | work, model)] for arrays in inputs]
            yield _attention(bench, "decode-lists", mode, label, model, lens, calls, MODES[0])


def _attention(
    bench: Bench, op: str, impl: str, label: str, model: Model, lens: Sequence[int],
    calls: Sequence[Sequence[DeviceCall]], baseline: str,
) -> Work:  # fmt: skip
    def check(first: Sequence[Call]) -> float:
        return check_attention(bench, model, first[0], np.array(lens, np.int32))

    return Work(
        op, impl, label, attention_bytes(model, lens), {"": calls}, check, baseline=baseline, facts=facts(model, lens)
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Memcpys:
    """Copies by the driver in place of a kernel: (target, source) pairs."""

    kernel: str
    device: Device
    pairs: Sequence[tuple[DeviceArray, DeviceArray]]
    arrays: Mapping[str, DeviceArray]
    status: DeviceArray

    def launch(self, stream: Any = None) -> None:
        """Put every copy on the stream."""
        for target, source in self.pairs:
            self.device.copy(target, source, stream)

    @property
    def entries(self) -> list[str]:
        """Nothing that a profiler of kernels would see."""
        return []


def writes_apart(bench: Bench) -> Iterator[Work]:
    """New rows written in one launch, and in two: copied first, as a reshape of its own would, then written."""
    if not bench.wants("fused_reshape_and_block_write"):
        return
    for one in writings(bench):
        fused = [one.call(given) for given in one.arguments]
        kv = bench.device.empty(one.arguments[0]["kv"].shape, np.float16)
        apart: list[list[Call]] = []
        for given in one.arguments:
            write = one.call(given, kv)
            reshape = Memcpys("reshape", bench.device, [(kv, given["kv"])], write.arrays, write.status)
            apart.append([reshape, write])
        yield one.work("kv-write-apart", "one launch", [[call] for call in fused], _TWO_LAUNCHES)
        yield one.work("kv-write-apart", _TWO_LAUNCHES, apart, _TWO_LAUNCHES)


def copies_apart(bench: Bench) -> Iterator[Work]:
    """Blocks copied by one launch, by a launch each, and by the driver's own copies, K, V and box of each."""
    if not bench.wants("fused_block_copy"):
        return
    model = LLAMA3_8B
    for count in COPIES:
        if not bench.fits(f"copy-apart, {block_label(model, count)}", 2 * count, model):
            continue
        layered = {name: pool.of_one_layer() for name, pool in pools_of(bench, model).items()}
        num_blocks = layered["box"].shape[1]
        ids = bench.rng(count, 11).permutation(num_blocks).astype(np.int32)[: 2 * count].reshape(count, 2)
        plan = np.concatenate([ids, np.full((count, 1), BLOCK_SIZE, np.int32)], axis=1)
        ref = bench.device.put(np.ones(num_blocks, np.int32))

        def copy(
            ops: NDArray[np.int32], ref: DeviceArray = ref, layered: Mapping[str, DeviceArray] = layered
        ) -> DeviceCall:  # fmt: skip
            return bench.call("fused_block_copy", {"ops": np.ascontiguousarray(ops), "ref": ref, **layered})

        pairs = [
            (pool.part(0).part(target), pool.part(0).part(source))
            for source, target in ids.tolist()
            for pool in layered.values()
        ]
        memcpys = Memcpys("memcpy", bench.device, pairs, layered, bench.device.empty((1,), np.int32, 0))
        forms: dict[str, Sequence[Call]] = {
            "one launch": [copy(plan)],
            "a launch each": [copy(plan[i : i + 1]) for i in range(count)],
            "three memcpys each": [memcpys],
        }
        num_bytes = copied_bytes(model, count)
        for impl, calls in forms.items():
            yield Work(
                "copy-apart", impl, block_label(model, count), num_bytes, {"": [calls]},
                partial(check_copies, bench, ids), baseline="a launch each",
                facts={"model": model.name, "blocks": count}, note="in one graph",
            )  # fmt: skip
